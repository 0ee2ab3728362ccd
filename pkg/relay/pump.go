package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// Pump delivers events from the journal to one sink.
//
// Order: the pump sends one batch at a time, and retries the failed events of a batch before
// it sends later events. A dead letter does not delay later events.
//
// The cursor moves after the broker has acknowledged or permanently refused every event up
// to its new position. A crash repeats events with the same CloudEvents id, and never skips
// an event.
//
// An attempt without any acknowledged event opens the circuit breaker: the pump probes the
// sink with one event at a time. After the first acknowledgement the batch size grows
// again; see window.
type Pump struct {
	name     string
	settings sinks.Settings
	filter   *sinkFilter
	cursor   journal.Cursor
	moved    func()                    // called after a commit
	last     func() journal.Seq        // returns the newest sequence of the journal
	owned    time.Time                 // since when this process owns the cursor; zero is always
	spec     *atomic.Pointer[sinkSpec] // current configuration; replays share the pointer
	handle   sinkHandle
	log      *zap.Logger
	metrics  *sinkMetrics
	kind     string // type of the sink
	traces   *telemetry.Traces
	history  *deliveryHistory

	configured sinks.Configured // current configuration; guarded by Relay.setSinksMu

	stop  context.CancelFunc // guarded by Relay.mu; nil before the pump runs
	ended chan struct{}      // closed when the pump has ended

	failing atomic.Bool // the last attempt failed and the failure is logged
	// failingSince is the time of the first failed attempt; valid while failing is set.
	failingSince     atomic.Pointer[time.Time]
	reason           failureReason // last logged error
	breakerOpen      atomic.Bool
	window           window
	discarded        discardRun // not logged yet
	committedInBatch uint64     // committed records of the current batch
	background       background
}

// discardRun is a run of consecutive events that the discard policy discarded.
type discardRun struct {
	reason   string
	count    int
	from, to journal.Seq
	since    time.Time
}

// Run delivers until ctx or hard is done, and then returns nil. A batch in flight may
// complete until hard is done, so that its acknowledgement is not lost. Run retries after
// errors of the broker, and after a failed read of the journal, because other sinks may be
// able to go on. Run returns an error if a commit fails.
func (p *Pump) Run(ctx, hard context.Context) (err error) {
	defer p.handle.close()
	defer p.logDiscarded()
	defer func() {
		// The next owner must not repeat acknowledged events.
		if last := p.finish(hard); last != nil && hard.Err() == nil && !errors.Is(last, journal.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("sink %s: %w", p.name, last))
		}
	}()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = time.Second, time.Minute
	for {
		if err := p.waitPrefetch(); err != nil {
			return fmt.Errorf("sink %s: %w", p.name, err)
		}
		records, err, commitErr := p.next(ctx, hard)
		switch {
		case commitErr != nil && ctx.Err() == nil:
			return fmt.Errorf("sink %s: %w", p.name, commitErr)
		case ctx.Err() != nil || errors.Is(err, journal.ErrClosed):
			return nil
		case err != nil:
			p.metrics.unreadable.Inc()
			p.log.Error("reading the journal for the sink failed, retrying; the sink gets no events meanwhile", zap.Error(err))
			if sleep.For(ctx, wait.NextBackOff()) != nil {
				return nil
			}
			continue
		}
		wait.Reset()
		p.recordOwnership(records)
		p.metrics.setOldest(records[0].Accepted)
		p.startPrefetch(ctx, hard, len(records))
		err = p.deliverWhileOwner(ctx, hard, records)
		switch {
		case ctx.Err() != nil || hard.Err() != nil:
			return nil
		case errors.Is(err, journal.ErrOwnershipLost):
			p.log.Info("another relay delivers to the sink now")
			p.metrics.clearOldest()
		case err != nil:
			return fmt.Errorf("sink %s: %w", p.name, err)
		}
	}
}

// recordOwnership updates handle.unsent after this process became the owner: the previous
// owner may have sent every event that was stored by then.
func (p *Pump) recordOwnership(records []journal.Record) {
	if since := p.cursor.Owner().Since; !since.Equal(p.owned) {
		p.owned = since
		p.handle.unsent = max(p.last(), records[len(records)-1].Seq) + 1
	}
}

// deliverWhileOwner delivers records while this process owns the cursor. Its error wraps
// journal.ErrOwnershipLost if another process becomes the owner.
func (p *Pump) deliverWhileOwner(ctx, hard context.Context, records []journal.Record) error {
	moved := p.cursor.OwnershipLost()
	if moved == nil {
		return p.deliverBatch(ctx, hard, records)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hard, cut := context.WithCancelCause(hard)
	defer cut(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-moved:
			cut(journal.ErrOwnershipLost)
			cancel()
		case <-hard.Done():
		}
	}()
	err := p.deliverBatch(ctx, hard, records)
	cut(nil)
	<-watched
	if errors.Is(context.Cause(hard), journal.ErrOwnershipLost) {
		return journal.ErrOwnershipLost
	}
	return err
}

