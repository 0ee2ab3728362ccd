package local

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Limits of one group: the first bounds the wait of the first request in a burst, the
// second bounds the memory of a group.
const (
	maxGroupRequests = 1024
	maxGroupBytes    = 4 << 20
)

// request is one change of the journal. The committer calls stage for the group that it
// makes; done receives the result, once.
type request struct {
	size  int  // approximate bytes
	grows bool // refused if the journal is full
	stage func(*group) error
	done  chan error
}

// group is the set of requests of one synced write, which is one frame of the log. The group
// keeps these invariants:
//
//  1. The committer looks up the keys in the group, in earlier groups that are not applied
//     yet, and in the index.
//  2. One entry contains the events of a request with their keys, and all its other changes.
//  3. The next group collects requests during the sync.
//  4. The writer handles the groups in order: it writes and syncs the frame, applies the
//     changes to the index, advances the durable sequence, which is the limit for cursors,
//     and answers the requests. So the index never has what the log may lose.
//
// So the answer to a duplicate comes after the sync of its first event, which is in the
// same or an earlier group.
type group struct {
	st            *store
	batch         *pebble.Batch // changes of the index
	now           int64         // nanoseconds since 1970; increasing
	last          journal.Seq
	dedupeEntries map[event.Key]dedupeEntry // added by this group
	removed       map[string]bool           // entries removed by this group
	quarantined
	appended []sized // for the tail
	requests []*request
	size     int

	entry   entry  // of the request that is staged
	entries []byte // of the requests that are staged
	events  groupEvents

	counted int   // bytes of entries that store.staged has
	err     error // of the staged requests

	applied chan struct{} // closed when the index has the group, or the store has failed
}

// find looks up a key in the group, in the groups before and in the index.
func (g *group) find(key event.Key) (dedupeEntry, bool, error) {
	if s, ok := g.dedupeEntries[key]; ok {
		return s, true, nil
	}
	for _, before := range slices.Backward(g.st.unapplied) {
		if s, ok := before.dedupeEntries[key]; ok {
			return s, g.st.window.holds(s, g.now), nil
		}
	}
	return g.st.window.find(g.st.db, key, g.now)
}

// put records a key of an event of this entry.
func (g *group) put(key event.Key, s dedupeEntry) error {
	g.dedupeEntries[key] = s
	return g.st.window.put(g.batch, key, s, g.now)
}

// putLater records a key of an earlier event.
func (g *group) putLater(key event.Key, s dedupeEntry) error {
	added := s.appendTo(binary.BigEndian.AppendUint64(nil, uint64(g.now)))
	g.entry.changes = appendChange(g.entry.changes, changeKey, []byte(key), added)
	return g.put(key, s)
}

// set, delete and deleteRange change the index, and record the change in the log.
func (g *group) set(key, value []byte) error {
	g.entry.changes = appendChange(g.entry.changes, changeSet, key, value)
	return g.batch.Set(key, value, nil)
}

func (g *group) delete(key []byte) error {
	g.entry.changes = appendChange(g.entry.changes, changeDelete, key)
	return g.batch.Delete(key, nil)
}

func (g *group) deleteRange(from, to []byte) error {
	g.entry.changes = appendChange(g.entry.changes, changeDeleteRange, from, to)
	return g.batch.DeleteRange(from, to, nil)
}

// waitApplied waits until the index has all earlier groups.
func (g *group) waitApplied() error {
	for _, before := range g.st.unapplied {
		<-before.applied
	}
	return g.st.guard.failure()
}

// get returns an entry of the index as of the group before; see store.get.
func (g *group) get(key []byte) ([]byte, error) {
	if err := g.waitApplied(); err != nil {
		return nil, err
	}
	return g.st.get(key)
}

