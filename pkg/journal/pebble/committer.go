package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Limits of one group. The first keeps a burst from making the first of it
// wait for the last; the second keeps a group within a memtable.
const (
	maxGroupRequests = 1024
	maxGroupBytes    = 4 << 20
	// groupsInFlight is how many groups may wait, applied, for the one before
	// them to be synced. More would be smaller ones, each with its own price.
	groupsInFlight = 1
)

// request is one change of the store, staged into the group that is being
// made. Stage runs in the committer alone; done gets the outcome, once.
type request struct {
	size  int  // bytes, about
	grows bool // it is refused where there is no room for it
	stage func(*group) error
	done  chan error
}

// group is what is written with one sync.
//
// The order of things is what makes the promise hold:
//
//  1. The committer looks the keys up, in the group itself and in the store,
//     where every earlier group is visible though perhaps not yet synced.
//  2. Events and keys go into one batch, so that neither is ever without the
//     other.
//  3. The batch is applied, and the next group is made while it is synced.
//  4. The syncer takes the groups in order. Only after a group's sync does it
//     move the durable place, which is as far as cursors see, and answer.
//
// A duplicate's answer therefore comes no earlier than its original's: the
// original is in the same group or in an earlier one.
type group struct {
	st            *store
	batch         *pebble.Batch
	now           int64 // nanoseconds since 1970; never less than in the group before
	last          journal.Seq
	dedupeEntries map[event.Key]dedupeEntry // made by this group
	removed       map[string]bool           // entries removed by this group
	quarantined
	lookups  *pebble.Iterator // over those of earlier groups; nil until the first
	appended []sized          // for the tail
	key      []byte           // scratch
	requests []*request
	size     int
	bytes    uint64 // of the batch, where it is applied
	applied  bool   // the batch is the store's until its sync has been waited for
}

// find looks a key up in the group and in the store.
func (g *group) find(key event.Key) (dedupeEntry, bool, error) {
	if s, ok := g.dedupeEntries[key]; ok {
		return s, true, nil
	}
	if g.lookups == nil {
		var err error
		if g.lookups, err = g.st.window.lookups(g.st.db); err != nil {
			return dedupeEntry{}, false, err
		}
	}
	return g.st.window.find(g.lookups, key, g.now)
}

// put remembers a key.
func (g *group) put(key event.Key, s dedupeEntry) error {
	g.dedupeEntries[key] = s
	return g.st.window.put(g.batch, key, s, g.now)
}

// appendEvent stages one encoded event: eight bytes that are free for the time
// of acceptance, then the event.
func (g *group) appendEvent(e event.Event, value []byte) (journal.Receipt, error) {
	var original dedupeEntry
	unseen := make([]event.Key, 0, 4)
	duplicate := false
	for _, key := range e.Keys {
		s, ok, err := g.find(key)
		if err != nil {
			return journal.Receipt{}, fmt.Errorf("looking up an identity key: %w", err)
		}
		switch {
		case !ok:
			unseen = append(unseen, key)
		case !duplicate:
			original, duplicate = s, true
		}
	}
	if !duplicate {
		if err := g.set(value); err != nil {
			return journal.Receipt{}, err
		}
		original = dedupeEntry{first: g.now, seq: g.last, id: e.CloudEvent.ID()}
		e.SourceName = e.Keys[0].Source()
		if !g.st.keepKeys {
			e.Keys = nil
		}
		g.appended = append(g.appended, sized{journal.Record{Seq: g.last, Accepted: g.time(), Event: e}, len(value)})
	}
	// A duplicate may bring a key that its original did not have. It is
	// remembered as seen with the original: a duplicate extends nothing.
	for _, key := range unseen {
		if err := g.put(key, original); err != nil {
			return journal.Receipt{}, err
		}
	}
	return journal.Receipt{Seq: original.seq, ID: original.id, Duplicate: duplicate}, nil
}

// appendAll stages encoded events and fills in their receipts.
func (g *group) appendAll(events []event.Event, values [][]byte, receipts []journal.Receipt) (err error) {
	for i, e := range events {
		if receipts[i], err = g.appendEvent(e, values[i]); err != nil {
			return err
		}
	}
	return nil
}

// appendRecord stages a record of which only the encoding is at hand.
func (g *group) appendRecord(value []byte) (journal.Seq, error) {
	if err := g.set(value); err != nil {
		return 0, err
	}
	r, err := record.Decode(g.last, value)
	g.appended = append(g.appended, sized{r, len(value)})
	return g.last, err
}

// set stages a record at the next place. The first eight bytes of its encoding
// are free for the time of acceptance.
func (g *group) set(value []byte) error {
	g.last++
	binary.BigEndian.PutUint64(value, uint64(g.now))
	g.key = appendEventKey(g.key[:0], g.last)
	return g.batch.Set(g.key, value, nil)
}

