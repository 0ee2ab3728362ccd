package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Spill configures where a process stores events while the cluster does not accept them.
// Dir is needed and belongs to one process.
type Spill struct {
	Dir      string
	MaxBytes uint64 // size at which appends fail; 0 is no limit
	MinFree  uint64 // bytes of free disk space below which appends fail
}

// spill is a synced journal on the disk of this process. Senders wait ten seconds for an
// answer, and the election of a leader takes about as long. Events that the cluster does
// not store within the hold go to the spill. The spill answers the sender, and forwards the
// events when the cluster is back.
//
// Forwarding appends the events with their identity keys, so that an event that the cluster
// or another process has stored becomes a duplicate. Order per partition key holds: while
// an event is in the spill, or in the spill of a peer that announces it, later events of
// the key wait or go to the spill, too.
//
// | state | fields | changed by |
// |---|---|---|
// | up | down is false | forwardEvents, after an event was forwarded |
// | down | down is true: appends go to the spill while it is not empty | append and quarantine, after the hold |
// | peers unknown | peersUnknownUntil is in the future: appends wait | start, reconnect, extendGrace |
//
// Mu guards the fields after it.
type spill struct {
	j            *Journal
	journal      *local.Journal
	cursor       journal.Cursor
	subscription *nats.Subscription // of the announcements of peers
	announceC    chan struct{}      // requests an announcement
	announceMu   sync.Mutex         // held during an announcement

	mu                sync.Mutex
	changed           chan struct{} // closed and replaced when one of the following changes
	down              bool          // the cluster did not answer within the hold; only the forwarder asks the cluster
	events            uint64        // events in the spill
	local             shards        // acceptance times of the spilled events by shard
	oldest            time.Time     // oldest acceptance time in the spill; zero if empty
	peers             map[string]peerSpill
	reconnects        uint64    // known reconnects of the connection
	peersUnknownUntil time.Time // until then announcements of peers may be missing
	announcedNonEmpty bool      // the last announcement named spilled events
}

const forwarder = "forward"

