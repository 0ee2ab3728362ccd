package relay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// Pump delivers the events of a cursor to one sink: live events, or the events of a replay.
// A pump reads events, schedules them by partition key, delivers batches, records the
// results, and commits the progress.
//
// Order: events of one partition key are delivered in order. A key whose event fails waits
// by itself, a destination that fails holds back its own keys, and a failure of the whole
// sink opens the circuit breaker: the pump then probes the sink with one event at a time.
//
// An event is done when the broker has acknowledged or permanently refused the event, or the
// filter or the discard policy has left the event out. Progress is committed at most
// commitInterval later. A crash repeats what was in flight or done since the last commit,
// with the same CloudEvents id, and never skips an event.
//
// One goroutine, that of Run, owns the fields of pumpRun. Reads, deliveries and commits run
// beside it, and return their results to it.
type Pump struct {
	name     string
	settings sinks.Settings
	traffic  traffic
	cursor   journal.Cursor
	log      *zap.Logger
	read     func(ctx context.Context, from journal.Seq, limit int) ([]journal.Record, error)
	last     func() journal.Seq // returns the newest sequence of the journal
	oldest   func() journal.Seq // returns the oldest sequence of the journal
	owned    time.Time          // since when this process owns the cursor; zero is always
	handle   sinkHandle
	limiter  *rate.Limiter // nil is no limit
	metrics  *sinkMetrics
	kind     string // type of the sink
	traces   *telemetry.Traces
	pause    *deliveryHistory // pauses of the sink
	health   health
	shown    shown
	asks     chan func(*pumpRun) // questions to the goroutine of Run
	owner    atomic.Bool         // the goroutine of Run answers questions

	// Only for live events.
	filter     *sinkFilter
	history    *deliveryHistory
	spec       *atomic.Pointer[sinkSpec] // current configuration; replays share the pointer
	configured sinks.Configured          // current configuration; guarded by Relay.setSinksMu

	stop  context.CancelFunc // guarded by Relay.mu; nil before the pump runs
	ended chan struct{}      // closed when the pump has ended
}

// traffic is what a pump delivers: live events, or the events of a replay. The goroutine of
// Pump.Run calls the methods.
type traffic interface {
	// selects reports whether the sink gets an event.
	selects(r journal.Record) bool
	// end returns the sequence after which there are no events; 0 is no end.
	end() journal.Seq
	// attempted records the result of an attempt. The dead letters are not stored yet.
	attempted(result attemptResult)
	// undelivered returns the dead letters and dispositions that the journal is to store.
	undelivered(u journal.Undelivered) journal.Undelivered
	// began is called when this process has become the owner of the cursor. If it returns
	// false, the pump ends.
	began(ctx context.Context) (bool, error)
	// lost is called when another process has become the owner of the cursor.
	lost()
	// committed is called after a commit, beside deliveries.
	committed(ctx context.Context, u journal.Undelivered) error
}

// attemptResult is the result of one attempt.
type attemptResult struct {
	at        time.Time
	delivered []*item
	dead      []journal.DeadLetter
	failed    int   // events that are to be retried
	failure   error // first error of the failed events
}

// pumpRun is the state of a pump while this process owns the cursor.
type pumpRun struct {
	*Pump
	schedule *schedule
	progress progress
	results  chan func() // results of reads, deliveries, commits and of opening the sink
	running  int         // of these, those that have not returned their result
	window   window

	ownership      <-chan struct{} // closed when another process becomes the owner
	reads          context.Context // of reads; ends first
	endReads       context.CancelFunc
	sends          context.Context // of deliveries
	cutSends       context.CancelCauseFunc
	commits        context.Context
	reading        bool // the head is being read
	catching       bool // deferred events are being read again
	opening        bool
	flying         int         // deliveries
	inDelivery     int         // events of these deliveries
	deliveries     []*delivery // these deliveries in the order of their start, and some that have landed
	readAt         time.Time   // earliest next read of the head
	catchUpAt      time.Time   // earliest next read of deferred events
	readWait       *backoff.ExponentialBackOff
	openAt         time.Time // earliest next attempt to open the sink
	sendAt         time.Time // earliest next delivery
	throttledUntil time.Time // the broker asks not to send anything before
	discardAt      time.Time // next application of the discard policy
	atEnd          bool      // every event of the traffic was read
	discarded      discardRun
	decisions      map[keyHash]decision // about deferred events of blocked keys
	failed         error                // ends the run
}

// delivery is a delivery in flight.
type delivery struct {
	began  time.Time
	landed bool
}

