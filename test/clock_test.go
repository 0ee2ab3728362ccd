package test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// clock is a clock that jumps.
type clock struct{ off atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.off.Load())) }

func (c *clock) jump(off time.Duration) { c.off.Store(int64(off)) }

// TestClockJumps sets the clock back an hour, ahead a day and right again,
// under load and while Kafka is away. The window is never shortened, what waits
// is kept however old it seems, and nothing is lost or sent more often than it was
// accepted.
func TestClockJumps(t *testing.T) {
	w := newWorld(t)
	var c clock
	r := newInside(t, w.change(t, "min_free_bytes: 0", "min_free_bytes: 0, retention: 1h"), vfs.NewMem())
	r.clock, r.now = c.now, c.now
	if err := r.open(t); err != nil {
		t.Fatal(err)
	}
	w.toKafka.set(t, weather{shut: true})
	deliver := func(number int, want string) {
		t.Helper()
		if status, err := r.post(upload(99, number)); err != nil || status != want {
			t.Errorf("the clock is off by %v: event %d was %s, want %s: %v", time.Duration(c.off.Load()), number, status, want, err)
		}
	}
	l := startLoad(t, r.endpoint, 6, 5*time.Millisecond)
	deliver(1, "accepted")
	for _, leg := range []struct {
		off        time.Duration
		one, fresh string
		number     int
	}{
		{-time.Hour, "duplicate", "accepted", 2},
		{23 * time.Hour, "duplicate", "accepted", 3},
		{24*time.Hour + time.Minute, "accepted", "accepted", 4}, // outside the window
		{0, "duplicate", "accepted", 5},                         // of what was accepted a day ahead
	} {
		l.more(t, 50)
		c.jump(leg.off)
		l.more(t, 50)
		deliver(1, leg.one)
		deliver(leg.number, leg.fresh)
		deliver(leg.number, "duplicate")
	}
	// A new process at the right time, behind one that was a day ahead.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.open(t); err != nil {
		t.Fatal(err)
	}
	deliver(4, "duplicate")
	deliver(6, "accepted")
	w.toKafka.set(t, weather{})
	l.more(t, 50)
	l.stop()
	for number := 2; number <= 6; number++ {
		l.acked[id(99, number)] = true
	}
	l.posted += 7
	nats, _ := w.settle(t, r.endpoint, l, "the clock back an hour, ahead a day, and right again")
	// The journal took event 1 for a new one when the window was over by the clock:
	// no broker may take the second for a repeat of the first.
	arrived := 0
	for _, a := range nats {
		if a.id == id(99, 1) {
			arrived++
		}
	}
	if arrived != 2 {
		t.Errorf("JetStream: event 1 was accepted twice and arrived %d times", arrived)
	}
}
