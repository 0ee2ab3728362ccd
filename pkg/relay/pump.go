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

// Pump carries events from the journal to one sink, at that sink's own pace.
//
// Order: batches go one after another, and what of a batch could not be
// delivered is tried again before anything behind it. A retry holds the line;
// an event that is set aside does not.
//
// The cursor moves only after the broker has acknowledged, or refused for
// good, every event before it. A crash between the two repeats events with the
// same CloudEvents id; it never skips one.
//
// An attempt of which nothing arrives opens the breaker: from then on the sink
// is probed with one event at a time, until one arrives. Then it is handed more
// at once each time, as window says.
type Pump struct {
	name     string
	settings sinks.Settings
	filter   *sinkFilter
	cursor   journal.Cursor
	moved    func()                    // called when the cursor has moved
	last     func() journal.Seq        // of the journal
	owned    time.Time                 // since when this process is given the records; zero is always
	spec     *atomic.Pointer[sinkSpec] // to the sink, as it is configured now
	handle   sinkHandle
	log      *zap.Logger
	metrics  *sinkMetrics
	kind     string // of the sink
	traces   *telemetry.Traces
	history  *deliveryHistory

	configured sinks.Configured // as it is now; guarded by the relay's exchanging

	stop  context.CancelFunc // guarded by the relay's mu; nil until it runs
	ended chan struct{}      // closed when it does not run any more

	failing atomic.Bool // the last attempt failed, and the log says so
	// failingSince is when attempts began to fail; it means nothing unless failing.
	failingSince     atomic.Pointer[time.Time]
	reason           failureReason // that the log has told last
	breakerOpen      atomic.Bool   // the breaker
	window           window
	discarded        discardRun // not logged yet
	committedInBatch uint64     // of the batch in hand: records that the cursor has passed
	background       background
}

// discardRun is a run of consecutive events that the discard policy discarded.
type discardRun struct {
	reason   string
	count    int
	from, to journal.Seq
	since    time.Time
}

// Run carries until ctx is done, or hard is, and then returns nil. What is with the broker
// at that moment may take until hard is done, so that its acknowledgement is
// not lost. A broker's trouble is Run's own to wait out, and so is a journal
// that cannot be read at this sink's place: other sinks may stand elsewhere, and
// what comes in is stored all the same. Run returns an error when the cursor
// cannot be moved.
func (p *Pump) Run(ctx, hard context.Context) (err error) {
	defer p.handle.close()
	defer p.logDiscarded()
	defer func() {
		// What the broker has taken must not be sent again by the next one.
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
		records, err, unsettled := p.next(ctx, hard)
		switch {
		case unsettled != nil && ctx.Err() == nil:
			return fmt.Errorf("sink %s: %w", p.name, unsettled)
		case ctx.Err() != nil || errors.Is(err, journal.ErrClosed):
			return nil
		case err != nil:
			p.metrics.unreadable.Inc()
			p.log.Error("the journal cannot be read where this sink stands; it gets nothing until that is repaired", zap.Error(err))
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
			p.log.Info("another process delivers to this sink now")
			p.metrics.clearOldest()
		case err != nil:
			return fmt.Errorf("sink %s: %w", p.name, err)
		}
	}
}

// recordOwnership notes which events another process may have sent before this one was
// given the cursor: all that were stored by then.
func (p *Pump) recordOwnership(records []journal.Record) {
	if since := p.cursor.Owner().Since; !since.Equal(p.owned) {
		p.owned = since
		p.handle.unsent = max(p.last(), records[len(records)-1].Seq) + 1
	}
}

// deliverWhileOwner carries as long as the records are this process's business: its
// error wraps journal.ErrMoved when they are another one's.
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