// time is the moment at which the group is made.
func (g *group) time() time.Time { return time.Unix(0, g.now).UTC() }

// commit makes groups out of requests until the store fails or stop is
// closed, and returns why the store failed, or nil. Every request it took has
// been answered when it returns.
func (st *store) commit(requests <-chan *request, stop <-chan struct{}, synced func(*group)) error {
	groups := make(chan *group, groupsInFlight)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for g := range groups {
			g.sync(synced)
		}
	}()
	defer func() {
		close(groups)
		<-finished
	}()
	for {
		var first *request
		select {
		case first = <-requests:
		case <-st.guard.failed:
			return st.guard.failure()
		case <-stop:
			return nil
		}
		runtime.Gosched() // who is about to hand something over, does
		g := st.gather(first, requests)
		if len(g.requests) == 0 { // there was no room for any
			if err := g.batch.Close(); err != nil {
				st.guard.fail(fmt.Errorf("closing a batch: %w", err))
			}
			continue
		}
		if err := g.apply(); err != nil {
			st.guard.fail(err)
		}
		groups <- g
	}
}

// gather makes a group of the first request and of all that wait behind it.
// There is no timer: while one group is synced, the next one collects.
func (st *store) gather(first *request, requests <-chan *request) *group {
	clear(st.dedupeEntries)
	g := &group{
		st: st, batch: st.db.NewBatch(), last: st.last,
		now:           max(st.clock().UnixNano(), st.accepted),
		dedupeEntries: st.dedupeEntries,
	}
	for r := first; ; {
		if err := st.roomIn(g, r); err != nil {
			r.done <- err
		} else {
			g.requests = append(g.requests, r)
			g.size += r.size
		}
		if len(g.requests) == maxGroupRequests || g.size >= maxGroupBytes {
			return g
		}
		select {
		case r = <-requests:
		default:
			return g
		}
	}
}

// roomIn returns an error where a request is to be refused for want of room. Many
// may wait here that came when there was some.
func (st *store) roomIn(g *group, r *request) error {
	if !r.grows {
		return nil
	}
	return st.room(g.size + r.size)
}

// apply stages all requests and makes the batch visible in the store. Its
// error is the store's end: what was staged before it must not be kept.
func (g *group) apply() error {
	if err := g.st.guard.failure(); err != nil {
		return err
	}
	if err := errors.Join(g.stage(), g.st.window.record(g.batch)); err != nil {
		return err
	}
	g.st.last, g.st.accepted = g.last, g.now
	if g.batch.Empty() {
		return nil
	}
	g.bytes = uint64(g.batch.Len()) // the engine may take the batch's memory
	if err := g.st.db.ApplyNoSyncWait(g.batch, pebble.Sync); err != nil {
		return fmt.Errorf("writing to the log: %w", err)
	}
	g.applied = true
	g.st.wrote(g.bytes)
	return nil
}

func (g *group) stage() (err error) {
	defer func() {
		if g.lookups != nil {
			err = errors.Join(err, g.lookups.Close())
		}
	}()
	for _, r := range g.requests {
		if err := r.stage(g); err != nil {
			return err
		}
	}
	return nil
}

// sync waits until the group is on stable storage, and answers its requests.
func (g *group) sync(synced func(*group)) {
	if g.applied {
		if err := g.batch.SyncWait(); err != nil {
			g.st.guard.fail(fmt.Errorf("syncing the log: %w", err))
		}
	}
	err := g.st.guard.failure()
	if err != nil {
		err = fmt.Errorf("%w: %w", journal.ErrUnavailable, err)
	} else {
		synced(g)
	}
	for _, r := range g.requests {
		r.done <- err
	}
	if err := g.batch.Close(); err != nil {
		g.st.guard.fail(fmt.Errorf("closing a batch: %w", err))
	}
}

// store is one opening of the files: from Open, or from the recovery after a
// failure, to the next failure.
type store struct {
	db       *pebble.DB
	guard    *guard
	clock    func() time.Time
	keepKeys bool           // give records back with their identity keys
	users    sync.WaitGroup // who read from db; added to under the journal's mu
	lost     []Range        // known to be, in order
	share    uint64         // bytes of the quarantined requests of one source
	room     func(bytes int) error
	wrote    func(bytes uint64) // is told of each group

	// The committer's own.
	window   *window
	last     journal.Seq // newest event applied
	accepted int64       // when it was accepted, nanoseconds since 1970

	dedupeEntries map[event.Key]dedupeEntry // of the group that is being made

	quotas   map[string]*sourceQuota // of each source in the quarantine
	received uint64                  // newest number of a receipt
}
