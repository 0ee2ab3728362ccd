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

// Limits of one group: the first bounds the wait of the first request in a burst, the
// second keeps a group within a memtable.
const (
	maxGroupRequests = 1024
	maxGroupBytes    = 4 << 20
	// groupsInFlight is the maximum number of applied groups that wait for a sync. More
	// groups would be smaller, and each has a fixed cost.
	groupsInFlight = 1
)

// request is one change of the store. The committer calls stage for the group that it
// makes; done receives the result, once.
type request struct {
	size  int  // approximate bytes
	grows bool // refused if the journal is full
	stage func(*group) error
	done  chan error
}

// group is the set of requests of one synced write. It keeps these invariants:
//
//  1. The committer looks up the keys in the group and in the store, where every earlier
//     group is visible, also before its sync.
//  2. One batch contains events and their keys.
//  3. The batch is applied, and the next group is made during the sync.
//  4. The syncer handles the groups in order. After the sync of a group it advances the
//     durable sequence, which is the limit for cursors, and answers the requests.
//
// So the answer to a duplicate comes after the sync of its first event, which is in the
// same or an earlier group.
type group struct {
	st            *store
	batch         *pebble.Batch
	now           int64 // nanoseconds since 1970; increasing
	last          journal.Seq
	dedupeEntries map[event.Key]dedupeEntry // added by this group
	removed       map[string]bool           // entries removed by this group
	quarantined
	lookups  *pebble.Iterator // over the entries of earlier groups; nil before the first look-up
	appended []sized          // for the tail
	key      []byte           // scratch
	requests []*request
	size     int
	bytes    uint64 // size of the applied batch
	applied  bool   // the store owns the batch until its sync has ended
}

// find looks up a key in the group and in the store.
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

// put records a key.
func (g *group) put(key event.Key, s dedupeEntry) error {
	g.dedupeEntries[key] = s
	return g.st.window.put(g.batch, key, s, g.now)
}

// appendEvent stages an encoded event after eight bytes for the acceptance time.
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
	// A duplicate may have a key that the first event does not have. The key gets the time
	// of the first event, so that a duplicate does not extend the window.
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

// appendRecord stages an encoded record.
func (g *group) appendRecord(value []byte) (journal.Seq, error) {
	if err := g.set(value); err != nil {
		return 0, err
	}
	r, err := record.Decode(g.last, value)
	g.appended = append(g.appended, sized{r, len(value)})
	return g.last, err
}

// set stages a record with the next sequence, and sets the acceptance time in the first
// eight bytes.
func (g *group) set(value []byte) error {
	g.last++
	binary.BigEndian.PutUint64(value, uint64(g.now))
	g.key = appendEventKey(g.key[:0], g.last)
	return g.batch.Set(g.key, value, nil)
}

// time returns the time of the group.
func (g *group) time() time.Time { return time.Unix(0, g.now).UTC() }

// commit makes groups of requests until the store fails or stop is closed, and returns the
// error of the store, or nil. Commit answers every received request before it returns.
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
		runtime.Gosched() // lets senders of requests run
		g := st.gather(first, requests)
		if len(g.requests) == 0 { // all requests were refused
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

// gather makes a group of the first request and all waiting requests. Gather uses no timer:
// requests collect during the sync of the previous group.
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

// roomIn returns an error for a request that does not fit the journal. Requests may have
// waited since a time with more room.
func (st *store) roomIn(g *group, r *request) error {
	if !r.grows {
		return nil
	}
	return st.room(g.size + r.size)
}

// apply stages all requests and applies the batch. After an error the store must be closed,
// and the staged requests are not stored.
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
	g.bytes = uint64(g.batch.Len()) // Pebble may reuse the memory of the batch
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

// sync waits for the sync of the group, and answers its requests.
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

// store is one opening of the files, until the next failure.
type store struct {
	db       *pebble.DB
	guard    *guard
	clock    func() time.Time
	keepKeys bool           // read the identity keys with the records
	users    sync.WaitGroup // readers of db; added under the journal's mu
	lost     []Range        // known lost ranges, in order
	share    uint64         // limit of the quarantined requests of one source, in bytes
	room     func(bytes int) error
	wrote    func(bytes uint64) // called for each group

	// Used by the committer only.
	window   *window
	last     journal.Seq // newest applied event
	accepted int64       // acceptance time of the newest event, nanoseconds since 1970

	dedupeEntries map[event.Key]dedupeEntry // of the current group

	quotas   map[string]*sourceQuota // by source
	received uint64                  // number of the newest receipt
}
