package pebble

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// window is the memory of which identity keys were seen, and when. Keys are
// written into generations, one after another, each as long as the window; a
// key inside the window is therefore in one of the last two. A generation that
// is wholly outside is removed by one range deletion, however many keys it
// holds: there is no index by time and no scan.
//
// Each entry carries the moment of its first sight, so that the window's edge
// is exact. Only the committer uses a window.
type window struct {
	width       time.Duration
	generations []int64       // when each began, in nanoseconds since 1970; oldest first
	counts      []uint64      // keys in each
	all         atomic.Uint64 // keys in all; may be read by anybody
	uncounted   bool          // the newest count is not in a batch yet

	key, value []byte // scratch
}

// dedupeEntry is what the window knows of a key.
type dedupeEntry struct {
	first int64 // nanoseconds since 1970
	seq   journal.Seq
	id    string // of the CloudEvent that was stored
}

func keyPrefix(generation int64) []byte { return appendKeyPrefix(nil, generation) }

func appendKeyPrefix(b []byte, generation int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keySpace), uint64(generation))
}

// appendTo encodes the sighting.
func (s dedupeEntry) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(s.first))
	return append(binary.BigEndian.AppendUint64(b, uint64(s.seq)), s.id...)
}

func decodeDedupeEntry(b []byte) (dedupeEntry, error) {
	r := &record.Reader{B: b}
	s := dedupeEntry{first: int64(r.Uint64()), seq: journal.Seq(r.Uint64())}
	s.id = string(r.B)
	return s, r.Err
}

// openWindow finds the generations that are stored.
func openWindow(db pebble.Reader, width time.Duration) (*window, error) {
	w := &window{width: width}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{keySpace}, UpperBound: []byte{keySpace + 1}})
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok; {
		if len(it.Key()) < 9 {
			return nil, errors.Join(fmt.Errorf("identity key: %w", record.ErrTruncated), it.Close())
		}
		g := int64(binary.BigEndian.Uint64(it.Key()[1:]))
		n, err := countOf(db, it, g)
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		w.begin(g, n)
		ok = it.SeekGE(after(keyPrefix(g)))
	}
	return w, it.Close()
}

// countOf returns how many keys a generation holds: as it was noted, or, where an
// older version or a repair has left no note, by counting.
func countOf(db pebble.Reader, it *pebble.Iterator, generation int64) (n uint64, err error) {
	value, closer, err := db.Get(metaKeysKey(generation))
	if err == nil {
		r := &record.Reader{B: value}
		n = r.Uint64()
		return n, errors.Join(r.Err, closer.Close())
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return 0, fmt.Errorf("reading how many identity keys there are: %w", err)
	}
	prefix := keyPrefix(generation)
	for ok := it.SeekGE(prefix); ok && bytes.HasPrefix(it.Key(), prefix); ok = it.Next() {
		n++
	}
	return n, it.Error()
}

// begin adds a generation that holds some keys.
func (w *window) begin(generation int64, keys uint64) {
	w.generations, w.counts = append(w.generations, generation), append(w.counts, keys)
	w.all.Add(keys)
}

// record puts the newest count into the batch, where it has changed.
func (w *window) record(b *pebble.Batch) error {
	if !w.uncounted {
		return nil
	}
	w.uncounted = false
	newest := len(w.counts) - 1
	return b.Set(metaKeysKey(w.generations[newest]), binary.BigEndian.AppendUint64(nil, w.counts[newest]), nil)
}

// lookups opens an iterator for find. Unlike Get, it asks the filters of the
// lowest level too, where nearly all keys are; it must be closed.
func (w *window) lookups(db pebble.Reader) (*pebble.Iterator, error) {
	return db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{keySpace}, UpperBound: []byte{keySpace + 1}, UseL6Filters: true,
	})
}

// find returns the sighting of key that is inside the window at now.
func (w *window) find(it *pebble.Iterator, key event.Key, now int64) (dedupeEntry, bool, error) {
	// The newest first: the same key may stand, expired, in an older one.
	for _, generation := range slices.Backward(w.generations) {
		if !it.SeekPrefixGE(w.stored(generation, key)) {
			if err := it.Error(); err != nil {
				return dedupeEntry{}, false, err
			}
			continue
		}
		s, err := decodeDedupeEntry(it.Value())
		if err != nil {
			return dedupeEntry{}, false, fmt.Errorf("identity key: %w", err)
		}
		// A clock that was set back makes first lie ahead of now; that is
		// inside.
		return s, now-s.first < int64(w.width), nil
	}
	return dedupeEntry{}, false, nil
}

// put writes a sighting into the generation of now.
func (w *window) put(b *pebble.Batch, key event.Key, s dedupeEntry, now int64) error {
	if n := len(w.generations); n == 0 || now >= w.generations[n-1]+int64(w.width) {
		if err := w.record(b); err != nil {
			return err
		}
		w.begin(now, 0)
	}
	w.counts[len(w.counts)-1]++
	w.all.Add(1)
	w.uncounted = true
	w.value = s.appendTo(w.value[:0])
	return b.Set(w.stored(w.generations[len(w.generations)-1], key), w.value, nil)
}

// stored is where a key stands, until the next call.
func (w *window) stored(generation int64, key event.Key) []byte {
	w.key = append(appendKeyPrefix(w.key[:0], generation), key...)
	return w.key
}

// expire removes the generations that are wholly outside the window at now:
// those whose last possible entry, made as the next one began, is too old.
func (w *window) expire(b *pebble.Batch, now int64) error {
	for len(w.generations) > 0 {
		end := w.generations[0] + int64(w.width)
		if len(w.generations) > 1 {
			end = max(end, w.generations[1])
		}
		if now < end+int64(w.width) {
			return nil
		}
		prefix := keyPrefix(w.generations[0])
		if err := errors.Join(b.DeleteRange(prefix, after(prefix), nil), b.Delete(metaKeysKey(w.generations[0]), nil)); err != nil {
			return err
		}
		w.all.Add(-w.counts[0])
		w.generations, w.counts = w.generations[1:], w.counts[1:]
		w.uncounted = w.uncounted && len(w.counts) > 0
	}
	return nil
}
