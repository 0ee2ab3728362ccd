// Package stdout writes events to the standard output of the process: a
// CloudEvent as JSON per line, or a short text per line. Uses are experiments,
// and containers with log collection.
//
// A line counts as delivered when the line is written. An event in JSON always
// fits on a line; after an incomplete line, the next line starts with a line
// break.
package stdout

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/postwire/postwire/internal/terminal"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Formats of a line.
const (
	formatJSON = "json"
	formatText = "text"
)

// Config is the block of a sink of type stdout.
type Config struct {
	Format string `yaml:"format" enum:"json,text" doc:"json: the whole event, one per line. text: time, type, subject, outcome and id."`
}

// Validate implements config.Settings.
func (Config) Validate() error { return nil }

// Route implements sinks.Config.
func (Config) Route() sinks.Route { return sinks.Route{} }

// Subscription implements sinks.Config: a terminal has no subscription.
func (Config) Subscription() sinks.Subscription { return sinks.Subscription{} }

func defaults() Config { return Config{Format: formatJSON} }

//go:embed example.yaml
var example string

// Kind is the sink of type stdout.
func Kind() sinks.Kind { return KindTo(os.Stdout) }

// KindTo is the sink of type stdout, writing to w.
func KindTo(w io.Writer) sinks.Kind {
	out := &output{w: w, idle: make(chan struct{}, 1)}
	return sinks.Define("stdout", "Standard output of the process, one line per event.", example, defaults,
		func(_ context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
			return &Sink{env: env, format: c.Format, out: out, closed: make(chan struct{})}, nil
		})
}

// Sink implements sinks.Sink.
//
// A pipe without a reader blocks its writer, and a blocked write cannot be
// cancelled. Therefore a separate goroutine writes, and Deliver can return. The
// next Deliver, also of another Sink, waits for the end of that write, so that
// lines do not mix.
type Sink struct {
	env    sinks.Env
	format string
	out    *output

	close  sync.Once
	closed chan struct{}
}

// output is the standard output, which all sinks of a kind share.
type output struct {
	w    io.Writer
	idle chan struct{} // holds a token while somebody writes
	torn bool          // the last line has no line break; owned by the writing goroutine
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.closed:
		return errClosed
	default:
	}
	errs := make([]error, len(batch))
	lines := make([][]byte, len(batch))
	for i, e := range batch {
		line, err := s.line(e)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		lines[i] = line
	}
	written := make(chan []error, 1)
	select {
	case s.out.idle <- struct{}{}:
		go func() {
			defer func() { <-s.out.idle }()
			written <- s.out.write(ctx, lines)
		}()
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		return errClosed
	}
	select {
	case failed := <-written:
		for i, err := range failed {
			if err != nil {
				errs[i] = err
			}
		}
		return sinks.Outcome(errs)
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		return errClosed
	}
}

// Destination implements sinks.Sink: the sink has a single output.
func (*Sink) Destination(event.Event) sinks.Destination { return sinks.Destination{} }

var errClosed = errors.New("the sink is closed")

// write writes the non-empty lines, and stops at the first failure to keep the
// order.
func (o *output) write(ctx context.Context, lines [][]byte) []error {
	errs := make([]error, len(lines))
	for i, line := range lines {
		err := ctx.Err()
		if err == nil && line != nil {
			err = o.writeLine(line)
		}
		if err != nil {
			for k := i; k < len(lines); k++ {
				errs[k] = sinks.AtDestination(fmt.Errorf("writing: %w", err))
			}
			break
		}
	}
	return errs
}

func (o *output) writeLine(line []byte) error {
	if o.torn {
		if _, err := o.w.Write([]byte("\n")); err != nil {
			return err
		}
		o.torn = false
	}
	n, err := o.w.Write(line)
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	o.torn = err != nil && n > 0
	return err
}

// line returns an event as printed, including the line break.
func (s *Sink) line(e event.Event) ([]byte, error) {
	if s.format == formatText {
		return []byte(text(e) + "\n"), nil
	}
	m, err := s.env.Encode(e, sinks.Structured)
	if err != nil {
		return nil, err
	}
	// The payload may have line breaks between its values; strings in JSON have
	// no line breaks.
	line := bytes.ReplaceAll(m.Body, []byte{'\n'}, []byte{' '})
	line = bytes.ReplaceAll(line, []byte{'\r'}, []byte{' '})
	return []byte(terminal.Line(string(line)) + "\n"), nil
}

// text formats an event for people: time, type, subject, outcome, id.
func text(e event.Event) string {
	var parts []string
	for _, names := range [][]string{{"time", event.RecordedTime}, {"type"}, {"subject"}, {event.Outcome}, {"id"}} {
		part := "-"
		for _, name := range names {
			if v, ok := e.Attribute(name); ok {
				part = terminal.Line(v)
				break
			}
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "  ")
}

// Close implements sinks.Sink. A write in progress may still appear.
func (s *Sink) Close() error {
	s.close.Do(func() { close(s.closed) })
	return nil
}

// Limits implements sinks.Sink: one batch at a time.
func (*Sink) Limits() sinks.Limits { return sinks.Limits{} }
