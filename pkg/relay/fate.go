package relay

import (
	"context"
	"errors"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// State is what became of an event at a sink. The set is closed.
type State string

// The states there are. All but Waiting are final.
const (
	Waiting    State = "waiting"     // in the journal, to be delivered
	Delivered  State = "delivered"   // the broker acknowledged it
	Filtered   State = "filtered"    // the sink's filter does not take it, or it is a retry for another sink
	Earlier    State = "earlier"     // it was accepted before the sink began
	DeadLetter State = "dead_letter" // refused for good, and set aside
	Dropped    State = "dropped"     // refused, and dropped by an operator
	Retried    State = "retried"     // refused, and appended again by an operator
	GivenUp    State = "given_up"    // by max_age or max_events of the sink
)

// Fate is what became of an event at one sink.
type Fate struct {
	Sink     string      `json:"sink"`
	State    State       `json:"state" enum:"waiting,delivered,filtered,earlier,dead_letter,dropped,retried,given_up"`
	Reason   string      `json:"reason,omitempty" doc:"Why it was refused or given up."`
	Error    string      `json:"error,omitempty" doc:"What the broker said."`
	Attempts int         `json:"attempts,omitempty" doc:"Attempts before it was refused."`
	As       journal.Seq `json:"as,omitempty" doc:"Place of the retried event."`
}

// Fates says what became of a record at each sink, in the order of the
// configuration. It looks at what is stored: a sink that has been added to the
// journal later, or whose filter was changed, is judged by what it is now.
func (r *Relay) Fates(ctx context.Context, record journal.Record) ([]Fate, error) {
	pumps := r.now()
	fates := make([]Fate, len(pumps))
	for i, p := range pumps {
		var err error
		if fates[i], err = r.fate(ctx, p, record); err != nil {
			return nil, err
		}
	}
	return fates, nil
}

func (r *Relay) fate(ctx context.Context, p *Pump, record journal.Record) (Fate, error) {
	f := Fate{Sink: p.name, State: Delivered}
	taken := record.Only == p.name
	if record.Only == "" {
		taken, _ = p.filter.Takes(record.Event)
	}
	switch {
	case record.Seq <= p.cursor.Began():
		f.State = Earlier
		return f, nil
	case !taken:
		f.State = Filtered
		return f, nil
	case record.Seq > p.cursor.Committed():
		f.State = Waiting
		return f, nil
	}
	id := journal.DeadID{Sink: p.name, Seq: record.Seq}
	switch dead, err := r.opts.Journal.DeadLetter(ctx, id); {
	case err == nil:
		f.State, f.Reason, f.Error, f.Attempts = DeadLetter, dead.Letter.Reason, dead.Letter.Err, dead.Letter.Attempts
		return f, nil
	case !errors.Is(err, journal.ErrNotFound):
		return f, err
	}
	switch lost, err := r.opts.Journal.Lost(ctx, id); {
	case errors.Is(err, journal.ErrNotFound):
	case err != nil:
		return f, err
	case lost.Reason == journal.GivenUpDropped:
		f.State = Dropped
	case lost.Reason == journal.GivenUpRetried:
		f.State, f.As = Retried, lost.As
	default:
		f.State, f.Reason = GivenUp, lost.Reason
	}
	return f, nil
}

// Sighting is an event as a tail sees it first.
type Sighting struct {
	Record journal.Record
	Fates  []Fate
}

// Turn is a fate that became final after the sighting.
type Turn struct {
	Record journal.Record
	Fate   Fate
	At     time.Time
}

// Watcher is told what a tail sees. An error of its ends the tail.
type Watcher interface {
	Sighted(Sighting) error
	Turned(Turn) error
	Idle() error // now and then, when there is nothing to tell
}

const (
	maxWatched = 1000 // events whose fate is followed; the oldest is let go
	idleEvery  = 10 * time.Second
	tailPage   = 256
)

// Tail tells w of the events from a place on that pass the filter, and of what
// becomes of them at each sink, until ctx is done or w fails.
func (r *Relay) Tail(ctx context.Context, from journal.Seq, filter Filter, w Watcher) error {
	var watched []Sighting // with a fate that is not final
	next := from
	for {
		changed := r.changes.next() // before looking, so that nothing is missed
		records, err := r.opts.Journal.Read(ctx, next, tailPage)
		if err != nil {
			return err
		}
		for _, record := range records {
			next = record.Seq + 1
			if ok, _ := filter.Takes(record.Event); !ok {
				continue
			}
			s := Sighting{Record: record}
			if s.Fates, err = r.Fates(ctx, record); err != nil {
				return err
			}
			if err := w.Sighted(s); err != nil {
				return err
			}
			if s.waits() {
				watched = append(watched, s)
			}
		}
		if watched, err = r.follow(ctx, watched, w); err != nil {
			return err
		}
		if len(records) > 0 {
			continue
		}
		switch told, err := r.await(ctx, changed, max(next, r.opts.Journal.Last()+1)); {
		case err != nil:
			return err
		case !told:
			if err := w.Idle(); err != nil {
				return err
			}
		}
	}
}

func (s Sighting) waits() bool {
	for _, f := range s.Fates {
		if f.State == Waiting {
			return true
		}
	}
	return false
}

// follow looks again at what is not final, and returns what still is not.
func (r *Relay) follow(ctx context.Context, watched []Sighting, w Watcher) (rest []Sighting, err error) {
	if n := len(watched) - maxWatched; n > 0 {
		watched = watched[n:]
	}
	for _, s := range watched {
		for i, f := range s.Fates {
			if f.State != Waiting {
				continue
			}
			p, err := r.pump(f.Sink)
			if err != nil {
				continue // the sink is no more: it waits for ever
			}
			if f, err = r.fate(ctx, p, s.Record); err != nil {
				return nil, err
			}
			if f.State == Waiting {
				continue
			}
			s.Fates[i] = f
			if err := w.Turned(Turn{s.Record, f, r.opts.Now()}); err != nil {
				return nil, err
			}
		}
		if s.waits() {
			rest = append(rest, s)
		}
	}
	return rest, nil
}

// await waits for a cursor to move or for the event at next, and reports false
// when neither happened for a while.
func (r *Relay) await(ctx context.Context, changed <-chan struct{}, next journal.Seq) (bool, error) {
	wait, cancel := context.WithTimeout(ctx, idleEvery)
	defer cancel()
	told := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-changed:
			cancel()
		case <-wait.Done():
		}
	}()
	err := r.opts.Journal.Wait(wait, next)
	idle := errors.Is(wait.Err(), context.DeadlineExceeded)
	cancel()
	<-told
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return false, err
	}
	return !idle, nil
}
