package relay

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// health is whether a sink works.
//
// | state | open | failures | next state |
// |---|---|---|---|
// | works | false | fewer than breakerKeys | open: the sink fails, or breakerKeys keys in a row |
// | circuit breaker open | true | any | works: an event is acknowledged or refused |
//
// The goroutine of Pump.Run changes a health.
type health struct {
	whole     bool // the last failure was one of the whole sink
	waits     int  // consecutive failures of the sink
	successes uint64
	failures  map[keyHash]bool // keys that failed since the last acknowledgement
	attempts  int              // failed attempts since the last acknowledgement
	reason    failureReason    // last logged error
	keyLogged time.Time        // last log line about failing keys

	// For the status, which other goroutines read.
	open    atomic.Bool // the circuit breaker is open
	failing atomic.Bool
	since   atomic.Pointer[time.Time] // first failed attempt; valid while failing is set
}

// breakerKeys is the number of keys that fail, without any acknowledgement in between, at
// which the circuit breaker opens.
const breakerKeys = 3

// probeInterval is the longest wait between two attempts to reach a sink, or a destination,
// that does not answer.
const probeInterval = time.Second

// landed records the results of a delivery: one error for all events, or one per event.
func (r *pumpRun) landed(items []*item, each sinks.BatchError, all error) {
	now := r.handle.env.Now()
	result := attemptResult{at: now}
	if all != nil {
		r.window.failed(len(items))
		for _, i := range items {
			i.err, i.inDoubt = all, i.inDoubt || sinks.IsInDoubt(all)
		}
		r.schedule.back(items)
		result.failed, result.failure = len(items), all
		r.finishAttempt(result)
		r.sinkFailed(all)
		return
	}
	r.health.whole = false
	var throttle time.Duration
	alive := false     // some event was acknowledged or refused by itself
	failedNew := false // some event failed that was first tried after the last acknowledgement
	for n, i := range items {
		var err error
		if each != nil {
			err = each[n]
		}
		i.inDoubt = sinks.IsInDoubt(err)
		if err == nil {
			alive = true
			r.schedule.works(i)
			r.schedule.done(i, false)
			r.progress.done(i.from, i.Seq)
			result.delivered = append(result.delivered, i)
			continue
		}
		i.err = err
		if reason, dead := r.verdict(i, err, now); dead {
			alive = true
			r.deadLetter(i, reason, err, &result)
			r.schedule.done(i, true)
			continue
		}
		result.failed++
		if result.failure == nil {
			result.failure = err
		}
		throttle = max(throttle, sinks.Wait(err))
		switch k := i.key; {
		case k.state != keyFlying: // behind an event that failed
			r.schedule.back([]*item{i})
		case sinks.IsAtDestination(err):
			r.schedule.blockDestination(i, time.Now(), func(n int) time.Duration { return min(r.backoff(n), r.probeInterval()) }, err)
		default:
			i.refused++
			r.schedule.works(i)
			r.schedule.wait(i, time.Now().Add(max(r.backoff(i.refused), sinks.Wait(err))))
		}
		if i.progress == r.health.successes && !i.resent { // other failures are of this event
			r.health.fails(i.key.hash)
			failedNew = true
		}
	}
	switch {
	case result.failed == len(items) && len(items) > 1 && failedNew: // maybe the batch is too large
		r.window.failed(len(items))
	case result.failed == 0:
		r.window.succeeded(len(items))
	}
	if throttle > 0 {
		r.throttledUntil = time.Now().Add(throttle)
		r.sendAt = r.throttledUntil
	}
	if alive {
		r.works(len(result.delivered) > 0)
	}
	if failedNew && len(result.delivered) == 0 {
		r.health.attempts++
	}
	r.finishAttempt(result)
	if len(r.health.failures) >= breakerKeys || r.health.open.Load() && result.failed > 0 && !alive {
		r.openBreaker(min(r.backoff(r.health.waits+1), probeInterval))
	}
	r.report(result)
}

// verdict returns the reason for which an event that failed becomes a dead letter.
func (r *pumpRun) verdict(i *item, err error, now time.Time) (sinks.Reason, bool) {
	if i.inDoubt {
		return "", false
	}
	if reason, refused := sinks.IsPermanent(err); refused {
		return reason, true
	}
	if r.expired(i, now) {
		return sinks.ReasonExpired, true
	}
	if most := r.settings.Retry.MaxAttempts; most > 0 && !sinks.IsAtDestination(err) && i.refused+1 >= most {
		return sinks.ReasonMaxAttempts, true
	}
	return "", false
}

