package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/pebble"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Spill says where events are kept while the cluster does not take them. Dir is
// needed; it belongs to one process.
type Spill struct {
	Dir      string
	MaxBytes uint64 // size at which appends are refused; 0 is no limit
	MinFree  uint64 // bytes of free disk space below which appends are refused
}

// spill is a small synced journal of this process's own. The sender gives up on
// an answer after ten seconds, and a cluster whose leader has died takes about as
// long to have another one: what it has not taken after the hold is kept here,
// answered, and forwarded when the cluster is back.
//
// Forwarding is an append with the same keys: what the cluster has stored after
// all, or another process has, is a duplicate then. Order holds for events of one
// partition key: while one of them is here, those that come after it wait until
// it has been forwarded, or come here too.
type spill struct {
	j       *Journal
	journal *pebble.Journal
	cursor  journal.Cursor

	mu      sync.Mutex
	changed chan struct{}  // closed, and made anew, when any of these change
	down    bool           // the cluster did not answer within the hold; it is asked by the forwarder alone
	keys    map[string]int // partition keys of the events that are here
	events  uint64         // that are here
	oldest  time.Time      // of them; zero is none
	aside   uint64         // quarantined requests that are here
}

const forwarder = "forward"

// openSpill opens the journal of what has not been forwarded.
func openSpill(j *Journal) (*spill, error) {
	own, err := pebble.Open(pebble.Options{
		Dir: j.opts.Spill.Dir, Window: j.opts.Window, MaxBytes: j.opts.Spill.MaxBytes, MinFree: j.opts.Spill.MinFree, KeepKeys: true,
		Name: j.opts.Name, Log: j.log.Named("spill"), Clock: j.opts.Clock,
	})
	if err != nil {
		return nil, fmt.Errorf("spill: %w", err)
	}
	s := &spill{j: j, journal: own, changed: make(chan struct{}), keys: map[string]int{}}
	if err := s.recover(j.life); err != nil {
		return nil, errors.Join(fmt.Errorf("spill: %w", err), own.Close())
	}
	return s, nil
}

// recover counts what the process before has left behind.
func (s *spill) recover(ctx context.Context) (err error) {
	if s.cursor, err = s.journal.Reader(ctx, forwarder, journal.Earliest); err != nil {
		return err
	}
	for next := s.cursor.Committed() + 1; ; {
		records, err := s.journal.Read(ctx, next, 512)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			break
		}
		for _, r := range records {
			s.enter(r.Event, r.Accepted)
			next = r.Seq + 1
		}
	}
	for _, err := range s.journal.Quarantined(ctx, "") {
		if err != nil {
			return err
		}
		s.aside++
	}
	if n := s.events + s.aside; n > 0 {
		s.j.log.Warn("events that the cluster did not take are still here, and are forwarded now", zap.Uint64("events", n))
	}
	return nil
}

// enter counts an event that is here. The caller holds mu, or is alone.
func (s *spill) enter(e event.Event, accepted time.Time) {
	s.events++
	if s.oldest.IsZero() {
		s.oldest = accepted
	}
	if key, ok := e.Attribute(event.PartitionKey); ok {
		s.keys[key]++
	}
}

