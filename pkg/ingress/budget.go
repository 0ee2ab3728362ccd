package ingress

import (
	"errors"
	"slices"
	"sync"
)

var (
	errShare = errors.New("the source has as many requests under way as it may")
	errSpent = errors.New("there is no room for more at the moment")
)

// quotaPool divides a limit among sources: memory, or requests under way. All sources
// share one half of the limit. The other half is reserved in equal parts, one for each
// source, so that a flooded source can slow other sources down but not starve them.
type quotaPool struct {
	total int64

	mu       sync.Mutex
	used     int64
	left     int64 // of the shared half; negative while sources hold more than a new division allows
	share    int64 // reserved for each source
	accounts []*quota
}

func newBudget(total int64, sources int) *quotaPool {
	b := &quotaPool{total: total}
	b.divide(sources, nil)
	return b
}

// divide divides the limit among this number of sources. A quota that is not in use any
// more counts until all of it is returned.
func (b *quotaPool) divide(sources int, used map[*quota]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accounts = slices.DeleteFunc(b.accounts, func(a *quota) bool {
		a.counted = used[a] || a.unshared || a.taken > 0
		return !a.counted
	})
	b.share = b.total / 2 / int64(max(1, sources))
	b.left = b.total - b.share*int64(sources)
	for _, a := range b.accounts {
		b.left -= a.beyond(a.taken)
	}
}

// taken returns the sum of all quotas.
func (b *quotaPool) taken() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// scarce reports whether more than half of the limit, or of its shared half, is taken.
func (b *quotaPool) scarce() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used > b.total/2 || b.left < (b.total-b.total/2)/2
}

// quota is what one source has taken.
type quota struct {
	budget   *quotaPool
	unshared bool // it is no source's, and has no part of its own
	// Guarded by budget.mu.
	most  int64 // 0 is no limit of its own
	taken int64
	// counted says that it is among the accounts of the budget. One that is not used any
	// more is, while something is taken: a request may come to it late.
	counted bool
}

func (b *quotaPool) account(most int64) *quota { return b.add(&quota{budget: b, most: most}) }

// withoutPart returns an account that has the half for whoever comes first only.
func (b *quotaPool) withoutPart() *quota { return b.add(&quota{budget: b, unshared: true}) }

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
		b.accounts = append(b.accounts, a)
	}
}

// beyond returns what of n goes beyond the account's own part. The lock is held.
func (a *quota) beyond(n int64) int64 {
	if a.unshared {
		return n
	}
	return max(0, n-a.budget.share)
}

// takesCommon reports whether the account has taken of the half for whoever comes
// first.
func (a *quota) takesCommon() bool {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	return a.beyond(a.taken) > 0
}

// limit sets the account's own limit.
func (a *quota) limit(most int64) {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	a.most = most
}

// take takes n, or returns errShare or errSpent and takes nothing.
func (a *quota) take(n int64) error {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.most > 0 && a.taken+n > a.most {
		return errShare
	}
	// What goes beyond the source's own part comes out of the common one.
	beyond := a.beyond(a.taken+n) - a.beyond(a.taken)
	if beyond > b.left {
		return errSpent
	}
	b.count(a)
	b.left -= beyond
	b.used += n
	a.taken += n
	return nil
}

// give gives n back.
func (a *quota) give(n int64) {
	if n == 0 {
		return
	}
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += a.beyond(a.taken) - a.beyond(a.taken-n)
	b.used -= n
	a.taken -= n
}
