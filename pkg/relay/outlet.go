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

// outlet is a sink that is opened when it is needed, and again where that
// failed, or where the way to it is another one now.
type outlet struct {
	ways    *atomic.Pointer[way]
	env     sinks.Env
	timeout time.Duration
	took    prometheus.Observer // of events, until their acknowledgement; nil is not observed
	journal func() string       // its ID
	replay  string              // that the outlet works for; empty is live traffic
	// unsent is the place from which on no other process, and no outlet before
	// this one, can have sent an event.
	unsent     journal.Seq
	duplicates duplicates
	past       *past // keeps in mind what was taken; nil is not kept
	runs       []run // of one attempt; kept to be used again

	way  *way       // that sink was opened by
	sink sinks.Sink // nil until it could be opened
}

// way is how a sink is opened, and what it is not to see.
type way struct {
	open   sinks.Opener
	redact *redactor
}

func wayOf(s sinks.Configured) *way { return &way{s.Open, newRedactor(s.Settings.Redact)} }

// attempt opens the sink if it is not open, hands it the records once, and
// returns what became of each, or of all. It has a deadline, whatever the sink
// does.
func (o *outlet) attempt(ctx context.Context, records []held) (sinks.BatchError, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if now := o.ways.Load(); now != o.way {
		o.close()
		o.way = now
	}
	if o.sink == nil {
		env := o.env
		env.Duplicate = func(e event.Event) { o.duplicates.ids = append(o.duplicates.ids, e.MessageID) }
		sink, err := o.way.open(ctx, env)
		if err != nil {
			return nil, fmt.Errorf("opening: %w", err)
		}
		o.sink = sink
	}
	batch, shaped := o.shape(records)
	if len(batch) == 0 {
		return shaped, nil
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
	for i, n := 0, 0; i < len(shaped); i++ {
		if shaped[i] == nil {
			if each != nil {
				shaped[i] = each[n]
			}
			n++
		}
	}
	return shaped, nil
}

// destination is where the sink puts an event; nowhere while it is not open.
func (o *outlet) destination(e event.Event) sinks.Destination {
	if o.sink == nil {
		return sinks.Destination{}
	}
	return o.sink.Destination(e)
}

// shape returns the records' events as the sink may see them, and an error for
// each that it may not see at all.
func (o *outlet) shape(records []held) (batch []event.Event, errs sinks.BatchError) {
	batch, errs = make([]event.Event, 0, len(records)), make(sinks.BatchError, len(records))
	for i, r := range records {
		e, err := o.way.redact.apply(r.Event)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		e.MessageID = o.messageID(r.Record)
		batch = append(batch, e)
	}
	return batch, errs
}

func (o *outlet) close() {
	if o.sink == nil {
		return
	}
	if err := o.sink.Close(); err != nil {
		o.env.Log.Warn("closing the sink", zap.Error(err))
	}
	o.sink = nil
}

// held is a record in the hands of a pump.
type held struct {
	journal.Record
	nth      int       // among the records of its batch
	place    int       // among those of them that the sink is to get
	attempts int       // so far
	first    time.Time // of the first attempt
}

// verdicts are what one attempt came to.
type verdicts struct {
	again   []held // in order; to be tried again
	taken   int    // acknowledged
	dead    []journal.DeadLetter
	wait    time.Duration // as long as the broker asked for
	failure error         // why again is not empty
}

// judge sorts the records of an attempt by what became of each, or of all. A
// failure of all judges no event: it is always tried again. An event older than
// maxAge that fails is set aside, unless maxAge is 0.
func (o *outlet) judge(records []held, each sinks.BatchError, all error, maxAge time.Duration) (v verdicts) {
	now := o.env.Now()
	if o.past != nil {
		o.runs = o.runs[:0]
		defer func() { o.past.took(o.runs) }()
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
			v.taken++
			if o.took != nil {
				o.took.Observe(max(0, now.Sub(r.Accepted).Seconds()))
			}
			if last := len(o.runs) - 1; going && o.runs[last].attempts == r.attempts {
				o.runs[last].to = r.Seq
			} else if o.past != nil {
				o.runs, going = append(o.runs, run{r.Seq, r.Seq, now, r.attempts}), true
			}
			continue
		}
		going = false
		if !refused && maxAge > 0 && now.Sub(r.Accepted) >= maxAge {
			reason, refused = sinks.ReasonExpired, true
		}
		if !refused {
			v.again = append(v.again, r)
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
