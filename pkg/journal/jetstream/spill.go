package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
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
// partition key: while one of them is here, or in the spill of another process
// that announces it, those that come after it wait, or come here too.
type spill struct {
	j            *Journal
	journal      *pebble.Journal
	cursor       journal.Cursor
	subscription *nats.Subscription // their announcements
	announceC    chan struct{}      // asks for one of ours

	mu                sync.Mutex
	changed           chan struct{} // closed, and made anew, when any of these change
	down              bool          // the cluster did not answer within the hold; it is asked by the forwarder alone
	events            uint64        // that are here
	local             shards        // when the events that are here were accepted, by lane, in order
	oldest            time.Time     // of all that is here; zero is none
	peers             map[string]peerSpill
	peersUnknownUntil time.Time // until when there may be announcements that were not heard
	announcedNonEmpty bool      // the last announcement of ours said that something is here
}

const forwarder = "forward"

// openSpill opens the journal of what has not been forwarded.
func openSpill(j *Journal) (*spill, error) {
	own, err := pebble.Open(pebble.Options{
		Dir: j.opts.Spill.Dir, Window: j.opts.Window, MaxBytes: j.opts.Spill.MaxBytes, MinFree: j.opts.Spill.MinFree, KeepKeys: true,
		Name: j.opts.Name, Log: j.log.Named("spill"), Clock: j.opts.Clock, Discarded: j.opts.Discarded,
	})
	if err != nil {
		return nil, fmt.Errorf("spill: %w", err)
	}
	s := &spill{j: j, journal: own, announceC: make(chan struct{}, 1), changed: make(chan struct{}), peers: map[string]peerSpill{}, peersUnknownUntil: time.Now().Add(startGrace)}
	if err = s.recover(j.life); err == nil {
		s.subscription, err = j.conn.Subscribe(j.announcements(), s.onAnnouncement)
	}
	if err != nil {
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
			if len(r.Event.Keys) == 0 {
				return fmt.Errorf("event %d in %s has no identity key: the folder is a journal of another kind, whose events would go nowhere; set journal.spill.dir to a folder of its own, and carry that journal with 'postwire journal migrate'", r.Seq, s.j.opts.Spill.Dir)
			}
			s.count(r.Event, r.Accepted)
			next = r.Seq + 1
		}
	}
	if n := s.events + s.journal.QuarantineCount(); n > 0 {
		s.j.log.Warn("events that the cluster did not take are still here, and are forwarded now", zap.Uint64("events", n))
	}
	return nil
}

// count counts an event that is here. The caller holds mu, or is alone.
func (s *spill) count(e event.Event, accepted time.Time) {
	s.events++
	if s.oldest.IsZero() {
		s.oldest = accepted
	}
	s.local.push(shardOf(e), accepted)
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
	var r *request // on its way; nil while it must wait
	for {
		s.mu.Lock()
		down := s.isDown()
		bypass, peersUnknown, changed := s.mayBypass(events), time.Now().Before(s.peersUnknownUntil), s.changed
		s.mu.Unlock()
		var done chan error
		switch {
		case down, r != nil && !bypass:
			// What it must not overtake has been kept since it was sent.
			r.abandon()
			return s.spillEvents(ctx, events)
		case r == nil && bypass && !peersUnknown:
			r = &request{events: events}
			if err := s.j.enqueue(ctx, r, hold.C); errors.Is(err, errHoldTimeout) {
				s.setDown(true, "the cluster did not take an event in time")
				return s.spillEvents(ctx, events)
			} else if err != nil {
				return nil, err
			}
			continue
		case r != nil:
			done = r.done
		}
		select {
		case err := <-done:
			return r.receipts, err
		case <-changed:
		case <-hold.C:
			if r != nil {
				s.setDown(true, "the cluster did not take an event in time")
			}
			r.abandon()
			return s.spillEvents(ctx, events)
		case <-ctx.Done():
			r.abandon()
			return nil, ctx.Err()
		}
	}
}