// Run delivers until ctx or hard is done, or the traffic ends, and then returns nil.
// Deliveries in flight may complete until hard is done, so that their acknowledgements are
// not lost. Run retries after errors of the broker, and after a failed read of the journal,
// because other sinks may be able to go on. Run returns an error if a commit fails.
func (p *Pump) Run(ctx, hard context.Context) error {
	if p.cursor.OwnershipLost() != nil { // other processes can share the journal
		p.handle.fence.owns = func() bool { return p.cursor.Owner().Local }
	}
	defer func() { p.handle.close(p.handle.sink) }()
	for ctx.Err() == nil {
		records := p.first(ctx)
		if len(records) == 0 {
			return nil
		}
		if here, err := p.traffic.began(ctx); err != nil || !here {
			return err
		}
		p.recordOwnership(records)
		err := p.deliverWhileOwner(ctx, hard, records)
		if errors.Is(err, journal.ErrOwnershipLost) {
			p.traffic.lost()
			p.handle.forget()
			p.log.Info("another relay delivers to the sink now")
			continue
		}
		if err != nil && !errors.Is(err, journal.ErrClosed) {
			return fmt.Errorf("sink %s: %w", p.name, err)
		}
		return nil
	}
	return nil
}

// first reads the first events as the owner of the cursor. It returns none if the pump is to
// end.
func (p *Pump) first(ctx context.Context) []journal.Record {
	wait := readBackoff()
	for {
		records, err := p.cursor.Next(ctx, p.settings.Batch)
		switch {
		case ctx.Err() != nil || errors.Is(err, journal.ErrClosed):
			return nil
		case err == nil:
			return records
		}
		p.unreadable(err)
		if sleep.For(ctx, wait.NextBackOff()) != nil {
			return nil
		}
	}
}

func readBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = time.Second, time.Minute
	return b
}

func (p *Pump) unreadable(err error) {
	p.metrics.unreadable.Inc()
	p.log.Error("reading the journal for the sink failed, retrying; the sink gets no events meanwhile", zap.Error(err))
}

// recordOwnership updates the handle after this process became the owner: the previous owner
// may have sent every event that was stored by then.
func (p *Pump) recordOwnership(records []journal.Record) {
	if since := p.cursor.Owner().Since; !since.Equal(p.owned) && len(records) > 0 {
		p.owned = since
		p.handle.unsent = max(p.last(), records[len(records)-1].Seq) + 1
		p.handle.forget()
	}
}

// deliverWhileOwner delivers while this process owns the cursor, beginning with records. Its
// error wraps journal.ErrOwnershipLost if another process has become the owner.
func (p *Pump) deliverWhileOwner(ctx, hard context.Context, records []journal.Record) error {
	r := &pumpRun{
		Pump: p, results: make(chan func()), window: newWindow(p.settings.Batch), readWait: readBackoff(), commits: hard,
		ownership: p.cursor.OwnershipLost(),
		schedule:  newSchedule(p.settings.MaxPending, p.handle.destination),
		progress:  progress{cursor: p.cursor, head: p.cursor.Committed()},
	}
	if p.handle.sink != nil {
		r.schedule.setLimits(p.handle.sink.Limits(), p.settings.Batch)
	}
	r.reads, r.endReads = context.WithCancel(ctx)
	defer r.endReads()
	r.sends, r.cutSends = context.WithCancelCause(hard)
	defer r.cutSends(nil)
	defer p.metrics.clearOldest()
	defer r.logDiscarded()
	r.admit(records)
	p.owner.Store(true)
	defer p.owner.Store(false)
	return r.loop(ctx, hard)
}

// loop runs until ctx is done, the traffic has ended, the ownership is lost or the journal
// fails, and then until all that runs has returned.
func (r *pumpRun) loop(ctx, hard context.Context) error {
	lost, stop, cut := r.ownership, ctx.Done(), hard.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		stopping := ctx.Err() != nil || r.failed != nil
		var wake time.Time
		if !stopping {
			wake = r.step(now)
		}
		if due := r.commitIfDue(now, stopping); !due.IsZero() && (wake.IsZero() || due.Before(wake)) {
			wake = due
		}
		if r.running == 0 && (r.failed != nil || hard.Err() != nil || r.progress.empty() && (stopping || r.finished())) {
			return r.failed
		}
		if wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, time.Until(wake)))
		}
		select {
		case result := <-r.results:
			r.running--
			result()
		case ask := <-r.asks:
			ask(r)
		case <-r.resumed():
		case <-timer.C:
		case <-stop:
			stop = nil
			r.endReads()
		case <-cut:
			cut = nil
			r.endReads()
		case <-lost:
			lost = nil
			r.fail(journal.ErrOwnershipLost)
		}
	}
}

