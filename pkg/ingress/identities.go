package ingress

import (
	"hash/maphash"
	"sync"

	"github.com/postwire/postwire/pkg/event"
)

// maxIdentities is the number of newest events whose source and id are remembered: about
// half a megabyte.
const maxIdentities = 16384

// identities remembers the CloudEvents source and id of the newest events. The methods may
// be called concurrently.
type identities struct {
	mu     sync.Mutex
	seed   maphash.Seed
	ring   []uint64 // hashes in the order of storage; next is the oldest
	next   int
	counts map[uint64]int // occurrences in ring, by hash
}

func newIdentities() *identities {
	return &identities{seed: maphash.MakeSeed(), ring: make([]uint64, 0, maxIdentities), counts: make(map[uint64]int, maxIdentities)}
}

// stored records a stored event, and reports whether an earlier event had the same source and
// id.
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
