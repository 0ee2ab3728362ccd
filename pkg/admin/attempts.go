package admin

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/postwire/postwire/internal/forwarded"
)

// Limits of wrong tokens, per remote address and for all addresses together. The
// second limit applies to a caller with more addresses than attempts remembers.
const (
	wrongEvery    = 6 * time.Second
	wrongBurst    = 10
	allWrongEvery = 50 * time.Millisecond
	allWrongBurst = 200
	maxRemembered = 4096 // remote addresses
)

// attempts limits the rate of wrong tokens. An IPv6 address counts as its /64 network,
// because one host usually has the whole network. Unknown addresses count as one
// address.
type attempts struct {
	now func() time.Time

	mu        sync.Mutex
	all       *rate.Limiter
	byAddress map[netip.Prefix]*list.Element
	recent    list.List // of *attempting, the most recent first
}

// attempting is the state of one remote address.
type attempting struct {
	network netip.Prefix
	limiter *rate.Limiter
	limited bool // the last attempt was over the limit
}

func newAttempts(now func() time.Time) *attempts {
	return &attempts{now: now, all: rate.NewLimiter(rate.Every(allWrongEvery), allWrongBurst), byAddress: map[netip.Prefix]*list.Element{}}
}

// attempt is the decision about a token that is not a strong token: whether to compare
// the token with weak tokens.
type attempt struct {
	// wait is the time until the next attempt of the address; 0 means below the limit.
	wait time.Duration
	// first is set if the previous attempt of the address was below the limit.
	first bool

	undo func() // removes the attempt from the counts
}

// begin counts an attempt that is below the limits.
func (a *attempts) begin(addr netip.Addr) attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, state := a.now(), a.state(forwarded.Network(addr))
	own, wait := reserve(state.limiter, now)
	if wait > 0 {
		first := !state.limited
		state.limited = true
		return attempt{wait: wait, first: first}
	}
	state.limited = false
	all, wait := reserve(a.all, now)
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

// reserve reserves one token of a limiter, or returns the time until the next token.
func reserve(l *rate.Limiter, now time.Time) (*rate.Reservation, time.Duration) {
	r := l.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return r, wait
}

// state returns the state of a network. The caller holds mu.
func (a *attempts) state(network netip.Prefix) *attempting {
	if element := a.byAddress[network]; element != nil {
		a.recent.MoveToFront(element)
		return element.Value.(*attempting)
	}
	if a.recent.Len() >= maxRemembered {
		oldest := a.recent.Remove(a.recent.Back()).(*attempting)
		delete(a.byAddress, oldest.network)
	}
	one := &attempting{network: network, limiter: rate.NewLimiter(rate.Every(wrongEvery), wrongBurst)}
	a.byAddress[network] = a.recent.PushFront(one)
	return one
}
