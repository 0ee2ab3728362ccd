package relay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// sinkHandle opens a sink, and delivers redacted events to the open sink.
//
// | state | opened | sink | next |
// |---|---|---|---|
// | closed | nil or the last spec | nil | open |
// | open | the spec of the sink | set | deliver, close |
// | outdated | not the current spec | set | close, then open |
//
// The goroutine of Pump.Run sets opened and sink, while no event is in a delivery. Several
// goroutines may call deliver.
type sinkHandle struct {
	spec    *atomic.Pointer[sinkSpec]
	env     sinks.Env
	timeout time.Duration
	journal func() string // returns the journal ID
	replay  string        // ID of the replay; empty for live traffic
	// unsent is the first sequence that neither another process nor an earlier handle
	// can have sent.
	unsent     journal.Seq
	duplicates duplicates
	fence      fence
	memory     sinks.Memory // of the sink

	opened *sinkSpec  // that sink was opened by
	sink   sinks.Sink // nil while closed
}

// sinkSpec opens a sink and redacts its events.
type sinkSpec struct {
	open   sinks.Opener
	redact *redactor
}

func specOf(s sinks.Configured) *sinkSpec { return &sinkSpec{s.Open, newRedactor(s.Settings.Redact)} }

// outdated reports whether the sink is to be opened again because its spec has changed.
func (o *sinkHandle) outdated() bool { return o.opened != o.spec.Load() }

// open opens a sink by a spec. The timeout of the sink bounds open.
func (o *sinkHandle) open(ctx context.Context, spec *sinkSpec) (sinks.Sink, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	env := o.env
	if o.fence.owns != nil && env.Dial != nil {
		env.Dial = o.fence.dial(env.Dial)
	}
	env.Memory = &o.memory
	env.Duplicate = func(e event.Event) { o.duplicates.add(e.MessageID) }
	sink, err := spec.open(ctx, env)
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	return sink, nil
}

// deliver delivers the events once. The results are per event, or one error for all events.
// The timeout of the sink bounds deliver.
func (o *sinkHandle) deliver(ctx context.Context, items []*item) (sinks.BatchError, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	o.fence.flights.Add(1)
	defer o.fence.flights.Add(-1)
	batch, results := o.redactAll(items)
	if len(batch) == 0 {
		return results, nil
	}
	err := o.sink.Deliver(ctx, batch)
	o.judgeDuplicates(items)
	each, ok := errors.AsType[sinks.BatchError](err)
	if ok = ok && len(each) == len(batch); err != nil && !ok {
		return nil, err
	}
	if len(batch) == len(items) {
		return each, nil
	}
	// Merge the results of the sink with the events that redaction refused.
	for i, n := 0, 0; i < len(results); i++ {
		if results[i] == nil {
			if each != nil {
				results[i] = each[n]
			}
			n++
		}
	}
	return results, nil
}

// destination returns the topic, subject or URL of an event; empty while the sink is closed.
func (o *sinkHandle) destination(e event.Event) sinks.Destination {
	if o.sink == nil {
		return sinks.Destination{}
	}
	return o.sink.Destination(e)
}

// redactAll returns the redacted events, and an error for each event that cannot be
// redacted.
func (o *sinkHandle) redactAll(items []*item) (batch []event.Event, errs sinks.BatchError) {
	batch, errs = make([]event.Event, 0, len(items)), make(sinks.BatchError, len(items))
	for n, i := range items {
		e, err := o.opened.redact.apply(i.Event)
		if err != nil {
			errs[n] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		e.MessageID = o.messageID(i.Record)
		batch = append(batch, e)
	}
	return batch, errs
}

// forget closes the sink, with all that it knows of unanswered requests: another process may
// deliver their events, and later ones.
func (o *sinkHandle) forget() {
	o.close(o.sink)
	o.sink, o.memory = nil, sinks.Memory{}
}

// close closes a sink; nil is closed.
func (o *sinkHandle) close(sink sinks.Sink) {
	if sink == nil {
		return
	}
	if err := sink.Close(); err != nil {
		o.env.Log.Warn("closing the sink", zap.Error(err))
	}
}
