package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// Pump carries events from the journal to one sink, at that sink's own pace.
//
// Order: batches go one after another, and what of a batch could not be
// delivered is tried again before anything behind it. A retry holds the line;
// an event that is set aside does not.
//
// The cursor moves only after the broker has acknowledged, or refused for
// good, every event before it. A crash between the two repeats events with the
// same CloudEvents id; it never skips one.
type Pump struct {
	name     string
	settings sinks.Settings
	filter   Filter
	cursor   journal.Cursor
	open     sinks.Opener
	env      sinks.Env
	log      *zap.Logger
	metrics  *sinkMetrics

	sink    sinks.Sink // nil until it could be opened
	failing bool       // the last attempt failed, and the log says so
}

// Run carries until ctx is done, or hard is, and then returns nil. What is with the broker
// at that moment may take until hard is done, so that its acknowledgement is
// not lost. Run returns an error only when the journal fails; a broker's
// trouble is Run's own to wait out.
func (p *Pump) Run(ctx, hard context.Context) error {
	defer p.closeSink()
	for {
		records, err := p.cursor.Next(ctx, p.settings.Batch)
		if err == nil {
			p.metrics.holding(records[0].Accepted)
			err = p.carry(ctx, hard, records)
		}
		if ctx.Err() != nil || hard.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sink %s: %w", p.name, err)
		}
	}
}

// carry delivers what the filter takes of the records, tries until each is
// acknowledged, refused for good, or too old, and moves the cursor behind what
// is done. It ends early only when ctx is done or the journal fails.
func (p *Pump) carry(ctx, hard context.Context, records []journal.Record) error {
	wait := backoff.NewExponentialBackOff() // with jitter
	wait.InitialInterval, wait.MaxInterval = p.settings.Retry.Initial, p.settings.Retry.Max
	pending := p.wanted(records)
	through := records[len(records)-1].Seq
	var dead []journal.DeadLetter
	first := p.env.Now()
	for attempts := 1; ; attempts++ {
		var outcome verdicts
		if len(pending) > 0 {
			each, err := p.attempt(hard, pending)
			outcome = p.judge(pending, each, err, attempts, first)
		}
		pending, dead = outcome.again, append(dead, outcome.dead...)
		p.report(outcome)
		done := through
		if len(pending) > 0 {
			done = pending[0].Seq - 1
		}
		if done > p.cursor.Committed() {
			// A dead letter behind the line is kept when the line gets there.
			slices.SortFunc(dead, func(a, b journal.DeadLetter) int { return cmp.Compare(a.Seq, b.Seq) })
			n, _ := slices.BinarySearchFunc(dead, done+1, func(d journal.DeadLetter, s journal.Seq) int { return cmp.Compare(d.Seq, s) })
			if err := p.cursor.Commit(hard, done, dead[:n]...); err != nil {
				return err
			}
			p.metrics.buried(dead[:n])
			dead = dead[n:]
		}
		if len(pending) == 0 {
			p.metrics.idle()
			return nil
		}
		p.metrics.holding(pending[0].Accepted)
		p.metrics.retries.Inc()
		if err := sleep(ctx, max(wait.NextBackOff(), outcome.wait)); err != nil {
			return err
		}
	}
}

// wanted returns the records that pass the filter.
func (p *Pump) wanted(records []journal.Record) []journal.Record {
	wanted := make([]journal.Record, 0, len(records))
	for _, r := range records {
		ok, err := p.filter.Takes(r.Event)
		if err != nil {
			// CESQL: the value of an expression that cannot be evaluated,
			// such as over an attribute that this event lacks, stands.
			p.metrics.filterErrors.Inc()
		}
		if ok {
			wanted = append(wanted, r)
		}
	}
	p.metrics.filtered.Add(float64(len(records) - len(wanted)))
	return wanted
}

// verdicts are what one attempt came to.
type verdicts struct {
	again   []journal.Record // in order; to be tried again
	dead    []journal.DeadLetter
	wait    time.Duration // as long as the broker asked for
	failure error         // why again is not empty
}

// judge sorts the records of an attempt by what became of each, or of all. A
// failure of all judges no event: it is always tried again.
func (p *Pump) judge(records []journal.Record, each sinks.BatchError, all error, attempts int, first time.Time) (v verdicts) {
	now := p.env.Now()
	for i, r := range records {
		err := all
		var reason sinks.Reason
		var refused bool
		if each != nil {
			err = each[i]
			reason, refused = sinks.IsPermanent(err)
		}
		if err == nil {
			p.metrics.delivered.Inc()
			continue
		}
		if age := p.settings.Retry.MaxAge; !refused && age > 0 && now.Sub(r.Accepted) >= age {
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
			Seq: r.Seq, Reason: string(reason), Err: err.Error(), Attempts: attempts, First: first, Last: now,
		})
		p.log.Error("event set aside as a dead letter", zap.Uint64("seq", uint64(r.Seq)), zap.String("id", r.Event.CloudEvent.ID()),
			zap.String("reason", string(reason)), zap.Int("attempts", attempts), zap.Error(err))
	}
	return v
}

// attempt opens the sink if it is not open, hands it the records once, and
// returns what became of each, or of all.
func (p *Pump) attempt(ctx context.Context, records []journal.Record) (sinks.BatchError, error) {
	ctx, cancel := context.WithTimeout(ctx, p.settings.Timeout)
	defer cancel()
	if p.sink == nil {
		sink, err := p.open(ctx, p.env)
		if err != nil {
			return nil, fmt.Errorf("opening: %w", err)
		}
		p.sink = sink
	}
	batch := make([]event.Event, len(records))
	for i, r := range records {
		batch[i] = r.Event
	}
	err := p.sink.Deliver(ctx, batch)
	if each, ok := errors.AsType[sinks.BatchError](err); ok && len(each) == len(batch) {
		return each, nil
	}
	return nil, err
}

// report says once that a sink fails, and once that it works again.
func (p *Pump) report(v verdicts) {
	fields := []zap.Field{zap.Int("waiting", len(v.again)), zap.Error(v.failure)}
	switch {
	case v.failure != nil && !p.failing:
		p.log.Warn("the sink does not take events; they wait in the journal and are tried again", fields...)
	case v.failure != nil:
		p.log.Debug("another attempt failed", fields...)
	case p.failing:
		p.log.Info("the sink takes events again")
	}
	p.failing = v.failure != nil
	p.metrics.up(!p.failing)
}

func (p *Pump) closeSink() {
	if p.sink == nil {
		return
	}
	if err := p.sink.Close(); err != nil {
		p.log.Warn("closing the sink", zap.Error(err))
	}
	p.sink = nil
}

// sleep waits, or returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
