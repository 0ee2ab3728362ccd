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

// quotaPool divides a limit among sources: memory, or requests under way. All sources
// share one half of the limit. The other half is reserved in equal parts, one for each
// source, so that a flooded source can slow other sources down but not starve them.
type quotaPool struct {
	total int64

	mu      sync.Mutex
	used    int64
	free    int64 // of the shared half; negative while sources hold more than a new division allows
	reserve int64 // reserved for each source
	quotas  []*quota
}

func newQuotaPool(total int64, sources int) *quotaPool {
	b := &quotaPool{total: total}
	b.divide(sources, nil)
	return b
}

// divide divides the limit among this number of sources. A quota that is not in use any
// more counts until all of it is returned.
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

// scarce reports whether more than half of the limit, or of its shared half, is taken.
func (b *quotaPool) scarce() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used > b.total/2 || b.free < (b.total-b.total/2)/2
}

// quota is what one source has taken.
type quota struct {
	pool      *quotaPool
	noReserve bool // it is no source's, and has no part of its own
	// Guarded by budget.mu.
	limit int64 // 0 is no limit of its own
	used  int64
	// counted says that it is among the accounts of the budget. One that is not used any
	// more is, while something is taken: a request may come to it late.
	counted bool
}

func (b *quotaPool) quotaOf(limit int64) *quota { return b.add(&quota{pool: b, limit: limit}) }

// sharedQuota returns an account that has the half for whoever comes first only.
func (b *quotaPool) sharedQuota() *quota { return b.add(&quota{pool: b, noReserve: true}) }

func (b *quotaPool) add(a *quota) *quota {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(a)
	return a
}

// count lets an account be among those of the budget. The lock is held.
func (b *quotaPool) count(a *quota) {
	if !a.counted {
		a.counted = true
		b.quotas = append(b.quotas, a)
	}
}

// shared returns what of n goes beyond the account's own part. The lock is held.
func (a *quota) shared(n int64) int64 {
	if a.noReserve {
		return n
	}
	return max(0, n-a.pool.reserve)
}

// usesShared reports whether the account has taken of the half for whoever comes
// first.
func (a *quota) usesShared() bool {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	return a.shared(a.used) > 0
}

// setLimit sets the account's own limit.
func (a *quota) setLimit(limit int64) {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	a.limit = limit
}

// acquire takes n, or returns errShare or errSpent and takes nothing.
func (a *quota) acquire(n int64) error {
	b := a.pool
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.limit > 0 && a.used+n > a.limit {
		return errSourceQuota
	}
	// What goes beyond the source's own part comes out of the common one.
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

// release gives n back.
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
