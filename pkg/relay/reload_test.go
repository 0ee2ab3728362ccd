package relay

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// Sinks come, go and change while events pass; each event reaches each sink that
// was there from its acceptance on exactly once, in order.
func TestExchangeUnderWay(t *testing.T) {
	stays, goes, comes := &broker{}, &broker{}, &broker{}
	b := start(t, nil, stays, goes)
	put := func(from, to int) (ids []string) {
		for n := from; n < to; n++ {
			b.put(t, fmt.Sprint(n))
			ids = append(ids, fmt.Sprint(n))
		}
		return ids
	}
	first := b.opts.Sinks[0]
	added := sinks.Configured{Name: "added", Settings: first.Settings, Open: comes.open}
	all := put(0, 50)
	for n := range 20 { // other settings each time: another pump at the same place
		first.Settings.Batch = n + 1
		if err := b.relay.SetSinks(t.Context(), []sinks.Configured{first, b.opts.Sinks[1]}); err != nil {
			t.Fatal(err)
		}
		all = append(all, put(50+10*n, 60+10*n)...)
	}
	eventually(t, "the second sink has all", func() bool { return len(goes.ids()) == len(all) })
	if err := b.relay.SetSinks(t.Context(), []sinks.Configured{added, first}); err != nil {
		t.Fatal(err)
	}
	later := put(1000, 1050)
	all = append(all, later...)
	eventually(t, "all have theirs", func() bool { return len(stays.ids()) >= len(all) && len(comes.ids()) >= len(later) })
	if diff := cmp.Diff([][]string{all, all[:250], later}, [][]string{stays.ids(), goes.ids(), comes.ids()}); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	var names []string
	for _, s := range b.relay.Status() {
		names = append(names, s.Sink)
	}
	if !slices.Equal(names, []string{"added", "sink0"}) || !errors.Is(b.relay.Has("sink1"), ErrNoSink) {
		t.Errorf("the sinks are %v", names)
	}
	if first.Settings.Filter = "platform ="; !errors.Is(b.relay.SetSinks(t.Context(), []sinks.Configured{first}), ErrUnchanged) || len(b.relay.Status()) != 2 {
		t.Error("a filter that is none is taken")
	}
	// It is where it was left.
	if err := b.relay.SetSinks(t.Context(), append(slices.Clone(b.opts.Sinks), added)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second sink is back", func() bool { return len(goes.ids()) == len(all) })
}

// What is with the broker is heard of before another pump takes over: it is not
// sent twice.
func TestExchangeWaitsForTheBroker(t *testing.T) {
	slow := &broker{hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	b := start(t, nil, slow)
	b.put(t, "1")
	<-slow.entered
	done := make(chan error, 1)
	other := b.opts.Sinks[0]
	other.Settings.Batch = 7
	go func() { done <- b.relay.SetSinks(t.Context(), []sinks.Configured{other}) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(slow.hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.put(t, "2")
	eventually(t, "both are delivered", func() bool { return len(slow.ids()) == 2 })
	if diff := cmp.Diff([]string{"1", "2"}, slow.ids()); diff != "" {
		t.Error(diff)
	}
}

// A sink keeps what it remembers when its own keys or its settings change.
func TestMemoryOfASink(t *testing.T) {
	sink := &broker{}
	b := start(t, nil, sink)
	b.put(t, "1")
	eventually(t, "the event is delivered", func() bool { return len(sink.ids()) == 1 })
	sink.mu.Lock()
	sink.env.Memory.Value = "kept"
	sink.mu.Unlock()
	other := b.opts.Sinks[0]
	for n, change := range []func(){func() { other.Own = "other" }, func() { other.Settings.Batch = 7 }} {
		change()
		if err := b.relay.SetSinks(t.Context(), []sinks.Configured{other}); err != nil {
			t.Fatal(err)
		}
		b.put(t, fmt.Sprint("more ", n))
		eventually(t, "the event is delivered", func() bool { return len(sink.ids()) == n+2 })
		sink.mu.Lock()
		if sink.opened != n+2 || sink.env.Memory.Value != "kept" {
			t.Errorf("opening %d remembers %v", sink.opened, sink.env.Memory.Value)
		}
		sink.mu.Unlock()
	}
}

// ownedCursor is a cursor of an owner.
type ownedCursor struct {
	journal.Cursor
	since time.Time
}

func (c *ownedCursor) Owner() journal.Owner { return journal.Owner{Since: c.since, Local: true} }

// closing is a sink that notes its end.
type closing struct {
	sinks.Sink
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

// After another process was the owner, what the sink remembers is old: a batch without an
// answer must not be sent behind the later events of the other process.
func TestMemoryEndsWithOwnership(t *testing.T) {
	cursor, sink := &ownedCursor{since: time.Unix(1, 0)}, &closing{}
	p := &Pump{cursor: cursor, last: func() journal.Seq { return 5 }}
	records := []journal.Record{{Seq: 1}}
	p.recordOwnership(records)
	p.handle.sink, p.handle.memory.Value = sink, "remembered"
	p.recordOwnership(records)
	if sink.closed || p.handle.memory.Value != "remembered" {
		t.Error("the sink forgets although the owner is the same process")
	}
	cursor.since = time.Unix(2, 0)
	p.recordOwnership(records)
	if !sink.closed || p.handle.sink != nil || p.handle.memory.Value != nil {
		t.Errorf("closed: %v, remembered: %v", sink.closed, p.handle.memory.Value)
	}
}