// expired reports whether an event that fails is too old to be retried.
func (r *pumpRun) expired(i *item, now time.Time) bool {
	after := r.settings.Retry.DeadLetterAfter
	return after > 0 && !i.inDoubt && now.Sub(i.Accepted) >= after
}

// deadLetter makes a dead letter, and a copy for the sink in dead_letters. A copy that is
// refused makes no further dead letter: the dead letter that was copied is in the journal.
func (r *pumpRun) deadLetter(i *item, reason sinks.Reason, err error, result *attemptResult) {
	letter := journal.DeadLetter{
		Seq: i.Seq, Reason: string(reason), Err: err.Error(), Attempts: i.attempts, First: i.first, Last: result.at,
		CopyTo: r.settings.DeadLetters.Sink,
	}
	if letter.First.IsZero() {
		letter.First = result.at
	}
	result.dead = append(result.dead, letter)
	log := r.log
	if id := telemetry.TraceID(i.Event); id != "" {
		log = log.With(zap.String("trace_id", id))
	}
	if i.DeadLetterOf != "" {
		r.progress.discarded(i, journal.CopyRefused, result.at)
		r.metrics.countRefusedCopy(string(reason))
		if r.history != nil {
			r.history.recordError(fmt.Errorf("the dead letter of sink %s was refused: %w", i.DeadLetterOf, err), result.at)
		}
		log.Error("dead letter of another sink refused; the dead letter stays in the dead-letter queue", zap.String("dead_letter_of", i.DeadLetterOf),
			zap.Uint64("origin_seq", uint64(i.OriginSeq)), zap.Uint64("seq", uint64(i.Seq)), zap.String("event_id", i.Event.CloudEvent.ID()),
			zap.String("reason", string(reason)), zap.Int("attempts", i.attempts), zap.Error(err))
		return
	}
	r.progress.dead(i, letter)
	log.Error("event dead-lettered", zap.Uint64("seq", uint64(i.Seq)), zap.String("event_id", i.Event.CloudEvent.ID()),
		zap.String("reason", string(reason)), zap.Int("attempts", i.attempts), zap.Error(err))
}

// finishAttempt counts an attempt.
func (r *pumpRun) finishAttempt(result attemptResult) {
	if result.failure != nil {
		r.metrics.retries.Inc()
	}
	r.traffic.attempted(result)
}

// backoff returns the wait after the n-th failure, with jitter. A key keeps the number of its
// failures only, not a back-off with a state.
func (r *pumpRun) backoff(n int) time.Duration {
	wait := float64(r.settings.Retry.Initial)
	for range min(n-1, 100) {
		if wait *= 1.5; wait >= float64(r.settings.Retry.Max) {
			wait = float64(r.settings.Retry.Max)
			break
		}
	}
	return time.Duration(wait * (0.5 + rand.Float64())) //nolint:gosec // jitter
}

// probeInterval returns the longest wait before a blocked destination is probed.
func (r *pumpRun) probeInterval() time.Duration {
	return max(probeInterval, time.Duration(len(r.schedule.destinations))*10*time.Millisecond)
}

// fails records that a key failed.
func (h *health) fails(k keyHash) {
	if h.failures == nil {
		h.failures = map[keyHash]bool{}
	}
	h.failures[k] = true
}

// sinkFailed records a failure of the whole sink. The sink stays open: it connects again by
// itself, and knows more of its brokers than the configuration.
func (r *pumpRun) sinkFailed(err error) {
	r.health.whole = true
	r.openBreaker(max(min(r.backoff(r.health.waits+1), probeInterval), sinks.Wait(err)))
	r.openAt = r.sendAt
	r.report(attemptResult{at: r.handle.env.Now(), failure: err, failed: 1})
	r.deadLetterExpired(err)
}

// openBreaker opens the circuit breaker, and lets the next probe wait.
func (r *pumpRun) openBreaker(wait time.Duration) {
	r.health.waits++
	if due := time.Now().Add(wait); due.After(r.sendAt) {
		r.sendAt = due
	}
	if !r.health.open.Swap(true) {
		r.metrics.breaker(true)
	}
}

// works records that the broker has acknowledged or refused an event.
func (r *pumpRun) works(acknowledged bool) {
	if acknowledged {
		r.health.successes++
		r.health.attempts = 0
		clear(r.health.failures)
	}
	r.health.waits = 0
	if !r.health.open.Swap(false) {
		return
	}
	r.metrics.breaker(false)
	clear(r.health.failures)
	r.schedule.endWaits()
	r.schedule.sortReady() // the probes took turns
}

