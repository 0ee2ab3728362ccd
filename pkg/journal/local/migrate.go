package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
	"github.com/postwire/postwire/pkg/journal/seqset"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

// Keys of a migration into this journal. No key of the relay has the prefix.
const (
	carriedPrefix = "transfer/"
	carriedState  = carriedPrefix + "state"      // progress
	carriedRows   = carriedPrefix + "row/"       // sequences of each page in both journals
	unfinished    = carriedPrefix + "unfinished" // exists until the migration is complete
)

// checkFinished refuses an incompletely migrated journal.
func (st *store) checkFinished() error {
	_, err := st.get(valueKey(unfinished))
	if errors.Is(err, journal.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.New("it holds a part of another journal, which 'postwire journal migrate' has not carried to the end: run that again, or set journal.dir to another folder")
}

// source implements transfer.Source on read-only files.
type source struct {
	opts  Options
	lock  *pebble.Lock
	store *store

	oldest   journal.Seq
	repaired journal.Seq
}

// OpenSource opens the journal in opts.Dir for a migration and does not change it. It
// refuses a folder that another process uses.
func OpenSource(opts Options) (transfer.Source, error) {
	opts = opts.withDefaults()
	s, err := openSource(opts)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", opts.Dir, err)
	}
	return s, nil
}

func openSource(opts Options) (s *source, err error) {
	lock, names, err := enter(opts)
	if err != nil {
		return nil, err
	}
	opened := &source{opts: opts, lock: lock}
	defer func() {
		if err != nil {
			s, err = nil, errors.Join(err, opened.Close())
		}
	}()
	s = opened
	if interrupted(names) {
		return nil, errInterrupted
	}
	m, err := readMarker(opts.FS, opts.Dir)
	if err != nil {
		return nil, err
	}
	if s.store, err = openReadOnly(opts, m); err != nil {
		return nil, err
	}
	if err := s.store.checkFinished(); err != nil {
		return nil, err
	}
	if s.oldest, err = s.store.number(metaFirstKey(), 1); err != nil {
		return nil, err
	}
	s.repaired, err = s.store.number(metaRepairedKey(), 0)
	return s, err
}

// openReadOnly opens a journal whose files do not change: all changes stay in memory.
func openReadOnly(opts Options, m marker) (*store, error) {
	opts.FS = newOverlay(opts.FS)
	return newJournal(opts, nil, m).openStore(newGuard(opts.FS))
}

// Close implements io.Closer.
func (s *source) Close() error {
	var err error
	if s.store != nil {
		err = s.store.close()
	}
	return errors.Join(err, s.lock.Close())
}

// Location implements transfer.Source.
func (s *source) Location() string { return "the folder " + s.opts.Dir }

// Range implements transfer.Source.
func (s *source) Range() (oldest, last journal.Seq, events uint64) {
	n := uint64(s.store.last + 1 - s.oldest)
	for _, l := range s.store.lost {
		n -= uint64(max(l.To, s.oldest-1) - max(l.From, s.oldest) + 1)
	}
	return s.oldest, s.store.last, n
}

// entries yields the decoded entries with a prefix, after a key.
func entries[T any](ctx context.Context, st *store, prefix, from []byte, decode func(key, value []byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: after(prefix)})
		if err != nil {
			yield(zero, err)
			return
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err = cmp.Or(ctx.Err(), err); err != nil {
				yield(zero, err)
				return
			}
			item, err := decode(it.Key(), value)
			if err != nil {
				yield(zero, damaged(fmt.Errorf("reading %q: %w", it.Key(), err)))
				return
			}
			if !yield(item, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(zero, damaged(err))
		}
	}
}