// iterate iterates over the index as of the group before.
func (g *group) iterate(from, to []byte) (*pebble.Iterator, error) {
	if err := g.waitApplied(); err != nil {
		return nil, err
	}
	return g.st.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
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
		g.appendRecord(value)
		original = dedupeEntry{first: g.now, seq: g.last, id: e.CloudEvent.ID()}
		e.SourceName = e.Keys[0].Source()
		if !g.st.keepKeys {
			e.Keys = nil
		}
		g.appended = append(g.appended, sized{journal.Record{Seq: g.last, Accepted: g.time(), Event: e}, len(value)})
	}
	// A duplicate may have a key that the first event does not have. The key gets the time
	// of the first event, so that a duplicate does not extend the window.
	put := g.put
	if duplicate {
		put = g.putLater
	}
	for _, key := range unseen {
		if err := put(key, original); err != nil {
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

// appendRecord stages a record with the next sequence, and sets the acceptance time in the
// first eight bytes.
func (g *group) appendRecord(value []byte) {
	g.last++
	binary.BigEndian.PutUint64(value, uint64(g.now))
	g.entry.records = append(g.entry.records, value)
}

// time returns the time of the group.
func (g *group) time() time.Time { return time.Unix(0, g.now).UTC() }

// commit makes groups of requests until the store fails or stop is closed, and returns the
// error of the store, or nil. Commit answers every received request before it returns.
func (st *store) commit(requests <-chan *request, stop <-chan struct{}, synced func(*group)) error {
	groups := make(chan *group) // without a buffer: a group takes requests until the writer is ready for it
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for g := range groups {
			g.finish(synced)
		}
	}()
	defer func() {
		close(groups)
		<-finished
	}()
	for {
		select {
		case first := <-requests:
			runtime.Gosched() // lets senders of requests run
			st.collect(first, requests, groups)
		case <-st.guard.failed:
			return st.guard.failure()
		case <-stop:
			return nil
		}
	}
}

// collect makes a group of the first request and of the requests that arrive until the writer
// takes the group. Collect uses no timer: requests collect while the writer syncs the group
// before.
func (st *store) collect(first *request, requests <-chan *request, groups chan<- *group) {
	g := st.newGroup()
	g.addRequest(first)
	for {
		for waiting := true; waiting && !g.full(); {
			select {
			case r := <-requests:
				g.addRequest(r)
			default:
				waiting = false
			}
		}
		if len(g.requests) == 0 { // all requests were refused
			g.drop()
			return
		}
		if err := g.end(); err != nil {
			st.guard.fail(err)
		}
		more := requests
		if g.full() {
			more = nil
		}
		select {
		case r := <-more:
			g.addRequest(r)
		case groups <- g:
			st.unapplied = append(st.unapplied, g)
			return
		}
	}
}

func (st *store) newGroup() *group {
	st.reuse()
	return &group{
		st: st, batch: st.db.NewBatch(), last: st.last,
		now:           max(st.clock().UnixNano(), st.accepted),
		dedupeEntries: st.newMap(),
		entries:       st.newEntries(),
		applied:       make(chan struct{}),
	}
}

// full reports whether the group takes no more requests.
func (g *group) full() bool {
	return len(g.requests) >= maxGroupRequests || g.size >= maxGroupBytes || g.err != nil
}

// addRequest adds a request to the group, or refuses the request.
func (g *group) addRequest(r *request) {
	if err := g.st.roomIn(g, r); err != nil {
		r.done <- err
		return
	}
	g.requests = append(g.requests, r)
	g.size += r.size
	if g.err = cmp.Or(g.err, g.st.guard.failure()); g.err != nil {
		return
	}
	before := g.last
	if g.err = r.stage(g); g.err == nil {
		g.err = g.endEntry(before)
	}
}

// drop ends a group without requests.
func (g *group) drop() {
	if err := g.batch.Close(); err != nil {
		g.st.guard.fail(fmt.Errorf("closing a batch: %w", err))
	}
	g.st.spareMaps = append(g.st.spareMaps, g.dedupeEntries)
	g.st.spareEntries = append(g.st.spareEntries, g.entries[:0])
}

// end makes the group ready for the writer. A group that takes more requests ends again.
// After an error the store must be closed, and the staged requests are not stored.
func (g *group) end() error {
	if g.err != nil {
		return g.err
	}
	if err := g.st.window.record(g.batch); err != nil {
		return err
	}
	g.st.last, g.st.accepted = g.last, g.now
	g.st.staged.Add(int64(len(g.entries) - g.counted))
	g.counted = len(g.entries)
	return nil
}

// reuse keeps the memory of the groups that are applied for new groups.
func (st *store) reuse() {
	n := 0
	for ; n < len(st.unapplied); n++ {
		g := st.unapplied[n]
		select {
		case <-g.applied:
		default:
			st.unapplied = slices.Delete(st.unapplied, 0, n)
			return
		}
		clear(g.dedupeEntries)
		st.spareMaps = append(st.spareMaps, g.dedupeEntries)
		if cap(g.entries) <= maxGroupBytes {
			st.spareEntries = append(st.spareEntries, g.entries[:0])
		}
	}
	st.unapplied = slices.Delete(st.unapplied, 0, n)
}

func (st *store) newMap() map[event.Key]dedupeEntry {
	if n := len(st.spareMaps); n > 0 {
		m := st.spareMaps[n-1]
		st.spareMaps = st.spareMaps[:n-1]
		return m
	}
	return map[event.Key]dedupeEntry{}
}

func (st *store) newEntries() []byte {
	if n := len(st.spareEntries); n > 0 {
		b := st.spareEntries[n-1]
		st.spareEntries = st.spareEntries[:n-1]
		return b
	}
	return nil
}

// roomIn returns an error for a request that does not fit the journal. Requests may have
// waited since a time with more room.
func (st *store) roomIn(g *group, r *request) error {
	if !r.grows {
		return nil
	}
	return st.room(st, g.size+r.size)
}

// add counts the events of an entry.
func (m *groupEvents) add(e *entry) error {
	first, err := record.Accepted(e.records[0]) // a migration sets the time
	if err != nil {
		return err
	}
	last, err := record.Accepted(e.records[len(e.records)-1])
	if err != nil {
		return err
	}
	if m.events == 0 {
		m.first, m.oldest = e.seq, first.UnixNano()
	}
	m.events += len(e.records)
	m.newest = last.UnixNano()
	return nil
}

// endEntry adds the staged changes of a request to the entries of the group.
func (g *group) endEntry(before journal.Seq) error {
	e := &g.entry
	if len(e.records) == 0 && len(e.changes) == 0 {
		return nil // a duplicate
	}
	if e.seq = g.last; len(e.records) > 0 {
		e.seq = g.last - journal.Seq(len(e.records)) + 1
		if err := g.events.add(e); err != nil {
			return err
		}
	}
	if e.seq < before {
		return fmt.Errorf("the sequence went from %d to %d", before, e.seq)
	}
	g.entries = e.appendTo(g.entries)
	clear(e.records)
	e.records, e.changes = e.records[:0], e.changes[:0]
	return nil
}

// finish writes the group and answers its requests.
func (g *group) finish(synced func(*group)) {
	err := g.st.guard.failure()
	if err == nil {
		err = g.write()
		g.st.staged.Add(-int64(g.counted))
		if err != nil {
			g.st.guard.fail(err)
		}
		err = g.st.guard.failure() // also of the index
	}
	if err := g.batch.Close(); err != nil {
		g.st.guard.fail(fmt.Errorf("closing a batch: %w", err))
	}
	close(g.applied)
	if err != nil {
		err = fmt.Errorf("%w: %w", journal.ErrUnavailable, err)
	} else {
		synced(g)
	}
	for _, r := range g.requests {
		r.done <- err
	}
}

// write writes the entries to the log, syncs them, and applies the changes to the index.
func (g *group) write() error {
	if len(g.entries) == 0 {
		return nil
	}
	l := g.st.segments
	rotated := false
	if g.st.rotate.Swap(false) || l.full(len(g.entries)) {
		old, err := l.rotate()
		if err != nil {
			return err
		}
		if err := g.batch.Set(segmentKey(old.number), old.appendTo(nil), nil); err != nil {
			return err
		}
		rotated = true
	}
	at, err := l.write(g.entries, g.events)
	if err != nil {
		return err
	}
	s := l.active().segmentInfo
	if g.events.events > 0 && (l.sparse == 0 || at-l.sparse >= sparseBytes) {
		l.sparse = max(at, 1)
		if err := g.batch.Set(eventKey(g.events.first), position{s.number, at, g.events.oldest}.append(nil), nil); err != nil {
			return err
		}
	}
	if err := g.batch.Set(metaLogKey(), appendLogPosition(nil, s, l.generation), nil); err != nil {
		return err
	}
	if err := g.st.db.Apply(g.batch, pebble.NoSync); err != nil {
		return fmt.Errorf("writing to the index: %w", err)
	}
	if rotated {
		g.st.flush(s.number)
	}
	return nil
}

// flush writes the index to the disk in the background, complete through the segments
// before a number.
func (st *store) flush(number uint32) {
	done, err := st.db.AsyncFlush()
	if err != nil {
		st.guard.fail(fmt.Errorf("flushing the index: %w", err))
		return
	}
	st.flushes.Go(func() {
		select {
		case <-done:
			if st.guard.failure() == nil {
				st.flushed.Store(max(st.flushed.Load(), number))
				st.rotated()
			}
		case <-st.guard.failed:
		}
	})
}

// store is one opening of the files, until the next failure.
type store struct {
	db       *pebble.DB // the index
	segments *segmentLog
	guard    *guard
	clock    func() time.Time
	keepKeys bool           // read the identity keys with the records
	users    sync.WaitGroup // readers of db and segments; added under the journal's mu
	lost     []Range        // known lost ranges, in order
	share    uint64         // limit of the quarantined requests of one source, in bytes
	room     func(st *store, bytes int) error
	rotated  func() // a segment can be removed
	bodies   *bodies

	staged  atomic.Int64  // bytes of groups that are not in the log yet
	rotate  atomic.Bool   // the next write begins a segment
	flushed atomic.Uint32 // the index on the disk is complete through the segments before this one
	flushes sync.WaitGroup

	// Used by the committer only.
	window    *window
	last      journal.Seq // newest staged event
	accepted  int64       // acceptance time of the newest event, nanoseconds since 1970
	unapplied []*group    // staged and maybe not in the index, in order

	spareMaps    []map[event.Key]dedupeEntry
	spareEntries [][]byte

	quotas   map[string]*sourceQuota // by source
	received uint64                  // number of the newest receipt
}

// close closes the files. Nothing uses the store any more.
func (st *store) close() error {
	clean := st.guard.failure() == nil
	err := st.segments.close(clean)
	st.flushes.Wait()
	st.window.stored.stop()
	return errors.Join(err, st.db.Close())
}
