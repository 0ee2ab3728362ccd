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

// Blocked is what waits at a sink because of a failure.
type Blocked struct {
	Sink         string               `json:"sink"`
	Keys         int                  `json:"blocked_keys" doc:"Partition keys whose first event failed and waits for its next attempt. An event without a partition key is a key of its own."`
	Deferred     uint64               `json:"deferred_events" doc:"Events that are read again later: those behind a failed event, and those beyond the share of their partition key."`
	Destinations []BlockedDestination `json:"blocked_destinations" doc:"Destinations that fail, and whose events wait."`
	Events       []BlockedEvent       `json:"events" doc:"Failed events, oldest first."`
	More         bool                 `json:"more" doc:"Whether there are more failed events than listed."`
}

// BlockedDestination is a destination that fails.
type BlockedDestination struct {
	Name      string    `json:"name" doc:"Topic, subject or receiver."`
	Partition int       `json:"partition" doc:"Partition of the topic; 0 for a broker without partitions."`
	Since     time.Time `json:"since"`
	Next      time.Time `json:"next" doc:"Time of the next probe."`
	Error     string    `json:"error" doc:"Error of the last attempt."`
}

// BlockedEvent is an event that failed and waits.
type BlockedEvent struct {
	Seq          journal.Seq `json:"seq"`
	ID           string      `json:"id" doc:"CloudEvents id."`
	Type         string      `json:"type" doc:"CloudEvents type."`
	PartitionKey string      `json:"partitionkey,omitempty"`
	Accepted     time.Time   `json:"accepted"`
	Attempts     int         `json:"attempts"`
	First        time.Time   `json:"first" doc:"Time of the first attempt."`
	Next         *time.Time  `json:"next,omitempty" doc:"Time of the next attempt; absent while the event waits for its destination."`
	Error        string      `json:"error" doc:"Error of the last attempt."`
}