// mayBypass reports whether no event is here, or known to be in another process's
// spill, that one of these must not overtake. The caller holds mu.
func (s *spill) mayBypass(events []*staged) bool {
	for _, e := range events {
		if n := shardOf(e.event); n >= 0 && (len(s.local.times[n]) > 0 || s.lowWatermark(n) != 0) {
			return false
		}
	}
	return true
}

// spillEvents keeps events here.
func (s *spill) spillEvents(ctx context.Context, events []*staged) ([]journal.Receipt, error) {
	all := make([]event.Event, len(events))
	for i, e := range events {
		all[i] = e.event
	}
	// Counted before they are stored: the forwarder may be faster.
	s.mu.Lock()
	for _, e := range all {
		s.count(e, s.j.opts.Clock())
	}
	s.mu.Unlock()
	receipts, err := s.journal.Append(ctx, all...)
	s.mu.Lock()
	for i, e := range all {
		if err != nil || receipts[i].Duplicate {
			s.local.popNewest(shardOf(e))
			s.decrement()
		}
	}
	s.notify()
	s.mu.Unlock()
	s.requestAnnouncement()
	if err != nil {
		return nil, fmt.Errorf("the cluster does not answer, and the spill: %w", err)
	}
	for i := range receipts {
		receipts[i].Seq = 0 // its place in the cluster is not known yet
	}
	return receipts, nil
}

// decrement counts an event that is not here any more. The caller holds mu.
func (s *spill) decrement() {
	if s.events--; s.events == 0 {
		s.oldest = time.Time{}
	}
}

// setDown notes whether the cluster answers.
func (s *spill) setDown(down bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != down {
		s.down = down
		s.notify()
		s.j.log.Warn(why, zap.Bool("spilling", down))
		select {
		case s.j.pollNow <- struct{}{}:
		default: // it is asked for already
		}
	}
}

// isDown reports whether the cluster is asked by the forwarder alone, which finds
// out when it answers: without anything to forward nobody would. The caller holds
// mu.
func (s *spill) isDown() bool { return s.down && s.events+s.journal.QuarantineCount() > 0 }

// quarantine keeps a request in the cluster, or here.
func (s *spill) quarantine(ctx context.Context, r journal.QuarantinedRequest) (string, error) {
	s.mu.Lock()
	down := s.isDown()
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
		s.setDown(true, "the cluster did not take a request in time")
	}
	kept, err := s.journal.Quarantine(ctx, r)
	if err != nil {
		return "", fmt.Errorf("the cluster does not answer, and the spill: %w", err)
	}
	s.mu.Lock()
	s.notify()
	s.mu.Unlock()
	return kept, nil
}

// run forwards what is here until ctx is done.
func (s *spill) run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { s.forwardEvents(ctx) })
	all.Go(func() { s.forwardRequests(ctx) })
	all.Go(func() { s.keepAnnouncing(ctx) })
	all.Wait()
}