// deadLetterExpired turns the events in hand that are too old into dead letters, while the
// sink fails.
func (r *pumpRun) deadLetterExpired(err error) {
	if r.settings.Retry.DeadLetterAfter == 0 {
		return
	}
	result := attemptResult{at: r.handle.env.Now()}
	for _, i := range r.schedule.discard(func(i *item) bool { return r.expired(i, result.at) }) {
		r.deadLetter(i, sinks.ReasonExpired, err, &result)
	}
	if len(result.dead) > 0 {
		r.traffic.attempted(result)
	}
}

// discardRun is a run of consecutive events that the discard policy discarded.
type discardRun struct {
	reason   string
	count    int
	from, to journal.Seq
	since    time.Time
}

// discard applies the discard policy: it removes events that are too old, or that have too
// many open events behind them.
func (r *pumpRun) discard(at func(time.Time)) {
	age, beyond := r.settings.Discard.After, r.settings.Discard.Beyond
	if age == 0 && beyond == 0 || r.schedule.inHand == 0 {
		return
	}
	if t := time.Now(); r.discardAt.After(t) {
		at(r.discardAt)
		return
	}
	r.discardAt = time.Now().Add(discardInterval)
	at(r.discardAt)
	now, open, before := r.handle.env.Now(), uint64(0), uint64(0)
	var deferred func(journal.Seq) uint64
	if beyond > 0 {
		open, before, deferred = r.progress.lag(), uint64(r.inDelivery), r.schedule.deferredBefore()
	}
	reasons := map[*item]string{}
	discarded := r.schedule.discard(func(i *item) bool {
		reason := ""
		switch {
		case i.inDoubt:
		case age > 0 && now.Sub(i.Accepted) >= age:
			reason = journal.DiscardedAfter
		case beyond > 0 && open > before+deferred(i.Seq)+uint64(beyond):
			reason = journal.DiscardedBeyond
		}
		before++
		reasons[i] = reason
		return reason != ""
	})
	for _, i := range discarded {
		reason := reasons[i]
		r.progress.discarded(i, reason, now)
		r.metrics.countDiscarded(reason)
		if r.discarded.reason != reason {
			r.logDiscarded()
			r.discarded = discardRun{reason: reason, from: i.Seq, since: now}
		}
		r.discarded.count++
		r.discarded.to = i.Seq
	}
	if r.discarded.count > 0 && (len(discarded) == 0 || now.Sub(r.discarded.since) > 10*time.Second) {
		r.logDiscarded()
	}
}

// logDiscarded logs a run of discarded events.
func (r *pumpRun) logDiscarded() {
	if r.discarded.count > 0 {
		r.log.Error("events discarded by the discard policy, not delivered", zap.String("reason", r.discarded.reason), zap.Int("events", r.discarded.count),
			zap.Uint64("from", uint64(r.discarded.from)), zap.Uint64("to", uint64(r.discarded.to)))
	}
	r.discarded = discardRun{}
}

// report logs that a sink begins to fail, fails with another error, or recovers, and that
// single keys fail.
func (r *pumpRun) report(result attemptResult) {
	h, now := &r.health, r.handle.env.Now().UTC()
	if result.failure != nil && r.history != nil {
		r.history.recordError(result.failure, now)
	}
	// A single failed attempt in a row says nothing about the sink.
	failing := h.open.Load() || h.attempts > 1
	switch before := h.failing.Swap(failing); {
	case result.failure != nil && failing && before && h.reason.changed(result.failure, now):
		r.log.Warn("sink delivery fails with another error", zap.Error(result.failure))
	case failing && !before:
		r.log.Warn("sink delivery failing, retrying; the events wait in the journal", zap.Bool("breaker_open", h.open.Load()), zap.Error(result.failure))
		h.reason = failureReason{result.failure.Error(), now}
		h.since.Store(&now)
	case failing:
		r.log.Debug("sink delivery failed again", zap.Int("pending", result.failed), zap.Error(result.failure))
	case before:
		r.log.Info("sink delivery recovered")
	case result.failure != nil && now.Sub(h.keyLogged) >= reasonInterval:
		h.keyLogged = now
		r.log.Warn("delivery of some events failing, retrying; the later events of their partition keys wait", zap.Int("blocked_keys", r.schedule.blocked), zap.Error(result.failure))
	}
	r.metrics.up(!failing)
}
