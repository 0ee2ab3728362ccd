package local

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal/record"
)

// filter finds that a key was not added, with an error of less than one in a hundred in the
// other direction. It is a list of blocked Bloom filters, each twice as large as the one
// before. The nil filter has no key.
type filter struct{ parts []*blockedBloom }

// blockedBloom is a blocked Bloom filter: all bits of a key are in one cache line.
type blockedBloom struct {
	blocks [][8]uint64
	room   int // keys that may still be added
}

const (
	firstKeys = 1 << 12 // keys of the first part of a filter
	keyBits   = 16      // bits per key
	blockBits = 512
	maxFilter = 64 << 20 // bytes of one filter; beyond them look-ups go to the index
)

// full reports whether the filter has reached its largest size, and may have every key.
func (f *filter) full() bool {
	n := len(f.parts)
	return n > 0 && f.parts[n-1] == nil
}

// add adds the hash of a key.
func (f *filter) add(hash uint64) {
	n := len(f.parts)
	if n > 0 && f.parts[n-1] == nil {
		return
	}
	if n == 0 || f.parts[n-1].room == 0 {
		keys := firstKeys << n
		if keys*keyBits/8 > maxFilter/2 {
			f.parts = append(f.parts, nil)
			return
		}
		f.parts = append(f.parts, &blockedBloom{blocks: make([][8]uint64, max(1, keys*keyBits/blockBits)), room: keys})
		n++
	}
	b := f.parts[n-1]
	b.room--
	block := b.block(hash)
	for bits := mix(hash); bits > 0; bits >>= 9 {
		block[bits>>6&7] |= 1 << (bits & 63)
	}
}

// mix returns seven numbers of 9 bits, the bits of a key in its block.
func mix(hash uint64) uint64 {
	hash *= 0x9e3779b97f4a7c15
	return (hash^hash>>29)>>1 | 1<<62 // never 0, so that there are seven
}

func (b *blockedBloom) block(hash uint64) *[8]uint64 {
	return &b.blocks[(hash>>32)*uint64(len(b.blocks))>>32]
}

// mayHave reports whether a key with this hash may have been added.
func (f *filter) mayHave(hash uint64) bool {
	if f == nil {
		return false
	}
	for _, b := range f.parts {
		if b == nil || b.mayHave(hash) {
			return true
		}
	}
	return false
}

func (b *blockedBloom) mayHave(hash uint64) bool {
	block := b.block(hash)
	for bits := mix(hash); bits > 0; bits >>= 9 {
		if block[bits>>6&7]&(1<<(bits&63)) == 0 {
			return false
		}
	}
	return true
}

// storedKeys filters the keys that were in the index when the journal was opened. It is
// loaded in the background; until then every key may be there.
type storedKeys struct {
	filters atomic.Pointer[map[int64]*filter] // by generation of the window; nil until loaded
	stopped atomic.Bool
	ended   sync.WaitGroup
}

// load reads the keys of a snapshot in the background, and closes the snapshot. New keys are
// added to another filter, from before the snapshot on.
func (s *storedKeys) load(snapshot *pebble.Snapshot, seed maphash.Seed, log *zap.Logger) {
	s.ended.Go(func() {
		filters, err := s.read(snapshot, seed)
		if err == nil {
			s.filters.Store(&filters)
		}
		if closed := snapshot.Close(); err == nil {
			err = closed
		}
		if err != nil && !s.stopped.Load() {
			log.Warn("reading the identity keys into memory failed; the journal looks every key up on the disk", zap.Error(err))
		}
	})
}

var errStopped = errors.New("the journal is being closed")

func (s *storedKeys) read(snapshot *pebble.Snapshot, seed maphash.Seed) (map[int64]*filter, error) {
	it, err := snapshot.NewIter(&pebble.IterOptions{LowerBound: []byte{keySpace}, UpperBound: []byte{keySpace + 1}})
	if err != nil {
		return nil, err
	}
	filters := map[int64]*filter{}
	for ok := it.First(); ok; {
		if s.stopped.Load() {
			return nil, errors.Join(errStopped, it.Close())
		}
		key := it.Key()
		if len(key) < 9 {
			return nil, errors.Join(record.ErrTruncated, it.Close())
		}
		generation := int64(binary.BigEndian.Uint64(key[1:]))
		f := filters[generation]
		if f == nil {
			f = &filter{}
			filters[generation] = f
		}
		f.add(maphash.Bytes(seed, key[9:]))
		if f.full() {
			ok = it.SeekGE(after(keyPrefix(generation)))
		} else {
			ok = it.Next()
		}
	}
	if err := it.Error(); err != nil {
		_ = it.Close() // returns the same error
		return nil, err
	}
	return filters, it.Close()
}

// mayHave reports whether a generation may have a key with this hash.
func (s *storedKeys) mayHave(generation int64, hash uint64) bool {
	filters := s.filters.Load()
	return filters == nil || (*filters)[generation].mayHave(hash)
}

// drop forgets a generation that is outside the window.
func (s *storedKeys) drop(generation int64) {
	filters := s.filters.Load()
	if filters == nil {
		return
	}
	rest := maps.Clone(*filters)
	delete(rest, generation)
	s.filters.Store(&rest)
}

// stop ends the loading.
func (s *storedKeys) stop() {
	s.stopped.Store(true)
	s.ended.Wait()
}
