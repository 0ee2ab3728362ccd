package ingress

import (
	"context"
	"sync"
	"time"
)

// appendTimeout limits an append to the journal. Senders wait ten seconds, and a 503 in
// time is better than no answer.
const appendTimeout = 8 * time.Second

// appendTick is the imprecision of appendTimeout. Requests of the same tick share one
// timer, because a context for each request costs more than the rest of its handling.
const appendTick = 100 * time.Millisecond

// deadlines provides contexts with appendTimeout. It may be used concurrently.
type deadlines struct {
	mu    sync.Mutex
	now   context.Context
	until time.Time // requests begin in now
}

// storing is the context of an append. It has the values of the request's context, and
// ends at its deadline and not when the sender hangs up: the journal stores the event of
// an impatient sender, too.
type storing struct {
	context.Context
	request context.Context
}

func (s storing) Value(key any) any { return s.request.Value(key) }

// bound returns the context of the append of a request.
func (d *deadlines) bound(request context.Context) context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.now == nil || now.After(d.until) {
		ctx, cancel := context.WithTimeout(context.Background(), appendTimeout+appendTick)
		context.AfterFunc(ctx, cancel) // only the deadline ends it
		d.now, d.until = ctx, now.Add(appendTick)
	}
	return storing{d.now, request}
}
