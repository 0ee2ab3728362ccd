package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// outlet is a sink that is opened when it is needed, and again where that
// failed.
type outlet struct {
	open    sinks.Opener
	env     sinks.Env
	timeout time.Duration

	sink sinks.Sink // nil until it could be opened
}

// attempt opens the sink if it is not open, hands it the records once, and
// returns what became of each, or of all. It has a deadline, whatever the sink
// does.
func (o *outlet) attempt(ctx context.Context, records []held) (sinks.BatchError, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if o.sink == nil {
		sink, err := o.open(ctx, o.env)
		if err != nil {
			return nil, fmt.Errorf("opening: %w", err)
		}
		o.sink = sink
	}
	batch := make([]event.Event, len(records))
	for i, r := range records {
		batch[i] = r.Event
	}
	err := o.sink.Deliver(ctx, batch)
	if each, ok := errors.AsType[sinks.BatchError](err); ok && len(each) == len(batch) {
		return each, nil
	}
	return nil, err
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
	place    int       // among the records of its batch that the sink is to get
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
			continue
		}
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
		o.env.Log.Error("the event was refused for good", zap.Uint64("seq", uint64(r.Seq)), zap.String("id", r.Event.CloudEvent.ID()),
			zap.String("reason", string(reason)), zap.Int("attempts", r.attempts), zap.Error(err))
	}
	return v
}
