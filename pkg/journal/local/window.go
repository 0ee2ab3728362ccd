package local

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// window stores identity keys with their time. Keys are written into consecutive
// generations, each as long as the window, so that a key inside the window is in one of the
// last two generations. One range deletion removes a generation outside the window; no
// index by time and no scan is needed.
//
// Each entry has the time of the first receipt, so that the window is exact. A filter in
// memory finds that a key is new, as nearly every key is, without a look-up in the index.
// Only the committer uses a window.
type window struct {
	width       time.Duration
	generations []int64       // start of each generation in nanoseconds since 1970, oldest first
	counts      []uint64      // number of keys by generation
	added       []*filter     // keys that were put since the journal was opened, by generation; nil is none
	all         atomic.Uint64 // number of all keys; read concurrently
	uncounted   bool          // the newest count is not in a batch yet
	stored      storedKeys
	seed        maphash.Seed

	key, value []byte // scratch
}

// dedupeEntry is the stored value of a key.
type dedupeEntry struct {
	first int64 // first receipt, nanoseconds since 1970
	seq   journal.Seq
	id    string // CloudEvents id of the stored event
}

func keyPrefix(generation int64) []byte { return appendKeyPrefix(nil, generation) }

func appendKeyPrefix(b []byte, generation int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keySpace), uint64(generation))
}

// appendTo encodes the entry.
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

// openWindow finds the stored generations.
func openWindow(db pebble.Reader, width time.Duration) (*window, error) {
	w := &window{width: width, seed: maphash.MakeSeed()}
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
	return w, cmp.Or(it.Error(), it.Close())
}

// countOf returns the number of keys of a generation: the stored number, or a count after a
// repair.
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

// begin adds a generation with a number of keys.
func (w *window) begin(generation int64, keys uint64) {
	w.generations, w.counts, w.added = append(w.generations, generation), append(w.counts, keys), append(w.added, nil)
	w.all.Add(keys)
}

// record stages the newest count if it changed.
func (w *window) record(b *pebble.Batch) error {
	if !w.uncounted {
		return nil
	}
	w.uncounted = false
	newest := len(w.counts) - 1
	return b.Set(metaKeysKey(w.generations[newest]), binary.BigEndian.AppendUint64(nil, w.counts[newest]), nil)
}

// holds reports whether the window at now includes an entry.
func (w *window) holds(s dedupeEntry, now int64) bool {
	// After a clock was set back, first is later than now; the key is inside the window.
	return now-s.first < int64(w.width)
}

// find returns the entry of a key inside the window at now.
func (w *window) find(db *pebble.DB, key event.Key, now int64) (dedupeEntry, bool, error) {
	hash := maphash.String(w.seed, string(key))
	// Newest generation first: an older one may hold an expired entry of the key.
	for i, generation := range slices.Backward(w.generations) {
		if !w.added[i].mayHave(hash) && !w.stored.mayHave(generation, hash) {
			continue
		}
		value, closer, err := db.Get(w.storedKey(generation, key))
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return dedupeEntry{}, false, err
		}
		s, err := decodeDedupeEntry(value)
		if err := errors.Join(err, closer.Close()); err != nil {
			return dedupeEntry{}, false, fmt.Errorf("identity key: %w", err)
		}
		return s, w.holds(s, now), nil
	}
	return dedupeEntry{}, false, nil
}

// put stages an entry in the generation of now.
func (w *window) put(b *pebble.Batch, key event.Key, s dedupeEntry, now int64) error {
	if n := len(w.generations); n == 0 || now >= w.generations[n-1]+int64(w.width) {
		if err := w.record(b); err != nil {
			return err
		}
		w.begin(now, 0)
	}
	newest := len(w.counts) - 1
	w.counts[newest]++
	w.all.Add(1)
	w.uncounted = true
	if w.added[newest] == nil {
		w.added[newest] = &filter{}
	}
	w.added[newest].add(maphash.String(w.seed, string(key)))
	w.value = s.appendTo(w.value[:0])
	return b.Set(w.storedKey(w.generations[newest], key), w.value, nil)
}

// storedKey returns the stored key of an entry, valid until the next call.
func (w *window) storedKey(generation int64, key event.Key) []byte {
	w.key = append(appendKeyPrefix(w.key[:0], generation), key...)
	return w.key
}

// expire removes the generations outside the window at now: their newest possible entry,
// made when the next generation began, is too old.
func (w *window) expire(g *group) error {
	for len(w.generations) > 0 {
		end := w.generations[0] + int64(w.width)
		if len(w.generations) > 1 {
			end = max(end, w.generations[1])
		}
		if g.now < end+int64(w.width) {
			return nil
		}
		prefix := keyPrefix(w.generations[0])
		if err := errors.Join(g.deleteRange(prefix, after(prefix)), g.delete(metaKeysKey(w.generations[0]))); err != nil {
			return err
		}
		w.all.Add(-w.counts[0])
		w.stored.drop(w.generations[0])
		w.generations, w.counts, w.added = w.generations[1:], w.counts[1:], w.added[1:]
		w.uncounted = w.uncounted && len(w.counts) > 0
	}
	return nil
}