// openSpill opens the journal of spilled events.
func openSpill(j *Journal) (*spill, error) {
	own, err := local.Open(local.Options{
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

// checkOwn refuses the journal of a relay: its events would go nowhere. A spill has one
// cursor, from its beginning on.
func (s *spill) checkOwn(ctx context.Context) error {
	cursors, err := s.journal.Cursors(ctx)
	if err != nil {
		return err
	}
	own := s.journal.Last() == 0 && len(cursors) == 0 || len(cursors) == 1 && cursors[0].Name == forwarder
	if !own {
		return fmt.Errorf("the folder %s is the journal of a relay with the engine local, not a spill: set journal.spill.dir to a folder of its own, and migrate that journal with 'postwire journal migrate'", s.j.opts.Spill.Dir)
	}
	return nil
}

// recover counts the events that an earlier process has spilled.
func (s *spill) recover(ctx context.Context) (err error) {
	if err := s.checkOwn(ctx); err != nil {
		return err
	}
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
			s.count(r.Event, r.Accepted)
			next = r.Seq + 1
		}
	}
	if n := s.events + s.journal.QuarantineCount(); n > 0 {
		s.j.log.Warn("events that the cluster did not take are still here, and are forwarded now", zap.Uint64("events", n))
	}
	return nil
}

// count counts a spilled event. The caller holds mu or is the only user.
func (s *spill) count(e event.Event, accepted time.Time) {
	s.events++
	if s.oldest.IsZero() {
		s.oldest = accepted
	}
	s.local.push(shardOf(e), accepted)
}

// notify wakes all waiting goroutines. The caller holds mu.
func (s *spill) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// append stores events in the cluster or in the spill.
func (s *spill) append(ctx context.Context, events []*staged) ([]journal.Receipt, error) {
	hold := time.NewTimer(s.j.opts.Hold)
	defer hold.Stop()
	var r *request // request in flight; nil while it must wait
	for {
		s.mu.Lock()
		down := s.isDown()
		bypass, peersUnknown, changed := s.mayBypass(events), time.Now().Before(s.peersUnknownUntil), s.changed
		s.mu.Unlock()
		var done chan error
		switch {
		case down, r != nil && !bypass:
			// The request must not overtake events that were spilled since it was sent.
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

// mayBypass reports whether the events may go to the cluster directly: no event of their
// shards is in the spill of this process or in an announced spill of a peer. The caller
// holds mu.
func (s *spill) mayBypass(events []*staged) bool {
	for _, e := range events {
		if n := shardOf(e.event); n >= 0 && (len(s.local.times[n]) > 0 || s.lowWatermark(n) != 0) {
			return false
		}
	}
	return true
}

// spillEvents stores events in the spill.
func (s *spill) spillEvents(ctx context.Context, events []*staged) ([]journal.Receipt, error) {
	all := make([]event.Event, len(events))
	for i, e := range events {
		all[i] = e.event
	}
	// Count before storing, because the forwarder may be faster.
	now := s.j.opts.Clock()
	s.mu.Lock()
	for _, e := range all {
		s.count(e, now)
	}
	s.mu.Unlock()
	receipts, err := s.journal.Append(ctx, all...)
	s.mu.Lock()
	for i, e := range all {
		// With an error the event may be stored: then the forwarder counts the event.
		if err != nil || receipts[i].Duplicate {
			s.local.remove(shardOf(e), now)
			s.decrement()
		}
	}
	s.notify()
	s.mu.Unlock()
	if err != nil {
		s.requestAnnouncement()
		return nil, fmt.Errorf("the cluster does not answer, and the spill: %w", err)
	}
	s.announced(ctx)
	for i := range receipts {
		receipts[i].Seq = 0 // the sequence in the cluster is not known yet
	}
	return receipts, nil
}

// recount counts the events that were read from the spill and are not counted: an append
// without a known outcome has stored them. The caller holds mu.
func (s *spill) recount(records []journal.Record) {
	events, inShard := uint64(0), map[int]int{}
	for _, r := range records {
		if r.Event.Keys == nil {
			continue
		}
		events++
		n := shardOf(r.Event)
		if inShard[n]++; n >= 0 && inShard[n] > len(s.local.times[n]) {
			s.local.push(n, r.Accepted)
		}
		if s.oldest.IsZero() {
			s.oldest = r.Accepted
		}
	}
	s.events = max(s.events, events)
}

// decrement counts an event that left the spill. An event without a known outcome may leave
// before it is counted. The caller holds mu.
func (s *spill) decrement() {
	if s.events -= min(s.events, 1); s.events == 0 {
		s.oldest = time.Time{}
	}
}

// setDown records whether the cluster answers.
func (s *spill) setDown(down bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != down {
		s.down = down
		s.notify()
		s.j.log.Warn(why, zap.Bool("spilling", down))
		select {
		case s.j.pollNow <- struct{}{}:
		default: // already requested
		}
	}
}

// isDown reports whether appends go to the spill without asking the cluster. Only the
// forwarder asks the cluster then, so the spill must not be empty. The caller holds mu.
func (s *spill) isDown() bool { return s.down && s.events+s.journal.QuarantineCount() > 0 }

// quarantine stores a request in the cluster or in the spill.
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

// run forwards the spill until ctx is done.
func (s *spill) run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { s.forwardEvents(ctx) })
	all.Go(func() { s.forwardRequests(ctx) })
	all.Go(func() { s.keepAnnouncing(ctx) })
	all.Wait()
}

// forwardEvents stores the spilled events in the cluster, in order per partition key, and
// retries for ever.
func (s *spill) forwardEvents(ctx context.Context) {
	const maxPending = 256
	wait := newWait()
	var pending []journal.Record // read and not yet committed; records without keys are already stored
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if len(pending) < maxPending {
			read := ctx
			stop := func() {}
			if len(pending) > 0 { // events that wait for a peer must not wait for more events of this process
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
		if err := s.cursor.Commit(ctx, journal.UpTo(pending[stored-1].Seq)); err != nil {
			if ctx.Err() == nil {
				s.j.log.Error("the spill cannot note what was forwarded; it is forwarded again", zap.Error(err))
			}
			return
		}
		pending = pending[stored:]
	}
}

// forward stores records in the cluster whose shards have no older event in the spill of a
// peer, as many as fit one batch. It removes the keys of the stored records and returns
// their number.
func (s *spill) forward(ctx context.Context, records []journal.Record) (int, error) {
	var all []*staged
	var which []int
	blocked := map[int]bool{}
	taken := map[int]int{}                    // by shard
	reconnects := s.j.conn.Stats().Reconnects // before the lock: a client that reconnects blocks its callers
	s.mu.Lock()
	s.setReconnects(reconnects)
	s.recount(records)
	blind := time.Now().Before(s.peersUnknownUntil)
	for i, r := range records {
		if r.Event.Keys == nil {
			continue
		}
		if n := shardOf(r.Event); n >= 0 {
			// Compare the announced times, so that of two processes that wait for each
			// other one goes first.
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
	if stored, err := s.submitInTurn(ctx, part); err != nil || !stored {
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

// submitInTurn stores the first events of some shards in the cluster. It gives up when a peer
// announces older events of one of the shards: the cluster may take minutes to answer, and
// the peer may have reached the cluster first. The events may be stored then; they are
// duplicates when they are forwarded again.
func (s *spill) submitInTurn(ctx context.Context, events []*staged) (stored bool, err error) {
	turn, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			s.mu.Lock()
			overtaken, changed := s.overtaken(events), s.changed
			s.mu.Unlock()
			if overtaken {
				end()
				return
			}
			select {
			case <-changed:
			case <-turn.Done():
				return
			}
		}
	})
	_, err = s.j.submit(turn, &request{events: events}, nil)
	overtaken := turn.Err() != nil && ctx.Err() == nil
	end()
	watching.Wait()
	if err != nil && overtaken {
		return false, nil
	}
	return err == nil, err
}

// overtaken reports whether a peer has older events than this process of one of the shards of
// the events. The caller holds mu.
func (s *spill) overtaken(events []*staged) bool {
	return slices.ContainsFunc(events, func(e *staged) bool {
		n := shardOf(e.event)
		if n < 0 {
			return false
		}
		low := s.lowWatermark(n)
		return low != 0 && len(s.local.times[n]) > 0 && low < s.local.times[n][0]
	})
}

// forwardRequests stores the spilled quarantined requests in the cluster.
func (s *spill) forwardRequests(ctx context.Context) {
	carried := map[string]bool{} // forwarded requests that may get later receipts
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
				r.ID = "" // a second request of the same ID would count as the first one
			}
			if err == nil {
				_, err = s.j.quarantine(ctx, r)
			}
			if err == nil {
				// The request may have been received again meanwhile.
				carried[own] = true
				err = s.journal.Carried(ctx, own, r.Count)
			}
			if errors.Is(err, journal.ErrNotFound) {
				continue // the spill has discarded the request
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

// depth returns the number of spilled events and requests, and the oldest acceptance time.
func (s *spill) depth() (uint64, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events + s.journal.QuarantineCount(), s.oldest
}

func (s *spill) close() error {
	return errors.Join(s.subscription.Unsubscribe(), s.cursor.Close(), s.journal.Close())
}
