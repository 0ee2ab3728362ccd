package relay

import (
	"context"
	"errors"
	"time"

	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
)

// State is the delivery status of an event at one sink. The set is closed.
type State string

// Delivery statuses. All but Pending are final.
const (
	Pending     State = "pending"     // not done yet
	Delivered   State = "delivered"   // the broker acknowledged the event
	Filtered    State = "filtered"    // the filter does not match, or the event is for another sink only
	Skipped     State = "skipped"     // accepted before the sink existed
	DeadLetter  State = "dead_letter" // the sink refused the event permanently
	Dropped     State = "dropped"     // an operator dropped the dead letter
	Redelivered State = "redelivered" // an operator redelivered the dead letter
	Discarded   State = "discarded"   // the discard policy of the sink discarded the event
)

// DeliveryStatus is the status of an event at one sink, with its details.
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

// Deliveries returns the status of a record at each sink, in the order of the
// configuration. The status derives from the stored cursors and the current filters.
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
	case !p.cursor.Done(record.Seq) && !beforeStart:
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
	case beforeStart: // also an adopted event, unless the sink refused the event
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

// moment returns a pointer to a time in UTC, or nil for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// TailEvent is an event of a tail, with the status at each sink.
type TailEvent struct {
	Record     journal.Record
	Deliveries []DeliveryStatus
}

// StatusChange is a status that became final after the event was sent to the tail.
type StatusChange struct {
	Record journal.Record
	Status DeliveryStatus
	At     time.Time
}

// TailHandler receives what a tail reports. An error of the handler ends the tail.
type TailHandler interface {
	OnEvent(TailEvent) error
	OnStatusChange(StatusChange) error
	OnDropped(n uint64) error      // n more events were not sent, because of MaxRate
	OnIdle(next journal.Seq) error // every idleInterval without an event; next is the next sequence
}

// TailOptions selects the events of a tail.
type TailOptions struct {
	From   journal.Seq
	Filter filter.Filter
	Source string // name of the source; empty is every source
	// MaxRate is the maximum number of events per second. The tail counts further
	// events, and skips events that are far behind the end of the journal. 0 sends
	// every event.
	MaxRate int
	// End is closed to end the tail. The tail then sends no more events, waits up to
	// drainTimeout for the pending deliveries of sent events, and returns.
	End <-chan struct{}
}

// TailResult is where a tail ended.
type TailResult struct {
	Next    journal.Seq // sequence at which the next tail continues without gap and repeat
	Pending int         // sent events with a pending delivery
}

const (
	maxWatched   = 1000 // sent events with pending deliveries; the tail forgets the oldest
	idleInterval = 10 * time.Second
	tailPage     = 256
	// maxTailLag is the number of events beyond which a tail with MaxRate skips events.
	maxTailLag = 4096
	// drainTimeout bounds the wait for pending deliveries at the end of a tail.
	drainTimeout = 5 * time.Second
)

// errDrained ends the wait for pending deliveries.
var errDrained = errors.New("the tail has ended")

// Tail sends the selected events and the changes of their statuses to a handler, until ctx
// is done, the handler fails, or End is closed. Tail reads stored events, so that a slow
// handler delays no delivery. The result is set also with an error.
func (r *Relay) Tail(ctx context.Context, what TailOptions, w TailHandler) (TailResult, error) {
	t := &tail{relay: r, options: what, handler: w, next: what.From, gate: &rateGate{max: what.MaxRate, now: r.opts.Now}}
	err := t.run(ctx)
	if errors.Is(err, errDrained) {
		err = nil
	}
	return TailResult{t.next, len(t.watched)}, err
}

// tail is a running tail.
type tail struct {
	relay   *Relay
	options TailOptions
	handler TailHandler
	next    journal.Seq
	watched []TailEvent // sent events with a pending delivery
	dropped uint64
	gate    *rateGate
}

func (t *tail) run(ctx context.Context) error {
	for {
		changed := t.relay.changes.next() // before reading, so that no change is missed
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
		case !woken && t.dropped > 0: // no later event reports the dropped events
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

// ending reports whether End is closed.
func (t *tail) ending() bool {
	select {
	case <-t.options.End:
		return true
	default:
		return false
	}
}

// read sends the next events, and returns the number of events that it has read.
func (t *tail) read(ctx context.Context) (int, error) {
	if err := t.skip(ctx); err != nil {
		return 0, err
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

// skip skips the events of a tail with MaxRate that is far behind, except the newest.
func (t *tail) skip(ctx context.Context) error {
	j := t.relay.opts.Journal
	last := j.Last()
	if t.options.MaxRate == 0 || last <= t.next || last-t.next <= maxTailLag {
		return nil
	}
	n, err := j.Count(ctx, t.next, last-1)
	if err != nil || n <= maxTailLag {
		return err
	}
	t.dropped += n
	t.next = last
	return nil
}

// send sends one event if the options select the event.
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

// follow reports the changed statuses of the watched events.
func (t *tail) follow(ctx context.Context) (err error) {
	t.watched, err = t.relay.follow(ctx, t.watched, t.handler)
	return err
}

// drain waits until no delivery of the watched events is pending, or drainTimeout is over.
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

// rateGate limits the events of a tail per second.
type rateGate struct {
	max        int // 0 is no limit
	now        func() time.Time
	second     int64
	spent      int
	lastReport int64 // second of the last OnDropped
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

// due reports once per second that dropped events are to be reported.
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

// follow reports the pending deliveries that became final, and returns the events that
// still have a pending delivery.
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
				continue // the sink was removed
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

// await waits until a cursor moves, the event next is stored, or End is closed. Await
// returns false if none of these happened within the duration every.
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
