package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// acks collects the outcomes of messages. The client calls acks at any time,
// from the client's own goroutines, which must not block.
type acks struct {
	mu      sync.Mutex
	ended   []ack
	notifyC chan struct{} // capacity 1
}

// ack is the outcome of a message: the stream's acknowledgement, or an error.
type ack struct {
	msg       *nats.Msg
	duplicate bool // the stream already has a message with this ID
	err       error
}

func newAcks() *acks { return &acks{notifyC: make(chan struct{}, 1)} }

func (a *acks) add(end ack) {
	a.mu.Lock()
	a.ended = append(a.ended, end)
	a.mu.Unlock()
	select {
	case a.notifyC <- struct{}{}:
	default: // the pending notification covers this ack
	}
}

// take returns and removes all collected acks.
func (a *acks) take() []ack {
	a.mu.Lock()
	defer a.mu.Unlock()
	ended := a.ended
	a.ended = nil
	return ended
}

// inflightBatch is the delivery of a batch to a stream. A single goroutine
// publishes and processes the outcomes: with a goroutine per line, context
// switches and synchronization took about half of the time.
type inflightBatch struct {
	*delivery
	*publisher // its js, not the session's
	batch      []event.Event
	errs       []error             // outcome of each event
	inflight   map[*nats.Msg][]int // messages in flight, with their lines: the event and the later events of the line
	watched    map[string]watched  // by subject
}

// watched is a subject that the server may forbid.
type watched struct {
	denied  <-chan struct{}
	release func()
}

func (d *delivery) jetStream(ctx context.Context, batch []event.Event) error {
	p, err := d.publisher(d.sink.config.Window)
	if err != nil {
		return err
	}
	defer d.release(p)
	f := &inflightBatch{
		delivery: d, publisher: p, batch: batch, errs: make([]error, len(batch)),
		inflight: make(map[*nats.Msg][]int, min(len(batch), d.sink.config.Window)), watched: map[string]watched{},
	}
	defer func() {
		for _, w := range f.watched {
			w.release()
		}
	}()
	forbidden := d.denied.changed()
	lines := sinks.Lines(batch)
	for {
		for len(lines) > 0 && len(f.inflight) < d.sink.config.Window && ctx.Err() == nil {
			f.publish(lines[0])
			lines = lines[1:]
		}
		if len(lines)+len(f.inflight) == 0 {
			return f.outcome()
		}
		select {
		case <-p.acks.notifyC:
			for _, a := range p.acks.take() {
				f.end(a)
			}
		case <-forbidden:
			forbidden = d.denied.changed() // before the check of existing denials
			f.deny()
		case <-d.ended:
			f.abort(lines, errEnded)
			return f.outcome()
		case <-ctx.Done():
			f.abort(lines, ctx.Err())
			return f.outcome()
		}
	}
}

// outcome returns the error of the batch. Without a connection and without an
// acknowledged event, the failure is of the whole sink.
func (f *inflightBatch) outcome() error {
	if !f.conn.IsConnected() && len(f.errs) > 0 && !slices.Contains(f.errs, nil) {
		return fmt.Errorf("the connection to NATS is lost: %w", f.errs[0])
	}
	return sinks.Outcome(f.errs)
}

// publish sends the first sendable event of a line. The rest of the line waits
// for the acknowledgement.
func (f *inflightBatch) publish(line []int) {
	for ; len(line) > 0; line = line[1:] {
		e := f.batch[line[0]]
		msg, err := f.sink.message(e)
		if err == nil {
			f.watch(msg.Subject)
			_, err = f.js.PublishMsgAsync(msg,
				jetstream.WithMsgID(e.MessageID),
				// An acknowledgement of another stream must not count.
				jetstream.WithExpectStream(f.sink.config.Stream),
				jetstream.WithRetryAttempts(0)) // retries are the relay's
			if err == nil {
				f.inflight[msg] = line
				return
			}
			err = f.classify(msg.Subject, err)
		}
		if f.errs[line[0]] = err; !goesOn(err) {
			f.hold(line[1:], err)
			return
		}
	}
}

// record records the outcome of a message, and returns the later events of the
// line; none for a message of an earlier delivery. The error is the reason to
// hold back the later events.
func (f *inflightBatch) record(a ack) (behind []int, err error) {
	line, ok := f.inflight[a.msg]
	if !ok {
		return nil, nil
	}
	delete(f.inflight, a.msg)
	if a.err != nil {
		a.err = f.classify(a.msg.Subject, a.err)
	} else {
		f.accepted.Store(true)
	}
	if a.duplicate && f.sink.env.Duplicate != nil {
		f.sink.env.Duplicate(f.batch[line[0]])
	}
	if f.errs[line[0]] = a.err; !goesOn(a.err) {
		err = a.err
	}
	return line[1:], err
}

// end records the outcome of a message, and publishes the next event of the
// line.
func (f *inflightBatch) end(a ack) {
	behind, err := f.record(a)
	if err != nil {
		f.hold(behind, err)
		return
	}
	f.publish(behind)
}

// goesOn reports whether later events may be sent after this outcome.
func goesOn(err error) bool {
	_, refused := sinks.IsPermanent(err)
	return err == nil || refused
}

// hold holds back the rest of a line, to keep the order. The errors do not wrap
// err, because an error of a destination is not of the held events' subjects.
func (f *inflightBatch) hold(line []int, err error) {
	for _, i := range line {
		f.errs[i] = errors.New("held back behind an event of its partition key: " + err.Error())
	}
}

// abort fails all messages in flight without an outcome, and all lines that
// were not started.
func (f *inflightBatch) abort(lines [][]int, err error) {
	for _, a := range f.acks.take() {
		behind, _ := f.record(a)
		lines = append(lines, behind)
	}
	for msg := range f.inflight {
		behind, _ := f.record(ack{msg: msg, err: err})
		f.hold(behind, err)
	}
	for _, line := range lines {
		for _, i := range line {
			f.errs[i] = err
		}
	}
}

// watch subscribes to denials of a subject by the server.
func (f *inflightBatch) watch(subject string) {
	if _, known := f.watched[subject]; !known {
		denied, release := f.denied.watch(subject)
		f.watched[subject] = watched{denied, release}
	}
}

// deny fails the messages in flight whose subject the server forbids.
func (f *inflightBatch) deny() {
	forbidden := map[string]bool{}
	for subject, w := range f.watched {
		select {
		case <-w.denied:
			w.release()
			delete(f.watched, subject)
			forbidden[subject] = true
		default:
		}
	}
	var ended []*nats.Msg
	for msg := range f.inflight {
		if forbidden[msg.Subject] {
			ended = append(ended, msg)
		}
	}
	for _, msg := range ended {
		f.end(ack{msg: msg, err: errDenied})
	}
}
