package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// kind is what running requests are counted by: each kind has a bound of its own, so
// that searches do not keep health figures waiting. The set is closed.
type kind string

const (
	kindPlain  kind = "plain"
	kindList   kind = "list"   // reads dead letters and quarantined requests
	kindSearch kind = "search" // reads events, newest first
	kindTail   kind = "tail"   // reads events as they come, without an end
)

func kinds() []kind { return []kind{kindPlain, kindList, kindSearch, kindTail} }

// admitWithin is how long a request waits until there is room for it; a tail does
// not wait.
const admitWithin = 3 * time.Second

// room admits a bounded number of requests at once. A part of the bound is kept for
// operators: requests of viewers, however many, do not keep them out.
type room struct {
	shared, reserved chan struct{} // hold a value for each request
	wait             time.Duration
}

func newRoom(shared, reserved int, wait time.Duration) *room {
	return &room{shared: make(chan struct{}, shared), reserved: make(chan struct{}, reserved), wait: wait}
}

// rooms returns the room of each kind.
func rooms() map[kind]*room {
	return map[kind]*room{
		kindPlain:  newRoom(16, 8, admitWithin),
		kindList:   newRoom(2, 1, admitWithin),
		kindSearch: newRoom(2, 1, admitWithin),
		kindTail:   newRoom(maxViewerTails, maxTails-maxViewerTails, 0),
	}
}

// enter waits until there is room, and returns what to call when the request has
// ended. It reports false where there was no room in time, or ctx ended.
func (r *room) enter(ctx context.Context, role Role) (leave func(), ok bool) {
	var reserved chan struct{} // never ready for a viewer
	if role == Operator {
		reserved = r.reserved
	}
	in := func(slots chan struct{}) (func(), bool) { return func() { <-slots }, true }
	select { // operators leave the shared part to viewers while they can
	case reserved <- struct{}{}:
		return in(reserved)
	default:
	}
	select {
	case r.shared <- struct{}{}:
		return in(r.shared)
	default:
	}
	if r.wait == 0 {
		return nil, false
	}
	late := time.NewTimer(r.wait)
	defer late.Stop()
	select {
	case reserved <- struct{}{}:
		return in(reserved)
	case r.shared <- struct{}{}:
		return in(r.shared)
	case <-late.C:
	case <-ctx.Done():
	}
	return nil, false
}

// busy is the answer where there is no room.
func busy(k kind) *refusal {
	if k == kindTail {
		return &refusal{status: http.StatusTooManyRequests, detail: fmt.Sprintf("The most tails are open: %d of all callers, %d of viewers; close one.", maxTails, maxViewerTails), wait: admitWithin}
	}
	return &refusal{status: http.StatusServiceUnavailable, detail: "Too many requests like this one are running: try again.", wait: admitWithin}
}