// Events implements transfer.Source.
func (s *source) Events(ctx context.Context, from journal.Seq) iter.Seq2[transfer.Event, error] {
	return func(yield func(transfer.Event, error) bool) {
		for r, err := range s.store.recordsFrom(from, s.oldest) {
			var e transfer.Event
			if err = cmp.Or(err, ctx.Err()); err == nil {
				e, err = transfer.Split(r.seq, r.value)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Keys implements transfer.Source. If a key is in two generations, the newer entry comes
// last.
func (s *source) Keys(ctx context.Context) iter.Seq2[transfer.Key, error] {
	now := s.opts.Clock().UnixNano()
	return func(yield func(transfer.Key, error) bool) {
		for k, err := range entries(ctx, s.store, []byte{keySpace}, []byte{keySpace}, func(key, value []byte) (transfer.Key, error) {
			found, err := decodeDedupeEntry(value)
			if len(key) < 9 {
				err = record.ErrTruncated
			}
			if err != nil {
				return transfer.Key{}, err
			}
			return transfer.Key{Key: event.Key(key[9:]), First: time.Unix(0, found.first).UTC(), Seq: found.seq, ID: found.id}, nil
		}) {
			if err == nil && now-k.First.UnixNano() >= int64(s.opts.Window) {
				continue
			}
			if !yield(k, err) {
				return
			}
		}
	}
}

// DeadLetters implements transfer.Source.
func (s *source) DeadLetters(ctx context.Context) iter.Seq2[transfer.Dead, error] {
	return entries(ctx, s.store, []byte{deadSpace}, []byte{deadSpace}, func(key, value []byte) (d transfer.Dead, err error) {
		id, letter, rec, err := deadOf(key, value)
		if err != nil {
			return d, err
		}
		d.Sink, d.Letter = id.Sink, letter
		d.Event, err = transfer.Split(id.Seq, rec)
		return d, err
	})
}

// Dispositions implements transfer.Source.
func (s *source) Dispositions(ctx context.Context) iter.Seq2[transfer.Disposition, error] {
	return entries(ctx, s.store, []byte{dispositionSpace}, []byte{dispositionSpace}, func(key, value []byte) (g transfer.Disposition, err error) {
		id, err := sinkOf(key)
		if err != nil {
			return g, err
		}
		g.Sink = id.Sink
		return g, json.Unmarshal(value, &g.Disposition)
	})
}

// Quarantined implements transfer.Source.
func (s *source) Quarantined(ctx context.Context) iter.Seq2[journal.QuarantinedRequest, error] {
	return entries(ctx, s.store, []byte{quarantineSpace}, []byte{quarantineSpace}, s.store.rejected)
}

// Values implements transfer.Source.
func (s *source) Values(ctx context.Context) iter.Seq2[journal.KVEntry, error] {
	return func(yield func(journal.KVEntry, error) bool) {
		for n, err := range entries(ctx, s.store, []byte{valueSpace}, []byte{valueSpace}, func(key, value []byte) (journal.KVEntry, error) {
			return journal.KVEntry{Key: string(key[1:]), Value: append([]byte(nil), value...)}, nil
		}) {
			if err == nil && len(n.Key) >= len(carriedPrefix) && n.Key[:len(carriedPrefix)] == carriedPrefix {
				continue
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

// Cursors implements transfer.Source.
func (s *source) Cursors(ctx context.Context) iter.Seq2[transfer.Cursor, error] {
	return entries(ctx, s.store, []byte{cursorSpace}, []byte{cursorSpace}, func(key, value []byte) (c transfer.Cursor, err error) {
		c.Name = string(key[1:])
		if c.Committed, c.StartSeq, err = decodeCursor(value); err != nil {
			return c, err
		}
		done, err := s.store.doneEvents(ctx, c.Name, c.Committed)
		if err != nil {
			return c, err
		}
		c.Done = slices.Collect(done.Ranges())
		return c, nil
	})
}

// Unchanged implements transfer.Source: the folder is locked.
func (s *source) Unchanged(context.Context) error { return nil }

// Missing implements transfer.Source.
func (s *source) Missing() []string {
	var missing []string
	lost := 0
	for _, l := range s.store.lost {
		lost += l.Len()
	}
	if lost > 0 {
		missing = append(missing, fmt.Sprintf("%d events that a repair found lost", lost))
	}
	if s.repaired >= s.oldest {
		missing = append(missing, "the note of a repair that positions of sinks were lost: a sink that has none begins where its key start says")
	}
	return missing
}

// target implements transfer.Target on a journal without other users.
type target struct {
	*Journal
	rows int
}

// OpenTarget opens or creates the journal in opts.Dir as the target of a migration. It
// refuses a folder that another process uses.
func OpenTarget(opts Options) (transfer.Target, error) {
	opts.Every = math.MaxInt64 // no expiry during the migration
	opts.MaxBytes, opts.Quarantine = 0, math.MaxUint64
	opts.filling = true
	j, err := Open(opts)
	if err != nil {
		return nil, err
	}
	return &target{Journal: j}, nil
}

// Location implements transfer.Target.
func (t *target) Location() string { return "the folder " + t.opts.Dir }

// State implements transfer.Target.
func (t *target) State(ctx context.Context) ([]byte, error) {
	var state []byte
	err := t.read(ctx, func(st *store) (err error) {
		state, err = st.get(valueKey(carriedState))
		if errors.Is(err, journal.ErrNotFound) {
			state, err = nil, nil
		}
		if err != nil || state != nil {
			return err
		}
		// a sink without deliveries has a cursor, too
		it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{cursorSpace + 1}})
		if err != nil {
			return err
		}
		found := it.First()
		for found && (bytes.Equal(it.Key(), metaLogKey()) || bytes.Equal(it.Key(), metaMarkerKey())) { // every journal has these
			found = it.Next()
		}
		if found {
			err = errors.New("it holds events, or other things, that were not carried into it: move the folder away, or set journal.dir to another one")
		}
		return errors.Join(err, it.Error(), it.Close())
	})
	return state, err
}

// Rows implements transfer.Target.
func (t *target) Rows(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		t.rows = 0
		for n, err := range t.Values(ctx, carriedRows) {
			if t.rows++; !yield(n.Value, err) {
				return
			}
		}
	}
}

// Fit implements transfer.Target.
func (t *target) Fit(items []transfer.Item) int { return len(items) }

// Append implements transfer.Target.
func (t *target) Append(ctx context.Context, items []transfer.Item, makeRow func([]journal.Seq) (row, state []byte)) error {
	last := t.Last()
	places := make([]journal.Seq, len(items))
	records := make([][]byte, len(items))
	size, holes := 0, 0
	for n, i := range items {
		places[n] = last + journal.Seq(n) + 1
		if i.Event == nil {
			if holes++; holes != n+1 || t.Oldest() != last+1 {
				return fmt.Errorf("event %d is missing in the source: this engine keeps no place free between events", i.SourceSeq)
			}
			continue
		}
		e := *i.Event
		e.Keys = nil // the window stores the keys
		records[n] = e.Record()
		size += len(records[n])
	}
	row, state := makeRow(places)
	err := t.do(ctx, size, func(g *group) error {
		for n, rec := range records {
			g.last = places[n]
			if rec != nil {
				g.entry.records = append(g.entry.records, rec)
			}
		}
		if holes > 0 { // as after a removal
			first := binary.BigEndian.AppendUint64(nil, uint64(last)+uint64(holes)+1)
			through := binary.BigEndian.AppendUint64(nil, uint64(last)+uint64(holes))
			if err := errors.Join(g.set(metaFirstKey(), first), g.set(metaLastKey(), through)); err != nil {
				return err
			}
			t.mu.Lock()
			t.oldest = last + journal.Seq(holes) + 1
			t.mu.Unlock()
		}
		err := errors.Join(g.set(valueKey(unfinished), []byte{1}), g.set(valueKey(carriedState), state))
		if row != nil {
			err = errors.Join(err, g.set(valueKey(fmt.Sprintf("%s%010d", carriedRows, t.rows)), row))
		}
		return err
	})
	if err == nil && row != nil {
		t.rows++
	}
	return err
}

// Clear implements transfer.Target. Keys stay; Put replaces them.
func (t *target) Clear(ctx context.Context) error {
	return t.do(ctx, 64, func(g *group) error {
		var err error
		for _, space := range []byte{doneSpace, cursorSpace, deadSpace, dispositionSpace, identitySpace, orderSpace, quarantineSpace} {
			err = errors.Join(err, g.deleteRange([]byte{space}, []byte{space + 1}))
		}
		carried := valueKey(carriedPrefix)
		clear(g.st.quotas)
		return errors.Join(err, g.deleteRange([]byte{valueSpace}, carried), g.deleteRange(after(carried), []byte{valueSpace + 1}))
	})
}

// Put implements transfer.Target.
func (t *target) Put(ctx context.Context, things transfer.Metadata) error {
	type carried struct {
		identity
		journal.QuarantinedRequest
		head []byte
	}
	var all []keyValue
	rejected := make([]carried, len(things.Quarantined))
	size := 0
	put := func(key []byte, value any) error {
		b, err := json.Marshal(value)
		all = append(all, keyValue{key, b})
		return err
	}
	for _, d := range things.Dead {
		letter, err := json.Marshal(d.Letter)
		if err != nil {
			return err
		}
		d.Event.Keys = nil
		all = append(all, keyValue{sinkKey(deadSpace, journal.DeliveryID{Sink: d.Sink, Seq: d.Letter.Seq}), joinDead(letter, d.Event.Record())})
	}
	for _, u := range things.Dispositions {
		if err := put(sinkKey(dispositionSpace, journal.DeliveryID{Sink: u.Sink, Seq: u.From}), u.Disposition); err != nil {
			return err
		}
	}
	for n, q := range things.Quarantined {
		i := identity(q.Identity())
		head, err := encodeHead(i, q)
		if err == nil {
			err = t.bodies.write(q.ID, q.Body)
		}
		if err != nil {
			return err
		}
		rejected[n] = carried{i, q.WithDefaults(t.opts.Clock()), head}
		size += len(head)
	}
	for _, n := range things.Values {
		all = append(all, keyValue{valueKey(n.Key), n.Value})
	}
	for _, c := range things.Cursors {
		done := seqset.Of(c.Committed, c.Done)
		all = append(all, keyValue{cursorKey(c.Name), encodeCursor(done.Floor(), c.StartSeq)})
		_, pages := donePages(c.Name, done)
		all = append(all, slices.DeleteFunc(pages, func(p keyValue) bool { return p.value == nil })...)
	}
	for _, e := range all {
		size += len(e.value)
	}
	return t.do(ctx, size, func(g *group) error {
		for _, e := range all {
			if err := g.set(e.key, e.value); err != nil {
				return err
			}
		}
		for _, q := range rejected {
			if err := g.putRejected(q.identity, q.QuarantinedRequest, q.head); err != nil {
				return err
			}
		}
		for _, k := range things.Keys {
			if err := g.putLater(k.Key, dedupeEntry{k.First.UnixNano(), k.Seq, k.ID}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Finish implements transfer.Target.
func (t *target) Finish(ctx context.Context) error {
	return t.do(ctx, 64, func(g *group) error {
		rows := valueKey(carriedRows)
		return errors.Join(g.deleteRange(rows, after(rows)), g.delete(valueKey(unfinished)))
	})
}
