package relay

import (
	"context"
	"errors"
	"time"

	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
)

// State is what became of an event at a sink. The set is closed.
type State string

// The states there are. All but Pending are final.
const (
	Pending     State = "pending"     // in the journal, to be delivered
	Delivered   State = "delivered"   // the broker acknowledged it
	Filtered    State = "filtered"    // the sink's filter does not take it, or it is a retry for another sink
	Skipped     State = "skipped"     // it was accepted before the sink began
	DeadLetter  State = "dead_letter" // refused for good, and set aside
	Dropped     State = "dropped"     // refused, and dropped by an operator
	Redelivered State = "redelivered" // refused, and appended again by an operator
	Discarded   State = "discarded"   // by discard of the sink
)

// DeliveryStatus is what became of an event at one sink.
type DeliveryStatus struct {
	Sink          string      `json:"sink"`
	State         State       `json:"state" enum:"pending,delivered,filtered,skipped,dead_letter,dropped,redelivered,discarded"`
	Reason        string      `json:"reason,omitempty" doc:"Why the sink refused or discarded the event."`
	Error         string      `json:"error,omitempty" doc:"Error of the broker."`
	Attempts      int         `json:"attempts,omitempty" doc:"Attempts until the event was delivered or refused, as far as the relay remembers."`
	First         *time.Time  `json:"first,omitempty" doc:"First attempt to deliver an event that was refused."`
	At            *time.Time  `json:"at,omitempty" doc:"Time of delivery, refusal or discard; absent if the relay does not remember the time."`
	After         *time.Time  `json:"after,omitempty" doc:"Earliest possible time of delivery. Set together with before if another process, or an earlier one, delivered the event: delivery times of other processes have a precision of ten seconds."`
	Before        *time.Time  `json:"before,omitempty" doc:"Latest possible time of delivery."`
	RedeliveredAs journal.Seq `json:"redelivered_as,omitempty" doc:"Sequence of the redelivered event."`
}