// deliverBatch delivers what the filter takes of the records, tries until each is
// acknowledged, refused for good, or given up, and moves the cursor behind what
// is done. It ends early only when ctx is done or the journal fails.
func (p *Pump) deliverBatch(ctx, hard context.Context, records []journal.Record) error {
	wait := backoff.NewExponentialBackOff() // with jitter
	wait.InitialInterval, wait.MaxInterval = p.settings.Retry.Initial, p.settings.Retry.Max
	pending := p.wanted(records)
	p.committedInBatch = 0
	through := records[len(records)-1].Seq
	var undelivered journal.Undelivered
	for {
		if p.history.pause.Load() != nil { // it may be long
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
			// What stands behind the line is kept when the line gets there.
			now, later := divide(undelivered, done)
			if err := p.waitPrefetch(); err != nil {
				return err
			}
			if len(pending) == 0 && len(now.Dead) == 0 && len(now.Discarded) == 0 && p.mayPrefetch() {
				p.markProcessed(done)
				p.metrics.clearOldest()
				return nil
			}
			if err := p.cursor.Commit(hard, done, now); err != nil {
				return err
			}
			p.background.uncommitted = 0 // it is behind done
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
			wait.Reset() // a broker that is slow, or loses connections, gets on all the same
		}
		if result.failure == nil {
			continue // the rest of the batch is due
		}
		p.metrics.retries.Inc()
		if err := sleep.For(ctx, max(wait.NextBackOff(), result.wait)); err != nil {
			return err
		}
	}
}

// attempt hands the sink what is pending, or as much of it as the window lets
// pass, and returns what came of it and what is still pending.
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

// traced is an attempt of an outlet, the pump's own or that of a replay, with a
// span for each record whose trace is sent.
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

// breaker opens or closes the breaker.
func (p *Pump) breaker(open bool) {
	if p.breakerOpen.Swap(open) != open {
		p.metrics.breaker(open)
	}
}

// discard takes away what is too old, or too far behind, by the operator's will.
func (p *Pump) discard(pending []pendingRecord) (rest []pendingRecord, ranges []journal.Disposition) {
	age, maxPending := p.settings.Discard.After, p.settings.Discard.Beyond
	if age == 0 && maxPending == 0 || len(pending) == 0 {
		return pending, nil
	}
	now, lag := p.handle.env.Now(), uint64(0)
	if maxPending > 0 {
		lag = p.cursor.Lag() + p.committedInBatch
	}
	n := 0 // both grow with Seq, so that it is always the first that are given up
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
		p.log.Error("events discarded, the sink does not get them", zap.String("reason", p.discarded.reason), zap.Int("events", p.discarded.count),
			zap.Uint64("from", uint64(p.discarded.from)), zap.Uint64("to", uint64(p.discarded.to)))
	}
	p.discarded = discardRun{}
}

// divide parts what was not delivered at a place, which belongs to now.
func divide(u journal.Undelivered, at journal.Seq) (now, later journal.Undelivered) {
	slices.SortFunc(u.Dead, func(a, b journal.DeadLetter) int { return cmp.Compare(a.Seq, b.Seq) })
	n, _ := slices.BinarySearchFunc(u.Dead, at+1, func(d journal.DeadLetter, s journal.Seq) int { return cmp.Compare(d.Seq, s) })
	// Given up is always the first of what is pending, so it is at the line.
	return journal.Undelivered{Dead: u.Dead[:n], Discarded: u.Discarded}, journal.Undelivered{Dead: u.Dead[n:]}
}

// wanted returns the records that the sink is to get.
func (p *Pump) wanted(records []journal.Record) []pendingRecord {
	wanted := make([]pendingRecord, 0, len(records))
	for i, r := range records {
		switch r.TargetSink {
		case "":
			if !p.filter.selects(r.Event) {
				continue
			}
		case p.name: // a retried dead letter has passed the filter before
		default:
			continue
		}
		wanted = append(wanted, pendingRecord{Record: r, batchIndex: i, matchIndex: len(wanted)})
	}
	return wanted
}

// reportResult says that a sink fails, for which reason whenever that is another one,
// and that it works again.
func (p *Pump) reportResult(v attemptResult, waiting int) {
	now := p.handle.env.Now().UTC()
	if v.failure != nil {
		p.history.recordError(v.failure, now)
	}
	switch {
	case v.failure != nil && p.failing.Load() && p.reason.changed(v.failure, now):
		p.log.Warn("the sink fails for another reason now", zap.Error(v.failure))
	case v.failure != nil && !p.failing.Load():
		p.log.Warn("the sink does not take events; they wait in the journal and are tried again, one at a time where none is taken",
			zap.Bool("breaker_open", p.breakerOpen.Load()), zap.Error(v.failure))
		p.reason = failureReason{v.failure.Error(), now}
		p.failingSince.Store(&now)
	case v.failure != nil:
		p.log.Debug("another attempt failed", zap.Int("in_hand", waiting), zap.Error(v.failure))
	case p.failing.Load():
		p.log.Info("the sink takes events again")
	}
	p.failing.Store(v.failure != nil)
	p.metrics.up(v.failure == nil)
}