// deliverBatch delivers the records that the filter matches, retries until each record is
// acknowledged, permanently refused or discarded, and commits. DeliverBatch returns early
// if ctx is done or the journal fails.
func (p *Pump) deliverBatch(ctx, hard context.Context, records []journal.Record) error {
	wait := backoff.NewExponentialBackOff() // with jitter
	wait.InitialInterval, wait.MaxInterval = p.settings.Retry.Initial, p.settings.Retry.Max
	pending := p.wanted(records)
	p.committedInBatch = 0
	through := records[len(records)-1].Seq
	var undelivered journal.Undelivered
	for {
		if p.history.pause.Load() != nil { // commit before a wait that may be long
			if err := p.finish(hard); err != nil {
				return err
			}
		}
		if err := p.history.waitResumed(ctx); err != nil {
			return err
		}
		var ranges []journal.Disposition
		pending, ranges = p.discard(pending)
		undelivered.Discarded = append(undelivered.Discarded, ranges...)

		var result attemptResult
		if len(pending) > 0 {
			result, pending = p.attempt(hard, pending)
			undelivered.Dead = append(undelivered.Dead, result.dead...)
			p.reportResult(result, len(pending))
		}
		done := through
		if len(pending) > 0 {
			done = pending[0].Seq - 1
		}
		if done > p.cursor.Committed() {
			// Dead letters beyond done are stored by a later commit.
			now, later := divide(undelivered, done)
			if err := p.waitPrefetch(); err != nil {
				return err
			}
			if len(pending) == 0 && len(now.Dead) == 0 && len(now.Discarded) == 0 && p.mayPrefetch() {
				p.markProcessed(done)
				p.metrics.clearOldest()
				return nil
			}
			if err := p.cursor.Commit(hard, journal.Progress{Done: journal.UpTo(done).Done, Undelivered: now}); err != nil {
				return err
			}
			p.background.uncommitted = 0 // before done
			for p.committedInBatch < uint64(len(records)) && records[p.committedInBatch].Seq <= done {
				p.committedInBatch++
			}
			p.metrics.countDeadLetters(now.Dead)
			p.moved()
			undelivered = later
		}
		if len(pending) == 0 {
			p.metrics.clearOldest()
			return nil
		}
		p.metrics.setOldest(pending[0].Accepted)
		if result.delivered > 0 {
			wait.Reset() // a slow or unstable broker still makes progress
		}
		if result.failure == nil {
			continue // deliver the rest of the batch
		}
		p.metrics.retries.Inc()
		if err := sleep.For(ctx, max(wait.NextBackOff(), result.wait)); err != nil {
			return err
		}
	}
}

// attempt delivers up to window.size pending records once, and returns the result and the
// records that are still pending.
func (p *Pump) attempt(ctx context.Context, pending []pendingRecord) (attemptResult, []pendingRecord) {
	n := min(len(pending), p.window.size)
	current := p.handle.env.Now()
	for i := range pending[:n] {
		if pending[i].attempts++; pending[i].attempts == 1 {
			pending[i].first = current
		}
	}
	each, err := p.traced(ctx, &p.handle, pending[:n])
	p.metrics.attempts.Observe(max(0, p.handle.env.Now().Sub(current).Seconds()))
	v := p.handle.judge(pending[:n], each, err, p.settings.Retry.DeadLetterAfter)
	p.metrics.delivered.Add(float64(v.delivered))
	switch len(v.retry) {
	case n:
		p.window.failed(n)
	case 0:
		p.window.succeeded(n)
	}
	p.breaker(len(v.retry) == n)
	return v, slices.Concat(v.retry, pending[n:])
}

// traced makes an attempt through the handle of the pump or of a replay, with a span for
// each sampled record.
func (p *Pump) traced(ctx context.Context, out *sinkHandle, records []pendingRecord) (sinks.BatchError, error) {
	if p.traces == nil {
		return out.attempt(ctx, records)
	}
	ends := make([]telemetry.Delivered, len(records))
	for i, r := range records {
		ends[i] = p.traces.Deliver(ctx, r.Event, telemetry.Attempt{
			Sink: p.name, Kind: p.kind, Number: r.attempts, Batch: len(records), Replay: out.replay,
		})
	}
	each, err := out.attempt(ctx, records)
	for i, end := range ends {
		if end == nil {
			continue
		}
		to, became := out.destination(records[i].Event), err
		if each != nil {
			became = each[i]
		}
		end(to.Name, to.Template, became)
	}
	return each, err
}