// notify wakes all who wait for a change. The caller holds mu.
func (s *spill) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// append stores events in the cluster, or here.
func (s *spill) append(ctx context.Context, events []*staged) ([]journal.Receipt, error) {
	hold := time.NewTimer(s.j.opts.Hold)
	defer hold.Stop()
	if s.passed(ctx, events, hold.C) {
		receipts, err := s.j.submit(ctx, &request{events: events}, hold.C)
		if !errors.Is(err, errHeld) {
			return receipts, err
		}
		s.turn(true, "the cluster did not take an event in time")
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return s.take(ctx, events)
}

// passed waits until no event is here that one of these must not overtake, and
// reports whether the cluster is to be asked.
func (s *spill) passed(ctx context.Context, events []*staged, give <-chan time.Time) bool {
	for {
		s.mu.Lock()
		// Without anything to forward nobody would find out.
		down, waits, changed := s.down && s.events+s.aside > 0, false, s.changed
		for _, e := range events {
			waits = waits || e.partition != "" && s.keys[e.partition] > 0
		}
		s.mu.Unlock()
		switch {
		case down:
			return false
		case !waits:
			return true
		}
		select {
		case <-changed:
		case <-give:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// take keeps events here.
func (s *spill) take(ctx context.Context, events []*staged) ([]journal.Receipt, error) {
	all := make([]event.Event, len(events))
	for i, e := range events {
		all[i] = e.event
	}
	// Counted before they are stored: the forwarder may be faster.
	s.mu.Lock()
	for _, e := range all {
		s.enter(e, s.j.opts.Clock())
	}
	s.mu.Unlock()
	receipts, err := s.journal.Append(ctx, all...)
	s.mu.Lock()
	for i, e := range all {
		if err != nil || receipts[i].Duplicate {
			s.leave(e)
		}
	}
	s.notify()
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("the cluster does not answer, and the spill: %w", err)
	}
	for i := range receipts {
		receipts[i].Seq = 0 // its place in the cluster is not known yet
	}
	return receipts, nil
}

// leave counts an event that is not here any more. The caller holds mu.
func (s *spill) leave(e event.Event) {
	s.events--
	if s.events == 0 {
		s.oldest = time.Time{}
	}
	if key, ok := e.Attribute(event.PartitionKey); ok {
		if s.keys[key]--; s.keys[key] <= 0 {
			delete(s.keys, key)
		}
	}
}

// turn notes whether the cluster answers.
func (s *spill) turn(down bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != down {
		s.down = down
		s.notify()
		s.j.log.Warn(why, zap.Bool("spilling", down))
	}
}

// quarantine keeps a request in the cluster, or here.
func (s *spill) quarantine(ctx context.Context, r journal.Rejected) (string, error) {
	s.mu.Lock()
	down := s.down && s.events+s.aside > 0
	s.mu.Unlock()
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	r.ID = id.String()
	if !down {
		id, err := s.j.quarantine(ctx, r)
		if err == nil || ctx.Err() != nil || errors.Is(err, journal.ErrFull) || errors.Is(err, errBroken) {
			return id, err
		}
		s.turn(true, "the cluster did not take a request in time")
	}
	if _, err := s.journal.Quarantine(ctx, r); err != nil {
		return "", fmt.Errorf("the cluster does not answer, and the spill: %w", err)
	}
	s.mu.Lock()
	s.aside++
	s.notify()
	s.mu.Unlock()
	return r.ID, nil
}

// run forwards what is here until ctx is done.
func (s *spill) run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { s.forwardEvents(ctx) })
	both.Go(func() { s.forwardRequests(ctx) })
	both.Wait()
}

// forwardEvents stores what is here in the cluster, however long that takes, in
// order.
func (s *spill) forwardEvents(ctx context.Context) {
	wait := newWait()
	for {
		// Few at once: while these are on their way, those behind them wait.
		records, err := s.cursor.Next(ctx, 128)
		switch {
		case ctx.Err() != nil || errors.Is(err, journal.ErrClosed):
			return
		case err != nil:
			s.j.log.Error("what the cluster did not take cannot be read; it stays here until that is repaired", zap.Error(err))
			if sleep.For(ctx, time.Minute) != nil {
				return
			}
			continue
		}
		for len(records) > 0 {
			n, err := s.forward(ctx, records)
			if ctx.Err() != nil {
				return
			}
			records = records[n:]
			if err == nil {
				wait.Reset()
				s.turn(false, "the cluster takes events again")
				continue
			}
			s.j.log.Warn("what is kept here cannot be forwarded yet", zap.Error(err))
			if sleep.For(ctx, wait.NextBackOff()) != nil {
				return
			}
		}
	}
}

// forward stores records in the cluster, as many as fit one act, and removes them
// here.
func (s *spill) forward(ctx context.Context, records []journal.Record) (int, error) {
	all := make([]*staged, len(records))
	for i, r := range records {
		e, err := stageOne(r.Event)
		if err != nil {
			return 0, fmt.Errorf("event %d of the spill: %w", r.Seq, err)
		}
		record.SetAccepted(e.record, r.Accepted)
		all[i] = e
	}
	part := fitting(all)[0]
	if _, err := s.j.submit(ctx, &request{events: part}, nil); err != nil {
		return 0, err
	}
	if err := s.cursor.Commit(ctx, records[len(part)-1].Seq, journal.Undelivered{}); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range part {
		s.leave(e.event)
	}
	if len(part) < len(records) {
		s.oldest = records[len(part)].Accepted
	}
	s.notify()
	return len(part), nil
}

// forwardRequests does the same with quarantined requests.
func (s *spill) forwardRequests(ctx context.Context) {
	for {
		s.mu.Lock()
		aside, changed := s.aside, s.changed
		s.mu.Unlock()
		if aside == 0 {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		for r, err := range s.journal.Quarantined(ctx, "") {
			if err == nil {
				_, err = s.j.quarantine(ctx, r)
			}
			if err == nil {
				_, err = s.journal.Release(ctx, r.ID)
			}
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.j.log.Warn("a request that is kept here cannot be forwarded yet", zap.Error(err))
				if sleep.For(ctx, time.Second) != nil {
					return
				}
				break
			}
			s.turn(false, "the cluster takes requests again")
			s.mu.Lock()
			s.aside--
			s.notify()
			s.mu.Unlock()
		}
	}
}

func (s *spill) check() error { return s.journal.Check() }

// depth is how many events and requests are here, and since when.
func (s *spill) depth() (uint64, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events + s.aside, s.oldest
}

func (s *spill) close() error { return errors.Join(s.cursor.Close(), s.journal.Close()) }