// fail ends the run with an error.
func (r *pumpRun) fail(err error) {
	if r.failed == nil {
		r.failed = err
	}
	r.endReads()
	r.cutSends(err)
}

// start runs a function beside the goroutine of Run. The function returns what the goroutine
// does with its result.
func (r *pumpRun) start(do func() func()) {
	r.running++
	go func() { r.results <- do() }()
}

// finished reports whether every event of the traffic is done.
func (r *pumpRun) finished() bool { return r.atEnd && r.schedule.open() == 0 }

// paused reports whether the sink is paused, or whether its pauses are not known yet.
func (r *pumpRun) paused() bool {
	select {
	case <-r.pause.pausesLoaded:
		return r.pause.pause.Load() != nil
	default:
		return true
	}
}

// resumed returns a channel that is closed when a pause ends; nil without a pause.
func (r *pumpRun) resumed() <-chan struct{} {
	select {
	case <-r.pause.pausesLoaded:
	default:
		return r.pause.pausesLoaded
	}
	if now := r.pause.pause.Load(); now != nil {
		return now.over
	}
	return nil
}

// step starts whatever can be started now, and returns when to call step again at the
// latest; the zero time is when something changes.
func (r *pumpRun) step(now time.Time) (wake time.Time) {
	at := func(t time.Time) {
		if !t.After(now) {
			return // what could be started now was; the rest waits for a result
		}
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	s := r.schedule
	if !r.health.open.Load() { // otherwise dispatch ends one wait at a time
		s.due(now)
	}
	s.unparkDue(now)
	r.discard(at)
	if !r.paused() {
		r.openSink(now, at)
		r.dispatch(now, at)
	}
	r.readHead(now, at)
	r.readDeferred(now, at)
	s.nextDue(at)
	r.metrics.setSchedule(s)
	_, limit := r.room()
	r.shown.set(s, limit)
	return wake
}

// discardInterval is how often the discard policy is applied, besides to new events that
// exceed its limits.
const discardInterval = 250 * time.Millisecond

// openSink opens the sink if it is closed or outdated.
func (r *pumpRun) openSink(now time.Time, at func(time.Time)) {
	if r.handle.sink != nil && !r.handle.outdated() || r.opening || r.flying > 0 {
		return
	}
	if r.openAt.After(now) && !r.handle.outdated() {
		at(r.openAt)
		return
	}
	before, spec := r.handle.sink, r.handle.spec.Load()
	r.opening, r.handle.sink, r.handle.opened = true, nil, spec
	r.start(func() func() {
		r.handle.close(before)
		sink, err := r.handle.open(r.reads, spec)
		return func() { r.opened(sink, err) }
	})
}

// opened records whether the sink could be opened.
func (r *pumpRun) opened(sink sinks.Sink, err error) {
	r.opening, r.handle.sink = false, sink
	if err != nil {
		if r.reads.Err() == nil {
			r.metrics.retries.Inc()
			r.sinkFailed(err)
		}
		return
	}
	r.schedule.setLimits(r.handle.sink.Limits(), r.settings.Batch)
}

// dispatch starts deliveries.
func (r *pumpRun) dispatch(now time.Time, at func(time.Time)) {
	s := r.schedule
	if r.handle.sink == nil || r.opening || r.handle.outdated() {
		return
	}
	for r.flying < s.limits.InFlight {
		// Each blocked destination has a probe of its own, also while the circuit breaker is
		// open because all destinations fail.
		if r.health.open.Load() && !r.health.whole && !r.throttled(now) && r.limiter == nil {
			if i, g := s.probe(now); i != nil {
				r.send([]*item{i}, g)
				continue
			}
		}
		if r.sendAt.After(now) {
			at(r.sendAt)
			return
		}
		size := r.window.size
		if r.limiter != nil {
			tokens := int(r.limiter.TokensAt(now))
			if tokens < 1 {
				wait := r.limiter.ReserveN(now, 1)
				at(now.Add(wait.DelayFrom(now)))
				wait.CancelAt(now)
				return
			}
			size = min(size, tokens)
		}
		var items []*item
		var g *group
		switch {
		case r.health.open.Load() && r.flying > 0:
			return // one probe at a time
		case r.health.open.Load():
			items, g = s.takeProbe(now)
		default:
			if i, probing := s.probe(now); i != nil {
				items, g = []*item{i}, probing
			} else {
				items, g = s.take(size)
			}
		}
		if len(items) == 0 {
			return
		}
		if r.limiter != nil {
			r.limiter.ReserveN(now, len(items))
		}
		r.send(items, g)
	}
}

// throttled reports whether the broker has asked not to send anything now.
func (r *pumpRun) throttled(now time.Time) bool { return r.throttledUntil.After(now) }

// send starts a delivery.
func (r *pumpRun) send(items []*item, g *group) {
	this := &delivery{began: time.Now()}
	r.deliveries = append(r.deliveries, this)
	r.flying++
	r.inDelivery += len(items)
	began := r.handle.env.Now()
	for _, i := range items {
		if i.attempts++; i.attempts == 1 {
			i.first, i.progress = began, r.health.successes
		}
	}
	r.start(func() func() {
		each, err := r.traced(r.sends, items)
		return func() {
			r.flying--
			r.inDelivery -= len(items)
			this.landed = true
			r.metrics.attempts.Observe(max(0, r.handle.env.Now().Sub(began).Seconds()))
			if err != nil && r.sends.Err() != nil { // cut off
				r.schedule.back(items)
			} else {
				r.landed(items, each, err)
			}
			r.schedule.landed(g)
			for _, i := range items {
				if i.removed { // the schedule keeps the item until older ones are removed
					i.Event = event.Event{}
				}
			}
		}
	})
}

// traced makes an attempt, with a span for each sampled event.
func (r *pumpRun) traced(ctx context.Context, items []*item) (sinks.BatchError, error) {
	if r.traces == nil {
		return r.handle.deliver(ctx, items)
	}
	ends := make([]telemetry.Delivered, len(items))
	for n, i := range items {
		ends[n] = r.traces.Deliver(ctx, i.Event, telemetry.Attempt{
			Sink: r.name, Kind: r.kind, Number: i.attempts, Batch: len(items), Replay: r.handle.replay,
		})
	}
	each, err := r.handle.deliver(ctx, items)
	for n, end := range ends {
		if end == nil {
			continue
		}
		to, became := r.handle.destination(items[n].Event), err
		if each != nil {
			became = each[n]
		}
		end(to.Name, to.Template, became)
	}
	return each, err
}

// readHead reads the next events of the cursor, if there is room.
func (r *pumpRun) readHead(now time.Time, at func(time.Time)) {
	room, _ := r.room()
	if room == 0 || r.reading || r.atEnd || r.stocked(now, at) {
		return
	}
	if r.readAt.After(now) {
		at(r.readAt)
		return
	}
	r.reading = true
	limit := min(room, max(r.settings.Batch, readBatch))
	r.start(func() func() {
		records, err := r.cursor.Next(r.reads, limit)
		return func() {
			r.reading = false
			switch {
			case r.reads.Err() != nil || r.lost():
			case errors.Is(err, journal.ErrClosed):
				r.fail(err)
			case err != nil:
				r.unreadable(err)
				r.readAt = time.Now().Add(r.readWait.NextBackOff())
			default:
				r.readWait.Reset()
				r.admit(records)
			}
		}
	})
}

// room returns how many more events may be read. Without room, reason is the limit. While
// nothing can be delivered, the pump holds one read only: sinks that are away for hours must
// not fill the memory.
func (r *pumpRun) room() (n int, reason string) {
	n, reason = r.schedule.room()
	if down := r.handle.sink == nil || r.health.whole; down && n > 0 {
		if n = min(n, max(r.settings.Batch, readBatch)-r.schedule.inHand); n <= 0 {
			return 0, "sink_down"
		}
	}
	return n, reason
}

// slowDelivery is the time after which a delivery in flight does not keep the pump from
// reading ahead.
const slowDelivery = 100 * time.Millisecond

// stocked reports whether so many events can be delivered, now or when a delivery lands, that
// reading more would only take memory: a batch, and one for each delivery in flight. Behind
// a slow delivery, and if few keys have all the events, the pump reads ahead up to its
// limits: the events that wait must not keep events of other keys and destinations from
// being read.
func (r *pumpRun) stocked(now time.Time, at func(time.Time)) bool {
	s := r.schedule
	if s.stocked() {
		return true
	}
	for len(r.deliveries) > 0 && r.deliveries[0].landed {
		r.deliveries = r.deliveries[1:]
	}
	if len(r.deliveries) == 0 || len(s.keys) < 2*r.flying || s.inHand-s.blocked-r.inDelivery < s.batch*r.flying {
		return false
	}
	if r.flying >= s.limits.InFlight {
		return true // nothing else could be delivered
	}
	if slow := r.deliveries[0].began.Add(slowDelivery); slow.After(now) {
		at(slow)
		return true
	}
	return false
}

// readBatch is the number of events of one read at most, or the batch of the sink.
const readBatch = 512

// lost reports whether another process has become the owner of the cursor.
func (r *pumpRun) lost() bool {
	select {
	case <-r.ownership:
		return true
	default:
		return false
	}
}

// admit passes the next events of the cursor to the schedule. Events that the filter does
// not match are done.
func (r *pumpRun) admit(records []journal.Record) {
	end := r.traffic.end()
	if d := r.settings.Discard; d.After > 0 && len(records) > 0 && r.handle.env.Now().Sub(records[0].Accepted) >= d.After ||
		d.Beyond > 0 && r.schedule.open()+uint64(len(records)) > uint64(d.Beyond) {
		r.discardAt = time.Time{}
	}
	for _, record := range records {
		if end > 0 && record.Seq > end {
			r.atEnd = true
			break
		}
		from := r.progress.head + 1
		r.progress.head = record.Seq
		switch {
		case r.cursor.Done(record.Seq):
			r.progress.add(from, record.Seq)
		case !r.traffic.selects(record):
			r.progress.done(from, record.Seq)
		case !r.schedule.admit(record, from):
			if from < record.Seq {
				r.progress.add(from, record.Seq-1)
			}
		}
	}
	if end > 0 && r.progress.head >= end {
		r.atEnd = true
	}
	if r.atEnd && r.progress.head < end {
		r.progress.add(r.progress.head+1, end)
		r.progress.head = end
	}
	r.schedule.head = max(r.schedule.head, r.progress.head)
}

// readDeferred reads deferred events again.
func (r *pumpRun) readDeferred(now time.Time, at func(time.Time)) {
	s := r.schedule
	from := s.catchUpAt()
	if from == 0 || r.catching {
		return
	}
	if r.catchUpAt.After(now) {
		at(r.catchUpAt)
		return
	}
	r.catching = true
	limit := min(readBatch, max(1, s.maxPending-s.inHand))
	r.start(func() func() {
		records, err := r.read(r.reads, from, limit)
		return func() {
			r.catching = false
			switch {
			case r.reads.Err() != nil:
				return
			case err != nil:
				r.unreadable(err)
				r.catchUpAt = time.Now().Add(r.readWait.NextBackOff())
				return
			}
			r.revisit(from, records)
		}
	})
}

// revisit passes events that were read again to the schedule.
func (r *pumpRun) revisit(from journal.Seq, records []journal.Record) {
	next := from
	if oldest := r.oldest(); next < oldest { // the events were removed
		next = oldest
		r.progress.add(r.cursor.Committed()+1, oldest-1)
	}
	for _, record := range records {
		if record.Seq > r.schedule.head {
			next = r.schedule.head + 1
			break
		}
		next = record.Seq + 1
		if !r.cursor.Done(record.Seq) && !r.progress.has(record.Seq) {
			if i := r.schedule.revisit(record); i != nil {
				r.resolveLater(i)
			}
		}
	}
	if next == from { // a replica of the journal may not have the events yet
		r.catchUpAt = time.Now().Add(100 * time.Millisecond)
		r.schedule.postpone()
		return
	}
	r.schedule.caughtUp(next)
	if len(r.schedule.deferred) == 0 { // what is neither in hand nor done was removed from the journal
		if to := r.schedule.lowest() - 1; to > r.cursor.Committed() {
			r.progress.add(r.cursor.Committed()+1, to)
		}
	}
}

// commitIfDue starts a commit commitInterval after the first uncommitted event, at once for
// dead letters and discards or if now is set, and returns when the next commit is due.
func (r *pumpRun) commitIfDue(now time.Time, atOnce bool) (due time.Time) {
	p := &r.progress
	if p.empty() || p.committing || errors.Is(r.failed, journal.ErrOwnershipLost) {
		return time.Time{}
	}
	if due = p.since.Add(commitInterval); !atOnce && !p.urgent() && due.After(now) && !r.finished() {
		return due
	}
	batch := p.take()
	stored := journal.Progress{Done: batch.done, Open: r.schedule.open(), Undelivered: r.traffic.undelivered(batch.undelivered)}
	r.start(func() func() {
		err := r.cursor.Commit(r.commits, stored)
		if err == nil {
			err = r.traffic.committed(r.commits, batch.undelivered)
		}
		return func() { r.committed(batch, err) }
	})
	return time.Time{}
}

// committed records the result of a commit.
func (r *pumpRun) committed(batch uncommitted, err error) {
	r.progress.committing = false
	if err != nil {
		if r.commits.Err() == nil || errors.Is(err, journal.ErrOwnershipLost) {
			r.fail(err)
		}
		return
	}
	r.progress.stored()
	for _, k := range batch.keys {
		r.schedule.stored(k)
	}
}
