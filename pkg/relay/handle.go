package relay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// sinkHandle is a sink that is opened when it is needed, and again where that
// failed, or where the way to it is another one now.
type sinkHandle struct {
	spec    *atomic.Pointer[sinkSpec]
	env     sinks.Env
	timeout time.Duration
	latency prometheus.Observer // of events, until their acknowledgement; nil is not observed
	journal func() string       // its ID
	replay  string              // that the outlet works for; empty is live traffic
	// unsent is the place from which on no other process, and no outlet before
	// this one, can have sent an event.
	unsent     journal.Seq
	duplicates duplicates
	history    *deliveryHistory // keeps in mind what was taken; nil is not kept
	acked      []ackRange       // of one attempt; kept to be used again

	opened *sinkSpec  // that sink was opened by
	sink   sinks.Sink // nil until it could be opened
}

// sinkSpec is how a sink is opened, and what it is not to see.
type sinkSpec struct {
	open   sinks.Opener
	redact *redactor
}

func specOf(s sinks.Configured) *sinkSpec { return &sinkSpec{s.Open, newRedactor(s.Settings.Redact)} }

// attempt opens the sink if it is not open, hands it the records once, and
// returns what became of each, or of all. It has a deadline, whatever the sink
// does.
func (o *sinkHandle) attempt(ctx context.Context, records []pendingRecord) (sinks.BatchError, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if current := o.spec.Load(); current != o.opened {
		o.close()
		o.opened = current
	}
	if o.sink == nil {
		env := o.env
		env.Duplicate = func(e event.Event) { o.duplicates.ids = append(o.duplicates.ids, e.MessageID) }
		sink, err := o.opened.open(ctx, env)
		if err != nil {
			return nil, fmt.Errorf("opening: %w", err)
		}
		o.sink = sink
	}
	batch, results := o.redactAll(records)
	if len(batch) == 0 {
		return results, nil
	}
	o.duplicates.ids = o.duplicates.ids[:0]
	err := o.sink.Deliver(ctx, batch)
	o.judgeDuplicates(records)
	each, ok := errors.AsType[sinks.BatchError](err)
	if ok = ok && len(each) == len(batch); err != nil && !ok {
		return nil, err
	}
	if len(batch) == len(records) {
		return each, nil
	}
	// What was handed over stands among what could not be.
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

// destination is where the sink puts an event; nowhere while it is not open.
func (o *sinkHandle) destination(e event.Event) sinks.Destination {
	if o.sink == nil {
		return sinks.Destination{}
	}
	return o.sink.Destination(e)
}

// redactAll returns the records' events as the sink may see them, and an error for
// each that it may not see at all.
func (o *sinkHandle) redactAll(records []pendingRecord) (batch []event.Event, errs sinks.BatchError) {
	batch, errs = make([]event.Event, 0, len(records)), make(sinks.BatchError, len(records))
	for i, r := range records {
		e, err := o.opened.redact.apply(r.Event)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		e.MessageID = o.messageID(r.Record)
		batch = append(batch, e)
	}
	return batch, errs
}

func (o *sinkHandle) close() {
	if o.sink == nil {
		return
	}
	if err := o.sink.Close(); err != nil {
		o.env.Log.Warn("closing the sink", zap.Error(err))
	}
	o.sink = nil
}

// pendingRecord is a record in the hands of a pump.
type pendingRecord struct {
	journal.Record
	batchIndex int       // among the records of its batch
	matchIndex int       // among those of them that the sink is to get
	attempts   int       // so far
	first      time.Time // of the first attempt
}

// attemptResult are what one attempt came to.
type attemptResult struct {
	retry     []pendingRecord // in order; to be tried again
	delivered int             // acknowledged
	dead      []journal.DeadLetter
	wait      time.Duration // as long as the broker asked for
	failure   error         // why again is not empty
}

// judge sorts the records of an attempt by what became of each, or of all. A
// failure of all judges no event: it is always tried again. An event older than
// maxAge that fails is set aside, unless maxAge is 0.
func (o *sinkHandle) judge(records []pendingRecord, each sinks.BatchError, all error, maxAge time.Duration) (v attemptResult) {
	now := o.env.Now()
	if o.history != nil {
		o.acked = o.acked[:0]
		defer func() { o.history.add(o.acked) }()
	}
	going := false // the record before was taken
	for i, r := range records {
		err := all
		var reason sinks.Reason
		var refused bool
		if each != nil {
			err = each[i]
			reason, refused = sinks.IsPermanent(err)
		}
		if err == nil {
			v.delivered++
			if o.latency != nil {
				o.latency.Observe(max(0, now.Sub(r.Accepted).Seconds()))
			}
			if last := len(o.acked) - 1; going && o.acked[last].attempts == r.attempts {
				o.acked[last].to = r.Seq
			} else if o.history != nil {
				o.acked, going = append(o.acked, ackRange{r.Seq, r.Seq, now, r.attempts}), true
			}
			continue
		}
		going = false
		if !refused && maxAge > 0 && now.Sub(r.Accepted) >= maxAge {
			reason, refused = sinks.ReasonExpired, true
		}
		if !refused {
			v.retry = append(v.retry, r)
			v.wait = max(v.wait, sinks.Wait(err))
			if v.failure == nil {
				v.failure = err
			}
			continue
		}
		v.dead = append(v.dead, journal.DeadLetter{
			Seq: r.Seq, Reason: string(reason), Err: err.Error(), Attempts: r.attempts, First: r.first, Last: now,
		})
		log := o.env.Log
		if id := telemetry.TraceID(r.Event); id != "" {
			log = log.With(zap.String("trace_id", id))
		}
		log.Error("the event was refused for good", zap.Uint64("seq", uint64(r.Seq)), zap.String("event_id", r.Event.CloudEvent.ID()),
			zap.String("reason", string(reason)), zap.Int("attempts", r.attempts), zap.Error(err))
	}
	return v
}
