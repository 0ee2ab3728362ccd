package local

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// change passes a required change to the committer, and retries while storage fails.
func (j *Journal) change(ctx context.Context, stage func(*group) error) error {
	for {
		err := j.do(ctx, 64, stage)
		if !errors.Is(err, journal.ErrUnavailable) {
			return err
		}
		// Wait for the store, ctx or Close.
		if err := j.read(ctx, func(*store) error { return nil }); err != nil {
			return err
		}
	}
}

// get returns a copy of an entry. Its error may wrap journal.ErrNotFound.
func (st *store) get(key []byte) ([]byte, error) {
	value, closer, err := st.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, journal.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), value...), closer.Close()
}

// take removes an entry and returns its value. An entry that an earlier request of the
// group removed is missing, although the store still shows the entry.
func (g *group) take(key []byte) ([]byte, error) {
	if g.removed[string(key)] {
		return nil, journal.ErrNotFound
	}
	value, err := g.get(key)
	if err != nil {
		return nil, err
	}
	if g.removed == nil {
		g.removed = map[string]bool{}
	}
	g.removed[string(key)] = true
	return value, g.delete(key)
}

// recordDisposition stores a disposition, and merges it with an adjacent earlier
// disposition.
func (g *group) recordDisposition(sink string, u journal.Disposition) (err error) {
	it, err := g.iterate(sinkPrefix(dispositionSpace, sink), after(sinkPrefix(dispositionSpace, sink)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.SeekLT(sinkKey(dispositionSpace, journal.DeliveryID{Sink: sink, Seq: u.From})) {
		var before journal.Disposition
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := json.Unmarshal(value, &before); err != nil {
			return err
		}
		if before.To+1 == u.From && before.Reason == u.Reason && u.RedeliveredAs == 0 {
			u.From = before.From
		}
	}
	value, err := json.Marshal(u)
	if err != nil {
		return err
	}
	return g.set(sinkKey(dispositionSpace, journal.DeliveryID{Sink: sink, Seq: u.From}), value)
}

// deadOf decodes a dead letter except for its record.
func deadOf(key, value []byte) (id journal.DeliveryID, letter journal.DeadLetter, rec []byte, err error) {
	if id, err = sinkOf(key); err != nil {
		return id, letter, nil, err
	}
	text, rec, err := splitDead(value)
	if err == nil {
		err = json.Unmarshal(text, &letter)
	}
	return id, letter, rec, err
}

func decodeDead(key, value []byte) (d journal.Dead, err error) {
	id, letter, rec, err := deadOf(key, value)
	if err != nil {
		return d, err
	}
	d.Sink, d.Letter = id.Sink, letter
	d.Record, err = record.Decode(id.Seq, rec)
	d.Event.Keys = nil
	return d, err
}

// joinDead makes the value of a dead letter.
func joinDead(letter, rec []byte) []byte {
	return append(record.AppendString(nil, string(letter)), rec...)
}

// splitDead splits the value of a dead letter.
func splitDead(value []byte) (letter, rec []byte, err error) {
	r := &record.Reader{B: value}
	letter = r.Bytes()
	return letter, r.B, r.Err
}

// DeadLetters implements journal.DeadLetterStore.
func (j *Journal) DeadLetters(ctx context.Context, after journal.DeliveryID) iter.Seq2[journal.Dead, error] {
	prefix := []byte{deadSpace}
	start := prefix
	if after != (journal.DeliveryID{}) {
		start = append(sinkKey(deadSpace, after), 0)
	}
	return scan(ctx, j, prefix, start, func(_ *store, key, value []byte) (journal.Dead, int, error) {
		d, err := decodeDead(key, value)
		return d, 0, err
	})
}

// DeadLetter implements journal.DeadLetterStore.
func (j *Journal) DeadLetter(ctx context.Context, id journal.DeliveryID) (d journal.Dead, err error) {
	key := sinkKey(deadSpace, id)
	err = j.read(ctx, func(st *store) error {
		value, err := st.get(key)
		if err != nil {
			return err
		}
		d, err = decodeDead(key, value)
		return err
	})
	if err != nil {
		return d, fmt.Errorf("dead letter %d of sink %s: %w", id.Seq, id.Sink, err)
	}
	return d, nil
}

// resolveDeadLetter removes a dead letter and stages a change in one atomic write.
func (j *Journal) resolveDeadLetter(ctx context.Context, id journal.DeliveryID, do func(g *group) error) error {
	var missing error
	err := j.change(ctx, func(g *group) error {
		_, err := g.take(sinkKey(deadSpace, id))
		if missing = err; errors.Is(err, journal.ErrNotFound) {
			return nil // an error of the request, not of the store
		}
		if err != nil {
			return err
		}
		return do(g)
	})
	if err == nil { // otherwise the committer may still write missing
		err = missing
	}
	if err != nil {
		return fmt.Errorf("dead letter %d of sink %s: %w", id.Seq, id.Sink, err)
	}
	return nil
}

// Redeliver implements journal.DeadLetterStore.
func (j *Journal) Redeliver(ctx context.Context, id journal.DeliveryID) (journal.Seq, error) {
	if err := j.Check(); err != nil {
		return 0, fmt.Errorf("retrying: %w", err)
	}
	value, redelivered, err := j.redelivery(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("dead letter %d of sink %s: %w", id.Seq, id.Sink, err)
	}
	var s journal.Seq
	err = j.resolveDeadLetter(ctx, id, func(g *group) error {
		g.appendRecord(value)
		s = g.last
		redelivered.Seq, redelivered.Accepted = s, g.time()
		g.appended = append(g.appended, sized{redelivered, len(value)})
		return g.recordDisposition(id.Sink, journal.Disposition{From: id.Seq, To: id.Seq, Reason: journal.Redelivered, At: g.time(), RedeliveredAs: s})
	})
	if err != nil {
		return 0, err
	}
	return s, nil
}

// redelivery returns the record of a redelivered dead letter, encoded and decoded.
func (j *Journal) redelivery(ctx context.Context, id journal.DeliveryID) (value []byte, redelivered journal.Record, err error) {
	var stored []byte
	err = j.read(ctx, func(st *store) (err error) {
		stored, err = st.get(sinkKey(deadSpace, id))
		return err
	})
	if err != nil {
		return nil, redelivered, err
	}
	_, rec, err := splitDead(stored)
	if err != nil {
		return nil, redelivered, err
	}
	r, encoded, err := record.Split(id.Seq, rec)
	if err != nil {
		return nil, redelivered, err
	}
	// Without identity keys: they belong to the original event.
	if encoded, err = record.Sourced(encoded, r.Event.Keys); err != nil {
		return nil, redelivered, err
	}
	value = append(record.AppendAddress(nil, id.Sink, cmp.Or(r.OriginSeq, id.Seq)), encoded...)
	redelivered, err = record.Decode(id.Seq, value)
	return value, redelivered, err
}

// Drop implements journal.DeadLetterStore.
func (j *Journal) Drop(ctx context.Context, id journal.DeliveryID) error {
	return j.resolveDeadLetter(ctx, id, func(g *group) error {
		return g.recordDisposition(id.Sink, journal.Disposition{From: id.Seq, To: id.Seq, Reason: journal.DroppedByOperator, At: g.time()})
	})
}

// Disposition implements journal.DeadLetterStore.
func (j *Journal) Disposition(ctx context.Context, id journal.DeliveryID) (u journal.Disposition, err error) {
	prefix := sinkPrefix(dispositionSpace, id.Sink)
	err = j.read(ctx, func(st *store) error {
		it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
		if err != nil {
			return err
		}
		// The last range that begins at or before the event.
		if it.SeekLT(append(sinkKey(dispositionSpace, id), 0)) {
			err = json.Unmarshal(it.Value(), &u)
		}
		return errors.Join(err, it.Error(), it.Close())
	})
	if err == nil && u.To < id.Seq {
		err = journal.ErrNotFound
	}
	if err != nil {
		return journal.Disposition{}, fmt.Errorf("what sink %s was not given: %w", id.Sink, err)
	}
	return u, nil
}

// PutValue implements journal.KV.
func (j *Journal) PutValue(ctx context.Context, key string, value []byte) error {
	err := j.change(ctx, func(g *group) error { return g.set(valueKey(key), value) })
	if err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// DeleteValue implements journal.KV.
func (j *Journal) DeleteValue(ctx context.Context, key string) error {
	err := j.change(ctx, func(g *group) error { return g.delete(valueKey(key)) })
	if err != nil {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	return nil
}

// Values implements journal.KV.
func (j *Journal) Values(ctx context.Context, prefix string) iter.Seq2[journal.KVEntry, error] {
	key := valueKey(prefix)
	return scan(ctx, j, key, key, func(_ *store, key, value []byte) (journal.KVEntry, int, error) {
		return journal.KVEntry{Key: string(key[1:]), Value: append([]byte(nil), value...)}, 0, nil
	})
}

// maxPageBytes limits the values of one page, except for a single larger value: a
// quarantined request contains a whole body.
const maxPageBytes = 1 << 20

// scan yields the decoded entries with a prefix, in pages, so that a slow caller does not
// hold the store. Decode returns the bytes that it has read besides the entry. Scan ends
// with ctx.
func scan[T any](ctx context.Context, j *Journal, prefix, start []byte, decode func(st *store, key, value []byte) (item T, more int, err error)) iter.Seq2[T, error] {
	const page = 256
	return func(yield func(T, error) bool) {
		var zero T
		from := start
		for from != nil {
			items := make([]T, 0, page)
			var next []byte
			err := j.read(ctx, func(st *store) (err error) {
				items = items[:0]
				it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: after(prefix)})
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, it.Close()) }()
				more, size := false, 0
				next = nil
				for ok := it.First(); ok; ok = it.Next() {
					if more = len(items) == page || size >= maxPageBytes; more {
						break
					}
					value, err := it.ValueAndErr()
					if err = cmp.Or(ctx.Err(), err); err != nil {
						return err
					}
					size += len(value)
					next = append(append(next[:0], it.Key()...), 0)
					item, body, err := decode(st, it.Key(), value)
					size += body
					if errors.Is(err, journal.ErrNotFound) {
						continue
					}
					if err != nil {
						return fmt.Errorf("reading %q: %w", it.Key(), err)
					}
					items = append(items, item)
				}
				if !more {
					next = nil
				}
				return it.Error()
			})
			from = next
			if err != nil {
				yield(zero, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
		}
	}
}
