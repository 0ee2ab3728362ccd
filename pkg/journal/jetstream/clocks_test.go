package jetstream

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/internal/boottime"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

func TestJudgeClocks(t *testing.T) {
	const hour = time.Hour
	for name, c := range map[string]struct {
		peers   []time.Duration // how far they are ahead
		cluster time.Duration
		wrong   bool
	}{
		"alone, and the cluster disagrees":     {nil, 3 * hour, false},
		"a peer agrees":                        {[]time.Duration{hour}, 3 * hour, false},
		"a peer disagrees, the cluster agrees": {[]time.Duration{2 * hour}, 0, false},
		"a peer and the cluster disagree":      {[]time.Duration{2 * hour}, 2 * hour, true},
		"one of two peers disagrees":           {[]time.Duration{-2 * hour, 0}, 2 * hour, false},
		"both peers disagree":                  {[]time.Duration{-2 * hour, -hour - 1}, 0, true},
		"two of three, the cluster agrees":     {[]time.Duration{-2 * hour, 2 * hour, 0}, 0, false},
		"two of three, the cluster disagrees":  {[]time.Duration{2 * hour, 2 * hour, 0}, 2 * hour, true},
	} {
		clocks := clocks{peers: map[string]peerClock{}, cluster: c.cluster}
		for n, ahead := range c.peers {
			clocks.peers[string(rune('a'+n))] = peerClock{ahead: ahead}
		}
		if err := clocks.judge(); (err != nil) != c.wrong || err != nil && !errors.Is(err, journal.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A process whose clock is two hours ahead of its peers owns no cursor, takes no lease and is
// not ready. An owner whose clock jumps ahead frees the cursor. With the right time each goes
// on.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	right, wrong := newClock(), newClock()
	on := func(c *clock) func(*Options) { return func(o *Options) { short(o); o.Clock = c.Now } }
	a := process(t, url, "a", on(wrong))
	ca := mustReader(t, a)
	mustAppend(t, a, journaltest.Event("1"))
	mustNext(t, ca, 1)
	lost := ca.OwnershipLost()
	b, c := process(t, url, "b", on(right)), process(t, url, "c", on(right))
	within(t, "the clocks agree", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.clocks.peers) == 2
	})
	if err := a.Check(); err != nil || !ca.Owner().Local {
		t.Fatalf("with the right time: %v, %+v", err, ca.Owner())
	}
	wrong.Advance(2 * time.Hour)
	within(t, "the relay is not ready", func() bool {
		err := a.Check()
		return err != nil && strings.Contains(err.Error(), "2h0m0s ahead of the clocks of 2 of 2 other relays")
	})
	select {
	case <-lost:
	case <-time.After(20 * time.Second):
		t.Fatal("the owner goes on")
	}
	if leads, err := a.AcquireLease(t.Context(), "expire", time.Minute); leads || err != nil {
		t.Errorf("a lease with the wrong time: %v, %v", leads, err)
	}
	if leads, err := b.AcquireLease(t.Context(), "expire", time.Minute); !leads || err != nil {
		t.Errorf("a lease with the right time: %v, %v", leads, err)
	}
	for _, j := range []*Journal{b, c} {
		if err := j.Check(); err != nil {
			t.Errorf("with the right time: %v", err)
		}
	}
	if ids, _ := read(t, mustReader(t, b), 1); ids[0] != "1" || ca.Owner().Name != "b" && ca.Owner().Local {
		t.Errorf("the next owner read %v", ids)
	}
	wrong.Advance(-2 * time.Hour)
	within(t, "the relay is ready", func() bool { return a.Check() == nil })
}

// An owner whose machine was suspended is no owner any more when it wakes up, before any of
// its timers, which stood still, fires.
func TestSuspendedOwner(t *testing.T) {
	t.Parallel()
	var slept atomic.Int64
	j := process(t, natstest.Start(t).URL(), "a", func(o *Options) {
		o.lease = time.Hour // no timer fires and no renewal begins
		o.boot = func() time.Duration { return boottime.Now() + time.Duration(slept.Load()) }
	})
	c := mustReader(t, j)
	mustAppend(t, j, journaltest.Event("1"))
	at := mustNext(t, c, 1)[0].Seq
	lost := c.OwnershipLost()
	if !c.Owner().Local {
		t.Fatal("the process is not the owner")
	}
	slept.Store(int64(2 * time.Hour))
	c.Owner()
	select {
	case <-lost:
	default:
		t.Error("the ownership outlives its deadline")
	}
	within(t, "the process is the owner again, after a write", func() bool { return c.Owner().Local })
	mustCommit(t, c, journal.UpTo(at))
}

// The server keeps a claim two hours longer than the dedupe window.
func TestClaimsOutliveTheWindow(t *testing.T) {
	t.Parallel()
	j := process(t, natstest.Start(t).URL(), "a", func(o *Options) { o.Window = 24 * time.Hour })
	e := journaltest.Event("1")
	mustAppend(t, j, e)
	m, err := j.leaderGet(t.Context(), getRequest{LastFor: j.names.key(e.Keys[0])})
	if err != nil || m.header.Get(jetstream.MsgTTLHeader) != seconds(26*time.Hour) {
		t.Errorf("the claim lives for %q, %v", m.header.Get(jetstream.MsgTTLHeader), err)
	}
}