// breaker opens or closes the circuit breaker.
func (p *Pump) breaker(open bool) {
	if p.breakerOpen.Swap(open) != open {
		p.metrics.breaker(open)
	}
}

// discard applies the discard policy: it removes records that are too old, or too far
// behind the end of the journal.
func (p *Pump) discard(pending []pendingRecord) (rest []pendingRecord, ranges []journal.Disposition) {
	age, maxPending := p.settings.Discard.After, p.settings.Discard.Beyond
	if age == 0 && maxPending == 0 || len(pending) == 0 {
		return pending, nil
	}
	now, lag := p.handle.env.Now(), uint64(0)
	if maxPending > 0 {
		lag = p.cursor.Lag() + p.committedInBatch
	}
	n := 0 // age and lag increase toward the oldest record, so that the first records are discarded
	for ; n < len(pending); n++ {
		r, reason := pending[n], ""
		switch {
		case age > 0 && now.Sub(r.Accepted) >= age:
			reason = journal.DiscardedAfter
		case maxPending > 0 && lag > uint64(r.batchIndex)+uint64(maxPending):
			reason = journal.DiscardedBeyond
		}
		if reason == "" {
			break
		}
		if k := len(ranges) - 1; k >= 0 && ranges[k].Reason == reason && pending[n-1].matchIndex+1 == r.matchIndex {
			ranges[k].To = r.Seq
		} else {
			ranges = append(ranges, journal.Disposition{From: r.Seq, To: r.Seq, Reason: reason, At: now})
		}
		p.metrics.countDiscarded(reason)
		if p.discarded.reason != reason {
			p.logDiscarded()
			p.discarded = discardRun{reason: reason, from: r.Seq, since: now}
		}
		p.discarded.count++
		p.discarded.to = r.Seq
	}
	if n == 0 || now.Sub(p.discarded.since) > 10*time.Second {
		p.logDiscarded()
	}
	return pending[n:], ranges
}

// logDiscarded logs a run of discarded events.
func (p *Pump) logDiscarded() {
	if p.discarded.count > 0 {
		p.log.Error("events discarded by the discard policy, not delivered", zap.String("reason", p.discarded.reason), zap.Int("events", p.discarded.count),
			zap.Uint64("from", uint64(p.discarded.from)), zap.Uint64("to", uint64(p.discarded.to)))
	}
	p.discarded = discardRun{}
}

// divide splits dead letters and dispositions at a sequence; now includes the sequence.
func divide(u journal.Undelivered, at journal.Seq) (now, later journal.Undelivered) {
	slices.SortFunc(u.Dead, func(a, b journal.DeadLetter) int { return cmp.Compare(a.Seq, b.Seq) })
	n, _ := slices.BinarySearchFunc(u.Dead, at+1, func(d journal.DeadLetter, s journal.Seq) int { return cmp.Compare(d.Seq, s) })
	// Discarded events are always the first pending ones, at or before the sequence.
	return journal.Undelivered{Dead: u.Dead[:n], Discarded: u.Discarded}, journal.Undelivered{Dead: u.Dead[n:]}
}

// wanted returns the records that the filter matches.
func (p *Pump) wanted(records []journal.Record) []pendingRecord {
	wanted := make([]pendingRecord, 0, len(records))
	for i, r := range records {
		switch r.TargetSink {
		case "":
			if !p.filter.selects(r.Event) {
				continue
			}
		case p.name: // the filter has matched the original of a redelivered dead letter
		default:
			continue
		}
		wanted = append(wanted, pendingRecord{Record: r, batchIndex: i, matchIndex: len(wanted)})
	}
	return wanted
}

// reportResult logs that a sink begins to fail, fails with another error, or recovers.
func (p *Pump) reportResult(v attemptResult, waiting int) {
	now := p.handle.env.Now().UTC()
	if v.failure != nil {
		p.history.recordError(v.failure, now)
	}
	switch {
	case v.failure != nil && p.failing.Load() && p.reason.changed(v.failure, now):
		p.log.Warn("sink delivery fails with another error", zap.Error(v.failure))
	case v.failure != nil && !p.failing.Load():
		p.log.Warn("sink delivery failing, retrying; the events wait in the journal",
			zap.Bool("breaker_open", p.breakerOpen.Load()), zap.Error(v.failure))
		p.reason = failureReason{v.failure.Error(), now}
		p.failingSince.Store(&now)
	case v.failure != nil:
		p.log.Debug("sink delivery failed again", zap.Int("pending", waiting), zap.Error(v.failure))
	case p.failing.Load():
		p.log.Info("sink delivery recovered")
	}
	p.failing.Store(v.failure != nil)
	p.metrics.up(v.failure == nil)
}
