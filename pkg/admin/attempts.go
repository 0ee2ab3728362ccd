package admin

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/postwire/postwire/internal/forwarded"
)

// Limits of wrong tokens: of one remote address, and of all together. The second
// one holds whoever has more addresses than are remembered.
const (
	wrongEvery    = 6 * time.Second
	wrongBurst    = 10
	allWrongEvery = 50 * time.Millisecond
	allWrongBurst = 200
	maxRemembered = 4096 // remote addresses
)

// attempts limits how often wrong tokens are shown. A remote address of IPv6 is its
// network of 64 bits: whoever has one of its addresses has all. An address that is
// not known is one, too.
type attempts struct {
	now func() time.Time

	mu        sync.Mutex
	all       *rate.Limiter
	byAddress map[netip.Prefix]*list.Element
	recent    list.List // of *attempting, the most recent first
}

// attempting is one remote address.
type attempting struct {
	network netip.Prefix
	limiter *rate.Limiter
	limited bool // the last attempt was over the limit
}

func newAttempts(now func() time.Time) *attempts {
	return &attempts{now: now, all: rate.NewLimiter(rate.Every(allWrongEvery), allWrongBurst), byAddress: map[netip.Prefix]*list.Element{}}
}

// attempt is one token that was not found, and may be looked for among the weak ones.
type attempt struct {
	// wait is how long the address has to wait; 0 is not over the limit.
	wait time.Duration
	// first tells that the address is over its limit, and was not the last time.
	first bool

	undo func()
}

// begin counts an attempt, unless it is over the limit.
func (a *attempts) begin(addr netip.Addr) attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, of := a.now(), a.of(forwarded.Network(addr))
	own, wait := take(of.limiter, now)
	if wait > 0 {
		first := !of.limited
		of.limited = true
		return attempt{wait: wait, first: first}
	}
	of.limited = false
	all, wait := take(a.all, now)
	if wait > 0 {
		own.CancelAt(now)
		return attempt{wait: wait}
	}
	return attempt{undo: func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		own.CancelAt(now)
		all.CancelAt(now)
	}}
}

// take takes a token of a limiter, or says how long it takes until there is one.
func take(l *rate.Limiter, now time.Time) (*rate.Reservation, time.Duration) {
	r := l.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return r, wait
}

// of returns what is remembered of a network. The lock is held.
func (a *attempts) of(network netip.Prefix) *attempting {
	if known := a.byAddress[network]; known != nil {
		a.recent.MoveToFront(known)
		return known.Value.(*attempting)
	}
	if a.recent.Len() >= maxRemembered {
		oldest := a.recent.Remove(a.recent.Back()).(*attempting)
		delete(a.byAddress, oldest.network)
	}
	one := &attempting{network: network, limiter: rate.NewLimiter(rate.Every(wrongEvery), wrongBurst)}
	a.byAddress[network] = a.recent.PushFront(one)
	return one
}
