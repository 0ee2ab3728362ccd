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

// budget is what all requests share and what can run out: memory for bodies,
// requests under way. One half is for whoever comes first; the other half is
// divided among the sources, and each one's part is its own. A source that is
// flooded then slows the others down, and cannot shut them out.
type budget struct {
	total int64

	mu       sync.Mutex
	left     int64 // of what is for whoever comes first; below 0 while more is taken than a new division has
	share    int64 // each source's own part
	accounts []*account
}

func newBudget(total int64, sources int) *budget {
	b := &budget{total: total}
	b.divide(sources, nil)
	return b
}

// divide divides the budget among so many sources. Accounts that are not used any
// more count for as long as something is taken.
func (b *budget) divide(sources int, used map[*account]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accounts = slices.DeleteFunc(b.accounts, func(a *account) bool { return !used[a] && a.taken == 0 })
	b.share = b.total / 2 / int64(max(1, sources))
	b.left = b.total - b.share*int64(sources)
	for _, a := range b.accounts {
		b.left -= max(0, a.taken-b.share)
	}
}

// account is what one source has taken.
type account struct {
	budget *budget
	// Guarded by budget.mu.
	most  int64 // 0 is no limit of its own
	taken int64
}

func (b *budget) account(most int64) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &account{budget: b, most: most}
	b.accounts = append(b.accounts, a)
	return a
}

// limit sets the account's own limit.
func (a *account) limit(most int64) {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	a.most = most
}

// take takes n, or returns errShare or errSpent and takes nothing.
func (a *account) take(n int64) error {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.most > 0 && a.taken+n > a.most {
		return errShare
	}
	// What goes beyond the source's own part comes out of the common one.
	beyond := max(0, a.taken+n-b.share) - max(0, a.taken-b.share)
	if beyond > b.left {
		return errSpent
	}
	b.left -= beyond
	a.taken += n
	return nil
}

// give gives n back.
func (a *account) give(n int64) {
	if n == 0 {
		return
	}
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += max(0, a.taken-b.share) - max(0, a.taken-n-b.share)
	a.taken -= n
}
