package nats

import (
	"context"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// acks is what the client says became of messages. It calls at any time, from
// goroutines of its own, which must not wait.
type acks struct {
	mu    sync.Mutex
	ended []ack
	news  chan struct{} // has room for one
}

// ack is the end of one message: the stream's acknowledgement, or an error.
type ack struct {
	msg       *nats.Msg
	duplicate bool // the stream says that it has a message of this ID
	err       error
}

func newAcks() *acks { return &acks{news: make(chan struct{}, 1)} }

func (a *acks) add(end ack) {
	a.mu.Lock()
	a.ended = append(a.ended, end)
	a.mu.Unlock()
	select {
	case a.news <- struct{}{}:
	default: // whoever waits will see this one, too
	}
}

// take returns all that came since the last time.
func (a *acks) take() []ack {
	a.mu.Lock()
	defer a.mu.Unlock()
	ended := a.ended
	a.ended = nil
	return ended
}

// flight is the delivery of a batch to a stream. One goroutine publishes and hears
// what became of it: with one for each line, switching between them and writing
// what each had to say took about half of the time.
type flight struct {
	*delivery
	batch   []event.Event
	errs    []error             // what became of each
	flying  map[*nats.Msg][]int // what is on its way, each with its line: the event itself and those behind it
	watched map[string]watched  // by subject
}

// watched is a subject that the server may forbid.
type watched struct {
	told    <-chan struct{}
	release func()
}

func (d *delivery) jetStream(ctx context.Context, batch []event.Event) error {
	f := &flight{
		delivery: d, batch: batch, errs: make([]error, len(batch)),
		flying: make(map[*nats.Msg][]int, min(len(batch), d.sink.config.Window)), watched: map[string]watched{},
	}
	defer func() {
		for _, w := range f.watched {
			w.release()
		}
	}()
	d.acks.take() // of what a delivery before this one left behind
	forbidden := d.denied.changed()
	lines := sinks.Lines(batch)
	for {
		for len(lines) > 0 && len(f.flying) < d.sink.config.Window && ctx.Err() == nil {
			f.publish(lines[0])
			lines = lines[1:]
		}
		if len(lines)+len(f.flying) == 0 {
			return sinks.Outcome(f.errs)
		}
		select {
		case <-d.acks.news:
			for _, a := range d.acks.take() {
				f.end(a)
			}
		case <-forbidden:
			forbidden = d.denied.changed() // before it is looked at what was
			f.deny()
		case <-d.ended:
			f.giveUp(lines, errEnded)
			return sinks.Outcome(f.errs)
		case <-ctx.Done():
			f.giveUp(lines, ctx.Err())
			return sinks.Outcome(f.errs)
		}
	}
}

// publish sends the first event of a line that can be sent. The rest of the line
// waits for its acknowledgement.
func (f *flight) publish(line []int) {
	for ; len(line) > 0; line = line[1:] {
		e := f.batch[line[0]]
		msg, err := f.sink.message(e)
		if err == nil {
			f.watch(msg.Subject)
			_, err = f.js.PublishMsgAsync(msg,
				jetstream.WithMsgID(e.MessageID),
				// Another stream's acknowledgement must not count as ours.
				jetstream.WithExpectStream(f.sink.config.Stream),
				jetstream.WithRetryAttempts(0)) // retries are the relay's
			if err == nil {
				f.flying[msg] = line
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

// settle notes what became of a message, and returns those behind it in its line;
// none if it is of an earlier delivery. The error is why they must wait.
func (f *flight) settle(a ack) (behind []int, err error) {
	line, ok := f.flying[a.msg]
	if !ok {
		return nil, nil
	}
	delete(f.flying, a.msg)
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

// end notes what became of a message, and publishes the next one of its line.
func (f *flight) end(a ack) {
	behind, err := f.settle(a)
	if err != nil {
		f.hold(behind, err)
		return
	}
	f.publish(behind)
}

// goesOn reports whether those behind an event of which this became may be sent.
func goesOn(err error) bool {
	_, refused := sinks.IsPermanent(err)
	return err == nil || refused
}

// hold keeps back the rest of a line, which must not overtake.
func (f *flight) hold(line []int, err error) {
	for _, i := range line {
		f.errs[i] = fmt.Errorf("held back behind an event of its partition key: %w", err)
	}
}

// giveUp ends all that is on its way, less what was just heard of, and the lines
// that were not begun.
func (f *flight) giveUp(lines [][]int, err error) {
	for _, a := range f.acks.take() {
		behind, _ := f.settle(a)
		lines = append(lines, behind)
	}
	for msg := range f.flying {
		behind, _ := f.settle(ack{msg: msg, err: err})
		f.hold(behind, err)
	}
	for _, line := range lines {
		for _, i := range line {
			f.errs[i] = err
		}
	}
}

// watch makes sure that it is heard when the server forbids a subject.
func (f *flight) watch(subject string) {
	if _, known := f.watched[subject]; !known {
		told, release := f.denied.watch(subject)
		f.watched[subject] = watched{told, release}
	}
}

// deny ends the messages on their way whose subject the server forbids.
func (f *flight) deny() {
	forbidden := map[string]bool{}
	for subject, w := range f.watched {
		select {
		case <-w.told:
			w.release()
			delete(f.watched, subject)
			forbidden[subject] = true
		default:
		}
	}
	var ended []*nats.Msg
	for msg := range f.flying {
		if forbidden[msg.Subject] {
			ended = append(ended, msg)
		}
	}
	for _, msg := range ended {
		f.end(ack{msg: msg, err: errDenied})
	}
}