// Deliveries says what became of a record at each sink, in the order of the
// configuration. It looks at what is stored: a sink that has been added to the
// journal later, or whose filter was changed, is judged by what it is now.
func (r *Relay) Deliveries(ctx context.Context, record journal.Record) ([]DeliveryStatus, error) {
	pumps := r.pumpSnapshot()
	all := make([]DeliveryStatus, len(pumps))
	for i, p := range pumps {
		var err error
		if all[i], err = r.deliveryStatus(ctx, p, record); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (r *Relay) deliveryStatus(ctx context.Context, p *Pump, record journal.Record) (DeliveryStatus, error) {
	f := DeliveryStatus{Sink: p.name, State: Delivered}
	matched := record.TargetSink == p.name
	if record.TargetSink == "" {
		matched, _ = p.filter.Matches(record.Event)
	}
	beforeStart := record.Seq <= p.cursor.StartSeq()
	switch {
	case !matched && !beforeStart:
		f.State = Filtered
		return f, nil
	case record.Seq > p.cursor.Committed() && !beforeStart:
		f.State = Pending
		return f, nil
	}
	id := journal.DeliveryID{Sink: p.name, Seq: record.Seq}
	switch dead, err := r.opts.Journal.DeadLetter(ctx, id); {
	case err == nil:
		f.State, f.Reason, f.Error, f.Attempts = DeadLetter, dead.Letter.Reason, dead.Letter.Err, dead.Letter.Attempts
		f.First, f.At = moment(dead.Letter.First), moment(dead.Letter.Last)
		return f, nil
	case !errors.Is(err, journal.ErrNotFound):
		return f, err
	case beforeStart: // an adopted event is one, too, unless it was refused
		f.State = Skipped
		return f, nil
	}
	switch disposition, err := r.opts.Journal.Disposition(ctx, id); {
	case errors.Is(err, journal.ErrNotFound):
		at, before, attempts := p.history.deliveredAt(record.Seq)
		if f.At, f.Before, f.Attempts = moment(at), moment(before), attempts; f.At == nil {
			after, by, err := r.checkpointTimes(ctx, p.name, p.history, record.Seq)
			if err != nil {
				return f, err
			}
			if !by.IsZero() {
				f.After, f.Before = moment(after), moment(by)
			}
		}
	case err != nil:
		return f, err
	case disposition.Reason == journal.DroppedByOperator:
		f.State, f.At = Dropped, moment(disposition.At)
	case disposition.Reason == journal.Redelivered:
		f.State, f.RedeliveredAs, f.At = Redelivered, disposition.RedeliveredAs, moment(disposition.At)
	default:
		f.State, f.Reason, f.At = Discarded, disposition.Reason, moment(disposition.At)
	}
	return f, nil
}

// moment is a time to show; nil where it is not known.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// TailEvent is an event as a tail sees it first.
type TailEvent struct {
	Record     journal.Record
	Deliveries []DeliveryStatus
}

// StatusChange is a fate that became final after the sighting.
type StatusChange struct {
	Record journal.Record
	Status DeliveryStatus
	At     time.Time
}

// TailHandler is told what a tail sees. An error of its ends the tail.
type TailHandler interface {
	OnEvent(TailEvent) error
	OnStatusChange(StatusChange) error
	OnDropped(n uint64) error      // so many more were not told of
	OnIdle(next journal.Seq) error // now and then, when there is nothing to tell; next is where the tail is
}

// TailOptions says what a tail tells of.
type TailOptions struct {
	From   journal.Seq
	Filter filter.Filter
	Source string // only events that the source of this name took in; empty is all
	// MaxRate is how many events a second are told of; what comes beyond is
	// counted only. A tail that has fallen far behind all the same goes on
	// with what is new. 0 tells of all there are.
	MaxRate int
	// End is closed when the tail is to tell of no more events. It then waits up to
	// settleWithin for what becomes of those it told of, and ends. Nil is never.
	End <-chan struct{}
}

// TailResult is where a tail ended.
type TailResult struct {
	Next    journal.Seq // where a tail goes on that leaves nothing out and repeats nothing
	Pending int         // events that were told of, and whose delivery was pending somewhere
}

const (
	maxWatched   = 1000 // events whose fate is followed; the oldest is let go
	idleInterval = 10 * time.Second
	tailPage     = 256
	// A tail that tells of the newest only, and not of all there are, lets
	// what is further behind than this go by unread.
	maxTailLag = 4096
	// drainTimeout is how long a tail that is to end waits for the deliveries of the
	// events that it told of.
	drainTimeout = 5 * time.Second
)

// errDrained is why the wait for pending deliveries ends.
var errDrained = errors.New("the tail has ended")

// Tail tells w of the events from a place on that pass the filter, and of what
// becomes of them at each sink, until ctx is done, w fails, or the tail is to end. It
// reads what is stored: a slow watcher holds nobody up. It returns where it ended,
// also with an error.
func (r *Relay) Tail(ctx context.Context, what TailOptions, w TailHandler) (TailResult, error) {
	t := &tail{relay: r, options: what, handler: w, next: what.From, gate: &rateGate{max: what.MaxRate, now: r.opts.Now}}
	err := t.run(ctx)
	if errors.Is(err, errDrained) {
		err = nil
	}
	return TailResult{t.next, len(t.watched)}, err
}

// tail is one that runs.
type tail struct {
	relay   *Relay
	options TailOptions
	handler TailHandler
	next    journal.Seq
	watched []TailEvent // with a fate that is not final
	dropped uint64
	gate    *rateGate
}

func (t *tail) run(ctx context.Context) error {
	for {
		changed := t.relay.changes.next() // before looking, so that nothing is missed
		if t.ending() {
			return t.drain(ctx)
		}
		n, err := t.read(ctx)
		if err != nil {
			return err
		}
		if t.dropped > 0 && t.gate.due() {
			if err := t.sendDropped(); err != nil {
				return err
			}
		}
		if err := t.follow(ctx); err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		every := idleInterval
		if t.dropped > 0 {
			every = time.Second
		}
		switch woken, err := t.await(ctx, changed, max(t.next, t.relay.opts.Journal.Last()+1), every); {
		case err != nil:
			return err
		case !woken && t.dropped > 0: // what came last was too much, and then it was quiet
			if err := t.sendDropped(); err != nil {
				return err
			}
		case !woken:
			if err := t.handler.OnIdle(t.next); err != nil {
				return err
			}
		}
	}
}

// ending reports whether the tail is to end.
func (t *tail) ending() bool {
	select {
	case <-t.options.End:
		return true
	default:
		return false
	}
}

// read tells of the next events, and returns how many it looked at.
func (t *tail) read(ctx context.Context) (int, error) {
	if last := t.relay.opts.Journal.Last(); t.options.MaxRate > 0 && last > t.next && last-t.next > maxTailLag {
		t.dropped += uint64(last - t.next)
		t.next = last
	}
	records, err := t.relay.opts.Journal.Read(ctx, t.next, tailPage)
	if err != nil {
		return 0, err
	}
	for i, record := range records {
		if t.ending() {
			return i, nil
		}
		if err := t.send(ctx, record); err != nil {
			return i, err
		}
		t.next = record.Seq + 1
	}
	return len(records), nil
}

// send tells of one event, if it is meant.
func (t *tail) send(ctx context.Context, record journal.Record) error {
	if t.options.Source != "" && t.options.Source != record.Event.SourceName {
		return nil
	}
	if ok, _ := t.options.Filter.Matches(record.Event); !ok {
		return nil
	}
	if !t.gate.allows() {
		t.dropped++
		return nil
	}
	s := TailEvent{Record: record}
	var err error
	if s.Deliveries, err = t.relay.Deliveries(ctx, record); err != nil {
		return err
	}
	if err := t.handler.OnEvent(s); err != nil {
		return err
	}
	if s.isPending() {
		t.watched = append(t.watched, s)
	}
	return nil
}

func (t *tail) sendDropped() error {
	n := t.dropped
	t.dropped = 0
	return t.handler.OnDropped(n)
}

// follow tells of what has become of the events that were told of.
func (t *tail) follow(ctx context.Context) (err error) {
	t.watched, err = t.relay.follow(ctx, t.watched, t.handler)
	return err
}

// drain waits until no delivery is pending of the events that were told of, but not
// for long.
func (t *tail) drain(ctx context.Context) error {
	if t.dropped > 0 {
		if err := t.sendDropped(); err != nil {
			return err
		}
	}
	waiting, cancel := context.WithTimeoutCause(ctx, drainTimeout, errDrained)
	defer cancel()
	for {
		changed := t.relay.changes.next()
		if err := t.follow(ctx); err != nil || len(t.watched) == 0 {
			return err
		}
		select {
		case <-changed:
		case <-waiting.Done():
			return context.Cause(waiting)
		}
	}
}

// rateGate is how much a tail may tell in each second.
type rateGate struct {
	max        int // 0 is no limit
	now        func() time.Time
	second     int64
	spent      int
	lastReport int64 // the second in which it was said what is missing
}

func (b *rateGate) allows() bool {
	if b.max == 0 {
		return true
	}
	if now := b.now().Unix(); now != b.second {
		b.second, b.spent = now, 0
	}
	b.spent++
	return b.spent <= b.max
}

// due reports whether what is missing is to be said: once a second.
func (b *rateGate) due() bool {
	now := b.now().Unix()
	due := now != b.lastReport
	b.lastReport = now
	return due
}

func (s TailEvent) isPending() bool {
	for _, f := range s.Deliveries {
		if f.State == Pending {
			return true
		}
	}
	return false
}

// follow looks again at what is not final, and returns what still is not.
func (r *Relay) follow(ctx context.Context, watched []TailEvent, w TailHandler) (rest []TailEvent, err error) {
	if n := len(watched) - maxWatched; n > 0 {
		watched = watched[n:]
	}
	for _, s := range watched {
		for i, f := range s.Deliveries {
			if f.State != Pending {
				continue
			}
			p, err := r.pump(f.Sink)
			if err != nil {
				continue // the sink is no more: it waits for ever
			}
			if f, err = r.deliveryStatus(ctx, p, s.Record); err != nil {
				return nil, err
			}
			if f.State == Pending {
				continue
			}
			s.Deliveries[i] = f
			if err := w.OnStatusChange(StatusChange{s.Record, f, r.opts.Now()}); err != nil {
				return nil, err
			}
		}
		if s.isPending() {
			rest = append(rest, s)
		}
	}
	return rest, nil
}

// await waits for a cursor to move, for the event at next, or for the end of the
// tail, and reports false when none of them happened for a while.
func (t *tail) await(ctx context.Context, changed <-chan struct{}, next journal.Seq, every time.Duration) (bool, error) {
	wait, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-changed:
			cancel()
		case <-t.options.End:
			cancel()
		case <-wait.Done():
		}
	}()
	err := t.relay.opts.Journal.Wait(wait, next)
	idle := errors.Is(wait.Err(), context.DeadlineExceeded)
	cancel()
	<-stopped
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return false, err
	}
	return !idle, nil
}
