package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// kind is the kind of a request. Every kind has a limit of its own, so that searches do
// not delay requests for the status. The set is closed.
type kind string

const (
	kindPlain  kind = "plain"
	kindList   kind = "list"   // reads dead letters and quarantined requests
	kindSearch kind = "search" // reads events, newest first
	kindTail   kind = "tail"   // follows new events
)

func kinds() []kind { return []kind{kindPlain, kindList, kindSearch, kindTail} }

// admissionTimeout limits the time for which a request waits for admission. A tail does
// not wait.
const admissionTimeout = 3 * time.Second

// room limits the number of concurrent requests. A part of the limit is reserved for
// operators, so that viewers cannot lock out operators.
type room struct {
	shared, reserved chan struct{} // semaphores, with a value per running request
	wait             time.Duration
}

func newRoom(shared, reserved int, wait time.Duration) *room {
	return &room{shared: make(chan struct{}, shared), reserved: make(chan struct{}, reserved), wait: wait}
}

// rooms returns a room per kind.
func rooms() map[kind]*room {
	return map[kind]*room{
		kindPlain:  newRoom(16, 8, admissionTimeout),
		kindList:   newRoom(2, 1, admissionTimeout),
		kindSearch: newRoom(2, 1, admissionTimeout),
		kindTail:   newRoom(maxViewerTails, maxTails-maxViewerTails, 0),
	}
}

// enter waits for admission, and returns a function to call after the request. ok is
// false after admissionTimeout, or if ctx ended.
func (r *room) enter(ctx context.Context, role Role) (leave func(), ok bool) {
	var reserved chan struct{} // never ready for a viewer
	if role == Operator {
		reserved = r.reserved
	}
	in := func(slots chan struct{}) (func(), bool) { return func() { <-slots }, true }
	select { // operators use the reserved part first
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

// busy is the refusal of a request beyond the limit.
func busy(k kind) *refusal {
	if k == kindTail {
		return &refusal{status: http.StatusTooManyRequests, detail: fmt.Sprintf("Too many tails are open: the limits are %d for all callers and %d for viewers. Close a tail.", maxTails, maxViewerTails), wait: admissionTimeout}
	}
	return &refusal{status: http.StatusServiceUnavailable, detail: "Too many requests of this kind are running: try again.", wait: admissionTimeout}
}
