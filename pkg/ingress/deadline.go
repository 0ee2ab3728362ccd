package ingress

import (
	"context"
	"sync"
	"time"
)

// appendTimeout is how long storing may take: senders wait ten seconds, and an
// answer they still hear is better than silence.
const appendTimeout = 8 * time.Second

// appendTick is by how much it may be longer, so that requests that come at about
// the same time share one timer: a context of its own is the dearest part of
// a request's way.
const appendTick = 100 * time.Millisecond

// deadlines gives requests their time to be stored. It may be used concurrently.
type deadlines struct {
	mu    sync.Mutex
	now   context.Context
	until time.Time // requests begin in now
}

// storing is a request's context as the journal sees it: it ends with its time,
// and not with the sender's patience. What a sender does not wait for is stored
// all the same.
type storing struct {
	context.Context
	request context.Context
}

func (s storing) Value(key any) any { return s.request.Value(key) }

// bound returns the context in which to store what a request brought.
func (d *deadlines) bound(request context.Context) context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.now == nil || now.After(d.until) {
		ctx, cancel := context.WithTimeout(context.Background(), appendTimeout+appendTick)
		context.AfterFunc(ctx, cancel) // its time is all that ends it
		d.now, d.until = ctx, now.Add(appendTick)
	}
	return storing{d.now, request}
}