// forwardEvents stores what is here in the cluster, however long that takes: of
// each partition key in order.
func (s *spill) forwardEvents(ctx context.Context) {
	const maxPending = 256
	wait := newWait()
	var pending []journal.Record // read, and not yet committed; those without keys are stored
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if len(pending) < maxPending {
			read := ctx
			stop := func() {}
			if len(pending) > 0 { // those that wait for another process must not wait for more of ours
				read, stop = context.WithTimeout(ctx, 20*time.Millisecond)
			}
			more, err := s.cursor.Next(read, maxPending-len(pending))
			stop()
			switch {
			case ctx.Err() != nil || errors.Is(err, journal.ErrClosed):
				return
			case err != nil && read.Err() == nil:
				s.j.log.Error("what the cluster did not take cannot be read; it stays here until that is repaired", zap.Error(err))
				if sleep.For(ctx, time.Minute) != nil {
					return
				}
			}
			pending = append(pending, more...)
		}
		n, err := s.forward(ctx, pending)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.j.log.Warn("what is kept here cannot be forwarded yet", zap.Error(err))
			if sleep.For(ctx, wait.NextBackOff()) != nil {
				return
			}
			continue
		case n == 0 && len(pending) == maxPending:
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			continue
		case n > 0:
			wait.Reset()
			s.setDown(false, "the cluster takes events again")
		}
		stored := 0
		for stored < len(pending) && pending[stored].Event.Keys == nil {
			stored++
		}
		if stored == 0 {
			continue
		}
		if err := s.cursor.Commit(ctx, pending[stored-1].Seq, journal.Undelivered{}); err != nil {
			if ctx.Err() == nil {
				s.j.log.Error("the spill cannot note what was forwarded; it is forwarded again", zap.Error(err))
			}
			return
		}
		pending = pending[stored:]
	}
}

// forward stores those records in the cluster whose turn it is, as many as fit one
// act, takes their keys away, and returns how many that were. It is an event's
// turn when no other process has kept one of its lane before it was kept here.
func (s *spill) forward(ctx context.Context, records []journal.Record) (int, error) {
	var all []*staged
	var which []int
	blocked := map[int]bool{}
	taken := map[int]int{} // of each lane
	s.mu.Lock()
	blind := time.Now().Before(s.peersUnknownUntil)
	for i, r := range records {
		if r.Event.Keys == nil {
			continue
		}
		if n := shardOf(r.Event); n >= 0 {
			// By the times that are announced: of two processes that hold each
			// other up, one is let go first.
			low := s.lowWatermark(n)
			if blocked[n] || low != 0 && low < s.local.times[n][taken[n]] {
				blocked[n] = true
				continue
			}
			taken[n]++
		}
		e, err := stageOne(r.Event)
		if err != nil {
			s.mu.Unlock()
			return 0, fmt.Errorf("event %d of the spill: %w", r.Seq, err)
		}
		record.SetAccepted(e.record, r.Accepted)
		all, which = append(all, e), append(which, i)
	}
	s.mu.Unlock()
	if blind {
		return 0, sleep.For(ctx, startGrace/4)
	}
	if len(all) == 0 {
		return 0, nil
	}
	part := fitting(all)[0]
	if _, err := s.j.submit(ctx, &request{events: part}, nil); err != nil {
		return 0, err
	}
	s.mu.Lock()
	for n, e := range part {
		s.local.popOldest(shardOf(e.event))
		s.decrement()
		records[which[n]].Event.Keys = nil
	}
	for _, r := range records {
		if r.Event.Keys != nil {
			s.oldest = r.Accepted
			break
		}
	}
	s.notify()
	s.mu.Unlock()
	s.requestAnnouncement()
	return len(part), nil
}

// forwardRequests does the same with quarantined requests.
func (s *spill) forwardRequests(ctx context.Context) {
	carried := map[string]bool{} // which may be here still, with later receipts
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if s.journal.QuarantineCount() == 0 {
			clear(carried)
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		for r, err := range s.journal.Quarantined(ctx, "") {
			own := r.ID
			if carried[own] {
				r.ID = "" // the cluster has it under that ID, and would take this for the same once more
			}
			if err == nil {
				_, err = s.j.quarantine(ctx, r)
			}
			if err == nil {
				// It may have been received again while the cluster was away.
				carried[own] = true
				err = s.journal.Carried(ctx, own, r.Count)
			}
			if errors.Is(err, journal.ErrNotFound) {
				continue // the spill has discarded it meanwhile
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
			s.setDown(false, "the cluster takes requests again")
			s.mu.Lock()
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
	return s.events + s.journal.QuarantineCount(), s.oldest
}

func (s *spill) close() error {
	return errors.Join(s.subscription.Unsubscribe(), s.cursor.Close(), s.journal.Close())
}
