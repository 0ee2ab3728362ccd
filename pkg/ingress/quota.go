package ingress

import (
	"errors"
	"slices"
	"sync"
)

var (
	errSourceQuota = errors.New("the source has as many requests under way as it may")
	errExhausted   = errors.New("there is no room for more at the moment")
)

// quotaPool divides a limit among sources: a limit of memory, or of requests in flight. All
// sources share one half of the limit. The other half is reserved in equal parts, one part
// for each source, so that a flooded source can slow other sources down but not starve
// other sources.
type quotaPool struct {
	total int64

	mu      sync.Mutex
	used    int64
	free    int64 // free part of the shared half; negative while sources use more than a new division allows
	reserve int64 // reserved for each source
	quotas  []*quota
}

func newQuotaPool(total int64, sources int) *quotaPool {
	b := &quotaPool{total: total}
	b.divide(sources, nil)
	return b
}

// divide divides the limit among a number of sources. The quota of a removed source counts
// until all of the quota is released.
func (b *quotaPool) divide(sources int, used map[*quota]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.quotas = slices.DeleteFunc(b.quotas, func(a *quota) bool {
		a.counted = used[a] || a.noReserve || a.used > 0
		return !a.counted
	})
	b.reserve = b.total / 2 / int64(max(1, sources))
	b.free = b.total - b.reserve*int64(sources)
	for _, a := range b.quotas {
		b.free -= a.shared(a.used)
	}
}

// inUse returns the sum of all quotas.
func (b *quotaPool) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// scarce reports whether more than half of the limit, or of its shared half, is in use.
func (b *quotaPool) scarce() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used > b.total/2 || b.free < (b.total-b.total/2)/2
}

// quota is the use of a limit by one source.
type quota struct {
	pool      *quotaPool
	noReserve bool // the quota of no source, without a reserved part
	// Guarded by pool.mu.
	limit int64 // limit of the source; 0 is none
	used  int64
	// counted is set while pool.quotas contains the quota. The quota of a removed source
	// stays there while requests use the quota.
	counted bool
}

func (b *quotaPool) quotaOf(limit int64) *quota { return b.add(&quota{pool: b, limit: limit}) }

// sharedQuota returns a quota without a reserved part.
func (b *quotaPool) sharedQuota() *quota { return b.add(&quota{pool: b, noReserve: true}) }

func (b *quotaPool) add(a *quota) *quota {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(a)
	return a
}

// count adds a quota to the pool. The caller holds mu.
func (b *quotaPool) count(a *quota) {
	if !a.counted {
		a.counted = true
		b.quotas = append(b.quotas, a)
	}
}

// shared returns the part of n beyond the reserved part. The caller holds pool.mu.
func (a *quota) shared(n int64) int64 {
	if a.noReserve {
		return n
	}
	return max(0, n-a.pool.reserve)
}

// usesShared reports whether the quota uses the shared half.
func (a *quota) usesShared() bool {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	return a.shared(a.used) > 0
}

// setLimit sets the limit of the source.
func (a *quota) setLimit(limit int64) {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	a.limit = limit
}

// acquire acquires n, or returns errSourceQuota or errExhausted and acquires nothing.
func (a *quota) acquire(n int64) error {
	b := a.pool
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.limit > 0 && a.used+n > a.limit {
		return errSourceQuota
	}
	// The part beyond the reserved part comes from the shared half.
	beyond := a.shared(a.used+n) - a.shared(a.used)
	if beyond > b.free {
		return errExhausted
	}
	b.count(a)
	b.free -= beyond
	b.used += n
	a.used += n
	return nil
}

// release releases n.
func (a *quota) release(n int64) {
	if n == 0 {
		return
	}
	b := a.pool
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += a.shared(a.used) - a.shared(a.used-n)
	b.used -= n
	a.used -= n
}
