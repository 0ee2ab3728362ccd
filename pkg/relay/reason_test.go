package relay

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// The log and the status name the reason for which a sink fails now, however
// long it has been failing for another one.
func TestTheReasonOfAFailingSinkIsTheCurrentOne(t *testing.T) {
	broker := &broker{}
	var reason atomic.Pointer[string]
	set := func(text string) { reason.Store(&text) }
	set("the broker is away")
	broker.whole = func(int) error {
		if text := *reason.Load(); text != "" {
			return errors.New(text)
		}
		return nil
	}
	b := start(t, nil, broker)
	var ahead atomic.Int64
	b.opts.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	b.restart(t)
	status := func(want string) func() bool {
		return func() bool {
			s := b.relay.Status()[0]
			return s.Error == want && (s.Failing != nil) == (want != "")
		}
	}
	logged := func() (reasons []string) {
		for _, e := range b.logs.All() {
			if e.Message == "sink delivery fails with another error" {
				reasons = append(reasons, fmt.Sprint(e.ContextMap()["error"]))
			}
		}
		return reasons
	}
	b.put(t, "1")
	eventually(t, "the first reason is told", status("the broker is away"))
	since := *b.relay.Status()[0].Failing
	set("the password is wrong")
	eventually(t, "the status names the new reason at once", status("the password is wrong"))
	if got := logged(); len(got) != 0 {
		t.Errorf("the log tells %v already", got)
	}
	ahead.Store(int64(reasonInterval))
	eventually(t, "the log names the new reason", func() bool { return slices.Equal(logged(), []string{"the password is wrong"}) })
	// A reason that is another one each time does not flood the log.
	var n atomic.Int64
	broker.mu.Lock()
	broker.whole = func(attempt int) error {
		if n.Add(1) > 50 {
			return nil
		}
		return fmt.Errorf("port %d is closed", attempt)
	}
	broker.mu.Unlock()
	if at := b.relay.Status()[0].Failing; at != nil && !at.Equal(since) {
		t.Errorf("it has been failing since %v, want %v", at, since)
	}
	eventually(t, "the event is delivered", func() bool { return b.committed(0) == 1 })
	eventually(t, "the status names no reason", status(""))
	if got := logged(); len(got) > 2 {
		t.Errorf("the log tells %v", got)
	}
}
