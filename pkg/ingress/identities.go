package ingress

import (
	"hash/maphash"
	"sync"

	"github.com/postwire/postwire/pkg/event"
)

// maxIdentities is how many of the newest events a process remembers the source
// and id of: about half a megabyte.
const maxIdentities = 16384

// identities remembers by which CloudEvents source and id the newest events were
// stored. It may be used by several goroutines.
type identities struct {
	mu     sync.Mutex
	seed   maphash.Seed
	ring   []uint64 // in the order of storing; next is the oldest
	next   int
	counts map[uint64]int // how often each is in ring
}

func newIdentities() *identities {
	return &identities{seed: maphash.MakeSeed(), ring: make([]uint64, 0, maxIdentities), counts: make(map[uint64]int, maxIdentities)}
}

// stored notes an event that is stored, and reports whether one of the same source
// and id is among the newest ones.
func (i *identities) stored(e event.Event) (shared bool) {
	var h maphash.Hash
	h.SetSeed(i.seed)
	_, _ = h.WriteString(e.CloudEvent.Source())
	_ = h.WriteByte(0)
	_, _ = h.WriteString(e.CloudEvent.ID())
	sum := h.Sum64()
	i.mu.Lock()
	defer i.mu.Unlock()
	shared = i.counts[sum] > 0
	i.counts[sum]++
	if len(i.ring) < maxIdentities {
		i.ring = append(i.ring, sum)
		return shared
	}
	oldest := i.ring[i.next]
	if i.counts[oldest]--; i.counts[oldest] == 0 {
		delete(i.counts, oldest)
	}
	i.ring[i.next] = sum
	i.next = (i.next + 1) % maxIdentities
	return shared
}