// ask runs a function in the goroutine of Pump.Run, and returns false if this process does
// not deliver to the sink now.
func (p *Pump) ask(ctx context.Context, question func(*pumpRun)) (bool, error) {
	answered := make(chan struct{})
	for p.owner.Load() {
		select {
		case p.asks <- func(r *pumpRun) { question(r); close(answered) }:
			<-answered
			return true, nil
		case <-time.After(100 * time.Millisecond): // look again whether this process is the owner
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return false, nil
}

// Blocked returns the failed events of a sink, up to limit, as far as this process delivers
// to the sink.
func (r *Relay) Blocked(ctx context.Context, sink string, limit int) (Blocked, error) {
	b := Blocked{Sink: sink, Destinations: []BlockedDestination{}, Events: []BlockedEvent{}}
	p, err := r.pump(sink)
	if err != nil {
		return b, err
	}
	_, err = p.ask(ctx, func(run *pumpRun) {
		s := run.schedule
		b.Keys, b.Deferred = s.blocked, s.deferredCount
		for _, d := range s.destinations {
			b.Destinations = append(b.Destinations, BlockedDestination{d.to.Name, d.to.Partition, d.since, d.due, d.err.Error()})
		}
		items := s.blockedItems()
		b.More = len(items) > limit
		for _, i := range items[:min(limit, len(items))] {
			e := BlockedEvent{
				Seq: i.Seq, ID: i.Event.CloudEvent.ID(), Type: i.Event.CloudEvent.Type(), Accepted: i.Accepted.UTC(),
				Attempts: i.attempts, First: i.first.UTC(),
			}
			e.PartitionKey, _ = i.Event.Attribute(event.PartitionKey)
			if i.err != nil {
				e.Error = i.err.Error()
			}
			if i.key.state == keyWaiting {
				due := i.key.due.UTC()
				e.Next = &due
			}
			b.Events = append(b.Events, e)
		}
	})
	return b, err
}

// BlockedDecision is what an operator decides about a blocked event.
type BlockedDecision string

// Decisions about blocked events.
const (
	BlockedDeadLetter BlockedDecision = "dead-letter" // the event becomes a dead letter
	BlockedDiscard    BlockedDecision = "discard"     // the event is discarded
	BlockedRetry      BlockedDecision = "retry"       // the event is tried again now
)

// ResolveBlocked decides about a blocked event of a sink, and with wholeKey also about the
// later events of its partition key that are stored now. Its error wraps
// journal.ErrNotFound if no such event waits, and ErrState if another process delivers to
// the sink. Dead letters and discards of later events are stored one after another; a crash
// in between leaves the rest open.
func (r *Relay) ResolveBlocked(ctx context.Context, sink string, seq journal.Seq, decision BlockedDecision, wholeKey bool) error {
	p, err := r.pump(sink)
	if err != nil {
		return err
	}
	var found error
	here, err := p.ask(ctx, func(run *pumpRun) { found = run.resolveBlocked(seq, decision, wholeKey) })
	switch {
	case err != nil:
		return err
	case !here:
		return fmt.Errorf("sink %s: this relay does not deliver to the sink now: %w", sink, ErrState)
	}
	return found
}

// decision is an operator's decision about the later events of a blocked key.
type decision struct {
	BlockedDecision
	through journal.Seq
}

var errOperator = errors.New("an operator dead-lettered the event")

// resolveBlocked decides about an event that waits after a failure.
func (r *pumpRun) resolveBlocked(seq journal.Seq, what BlockedDecision, wholeKey bool) error {
	if r.failed != nil {
		return fmt.Errorf("sink %s: this relay does not deliver to the sink any more: %w", r.name, ErrState)
	}
	i := r.schedule.blockedEvent(seq)
	if i == nil {
		return fmt.Errorf("event %d: %w: no event of sink %s with this sequence waits after a failure", seq, journal.ErrNotFound, r.name)
	}
	if what == BlockedRetry {
		if i.key.state == keyWaiting {
			r.schedule.endWait(i.key)
		} else if d := r.schedule.destinations[r.schedule.route(i.Event)]; d != nil {
			d.due = time.Now()
		}
		return nil
	}
	if i.inDoubt {
		return fmt.Errorf("event %d: the outcome of its last attempt is unknown, and the broker may have stored the event: the event waits until the broker of sink %s answers: %w", seq, r.name, ErrState)
	}
	if _, later := r.schedule.deferred[i.key.hash]; later && wholeKey {
		if r.decisions == nil {
			r.decisions = map[keyHash]decision{}
		}
		r.decisions[i.key.hash] = decision{what, r.schedule.head}
	}
	r.resolve(i, what)
	return nil
}

// resolveLater applies a decision about the later events of a blocked key to an event that
// was read again.
func (r *pumpRun) resolveLater(i *item) {
	d, ok := r.decisions[i.key.hash]
	if !ok {
		return
	}
	if i.Seq > d.through {
		delete(r.decisions, i.key.hash)
		return
	}
	if !i.inDoubt { // otherwise the event may be stored, and is delivered
		r.resolve(i, d.BlockedDecision)
	}
}

// resolve turns an event in hand into a dead letter, or discards it.
func (r *pumpRun) resolve(i *item, what BlockedDecision) {
	r.schedule.withdraw(i)
	result := attemptResult{at: r.handle.env.Now()}
	if what == BlockedDiscard {
		r.progress.discarded(i, journal.DiscardedByOperator, result.at)
		r.log.Warn("operator discards a blocked event, the event is not delivered", zap.Uint64("seq", uint64(i.Seq)), zap.String("event_id", i.Event.CloudEvent.ID()))
		r.metrics.countDiscarded(journal.DiscardedByOperator)
		return
	}
	err := errOperator
	if i.err != nil {
		err = fmt.Errorf("%w; its last attempt failed: %w", errOperator, i.err)
	}
	r.deadLetter(i, sinks.ReasonOperator, err, &result)
	r.traffic.attempted(result)
}
