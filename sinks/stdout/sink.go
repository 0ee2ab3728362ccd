// Package stdout writes events to the standard output of the process: one
// CloudEvent in JSON a line, or a short line for people. It is meant for trying
// things out and for containers whose output is collected.
package stdout

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

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
	Format string `yaml:"format" enum:"json,text" doc:"json: the whole event, one a line. text: time, type, subject, outcome and id."`
}

// Validate implements config.Settings.
func (Config) Validate() error { return nil }

func defaults() Config { return Config{Format: formatJSON} }

// Kind is the sink of type stdout.
func Kind() sinks.Kind { return KindTo(os.Stdout) }

// KindTo is the sink of type stdout, writing to w. A write that is partly done
// when it fails is repeated whole.
func KindTo(w io.Writer) sinks.Kind {
	return sinks.Define("stdout", "Standard output of the process, a line an event.", defaults,
		func(_ context.Context, c Config, _ sinks.Env) (sinks.Sink, error) {
			return &Sink{format: c.Format, out: w}, nil
		})
}

// Sink implements sinks.Sink.
type Sink struct {
	format string
	out    io.Writer
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	errs := make([]error, len(batch))
	for i, e := range batch {
		if err := ctx.Err(); err != nil {
			errs[i] = err
			continue
		}
		line, err := s.line(ctx, e)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		if _, err := s.out.Write(append(line, '\n')); err != nil {
			// What is behind it waits, so that lines keep their order.
			for k := i; k < len(batch); k++ {
				errs[k] = fmt.Errorf("writing: %w", err)
			}
			break
		}
	}
	return sinks.Outcome(errs)
}

func (s *Sink) line(ctx context.Context, e event.Event) ([]byte, error) {
	if s.format == formatJSON {
		m, err := sinks.Encode(ctx, e, sinks.Structured)
		// The payload may hold line breaks between its values; JSON has none
		// inside of them.
		return bytes.ReplaceAll(bytes.ReplaceAll(m.Body, []byte("\n"), []byte(" ")), []byte("\r"), []byte(" ")), err
	}
	var parts []string
	for _, name := range []string{event.RecordedTime, "type", "subject", event.Outcome, "id"} {
		if v, ok := e.Attribute(name); ok {
			parts = append(parts, v)
		} else if name != event.Outcome {
			parts = append(parts, "-")
		}
	}
	return []byte(strings.Join(parts, "  ")), nil
}

// Close implements sinks.Sink.
func (s *Sink) Close() error { return nil }
