package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
)

// of makes an event of a partition key.
func of(key, id string) event.Event {
	e := journaltest.Event(id)
	e.CloudEvent.SetExtension(event.PartitionKey, key)
	return e
}

func spilling(t *testing.T) func(*Options) {
	dir := t.TempDir()
	return func(o *Options) {
		o.Hold, o.Spill, o.Clock = 500*time.Millisecond, &Spill{Dir: dir}, nil
	}
}

// While the cluster is away events are kept, answered, and forwarded when it is
// back: once, in order, by whichever process kept them.
func TestSpill(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	inA, inB := spilling(t), spilling(t)
	a, other := process(t, b.URL(), "a", inA), process(t, b.URL(), "b", inB)
	c := mustReader(t, a)
	mustAppend(t, a, of("k", "1"))
	b.Stop(t)

	began := time.Now()
	if r := mustAppend(t, a, of("k", "2"))[0]; r.Duplicate || r.Seq != 0 || r.ID != "2" {
		t.Errorf("receipt = %+v", r)
	}
	if took := time.Since(began); took < 500*time.Millisecond || took > 2*time.Second {
		t.Errorf("the hold took %v", took)
	}
	if r := mustAppend(t, a, of("k", "2"))[0]; !r.Duplicate {
		t.Errorf("a twin at the same process: %+v", r)
	}
	mustAppend(t, other, of("k", "2")) // a twin at another process, which cannot know
	mustAppend(t, other, of("k", "3"))
	mustAppend(t, a, of("k", "4"))
	mustAppend(t, other, of("k", "5"), of("j", "6"))
	id, err := a.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Body: []byte("{")})
	if err != nil {
		t.Fatal(err)
	}
	if u := a.Usage(); u.Spilled != 3 || u.SpilledSince.IsZero() {
		t.Errorf("Usage = %+v", u)
	}
	if err := a.Check(); err != nil {
		t.Errorf("Check = %v", err)
	}

	b.Restart(t)
	within(t, "all is forwarded", func() bool { return a.Usage().Spilled == 0 && other.Usage().Spilled == 0 })
	ids, _ := read(t, c, 6)
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == "6" }) // it has no order with the others
	if got := strings.Join(ids, " "); got != "1 2 3 4 5" {
		t.Errorf("forwarded: %s", got)
	}
	if r, err := other.QuarantinedRequest(t.Context(), id); err != nil || string(r.Body) != "{" {
		t.Errorf("Rejected = %v, %v", r, err)
	}
	if r := mustAppend(t, other, of("k", "4"))[0]; !r.Duplicate {
		t.Errorf("a twin of what was forwarded: %+v", r)
	}
	if u := a.Usage(); !u.SpilledSince.IsZero() {
		t.Errorf("Usage = %+v", u)
	}
}

// What was kept outlives the process, and what comes in after its start does not
// overtake it.
func TestSpillOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	in := spilling(t)
	j := process(t, b.URL(), "a", in)
	mustReader(t, j)
	b.Stop(t)
	mustAppend(t, j, of("k", "1"))
	mustAppend(t, j, of("k", "2"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	// It starts while the cluster is still away.
	j = process(t, b.URL(), "a", in)
	c := mustReader(t, j)
	if u := j.Usage(); u.Spilled != 2 {
		t.Fatalf("Usage = %+v", u)
	}
	mustAppend(t, j, of("k", "3"))
	b.Restart(t)
	mustAppend(t, j, of("k", "4"))
	ids, _ := read(t, c, 4)
	if got := strings.Join(ids, " "); got != "1 2 3 4" {
		t.Errorf("forwarded: %s", got)
	}
}

// An event whose append was not answered is stored once, whatever had become of
// the first attempt.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	j := process(t, b.URL(), "a", spilling(t))
	c := mustReader(t, j)
	ctx, cancel := context.WithCancel(t.Context())
	var appending sync.WaitGroup
	const n = 400
	for i := range n {
		appending.Go(func() {
			if _, err := j.Append(ctx, of(fmt.Sprint(i%7), fmt.Sprint(i))); err != nil {
				t.Errorf("Append: %v", err)
			}
		})
		if i == n/3 {
			b.Stop(t)
			appending.Go(func() { b.Restart(t) })
		}
	}
	appending.Wait()
	cancel()
	within(t, "all is forwarded", func() bool { return j.Usage().Spilled == 0 })
	ids, _ := read(t, c, n)
	slices.Sort(ids)
	if got := len(slices.Compact(ids)); got != n {
		t.Errorf("%d events are there once", got)
	}
	within(t, "there are no more", func() bool { return j.Usage().Events == n })
}

// Where the spill cannot store either, nothing is taken.
func TestSpillIsFull(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	dir := t.TempDir()
	j := process(t, b.URL(), "a", func(o *Options) {
		o.Hold, o.Spill = 500*time.Millisecond, &Spill{Dir: dir, MinFree: 1 << 60}
	})
	mustAppend(t, j, of("k", "1"))
	b.Stop(t)
	if _, err := j.Append(t.Context(), of("k", "2")); !errors.Is(err, journal.ErrFull) {
		t.Errorf("Append = %v", err)
	}
	within(t, "the check says so", func() bool { return errors.Is(j.Check(), journal.ErrFull) })
	b.Restart(t)
	within(t, "it takes events again", func() bool {
		_, err := j.Append(t.Context(), of("k", "3"))
		return err == nil
	})
}

// Without a spill an event that the cluster does not take is refused.
func TestNoSpill(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	j := process(t, b.URL(), "a", func(o *Options) { o.Hold = 200 * time.Millisecond })
	mustAppend(t, j, of("k", "1"))
	b.Stop(t)
	if _, err := j.Append(t.Context(), of("k", "2")); !errors.Is(err, journal.ErrUnavailable) {
		t.Errorf("Append = %v", err)
	}
	within(t, "the check says so", func() bool { return errors.Is(j.Check(), journal.ErrUnavailable) })
	b.Restart(t)
	within(t, "it takes events again", func() bool {
		_, err := j.Append(t.Context(), of("k", "3"))
		return err == nil
	})
	within(t, "the check says so", func() bool { return j.Check() == nil })
	if _, err := Open(t.Context(), func() Options { o := options(t, "nats://127.0.0.1:1", newClock()); return o }()); err == nil {
		t.Error("it opens without a cluster")
	}
}

// A folder that holds the journal of another engine is no spill: its events would
// be passed over.
func TestSpillIsAnotherJournal(t *testing.T) {
	dir := t.TempDir()
	other, err := local.Open(local.Options{Dir: dir, Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Append(t.Context(), of("k", "1"))
	if err := errors.Join(err, other.Close()); err != nil {
		t.Fatal(err)
	}
	o := options(t, natstest.Start(t).URL(), newClock())
	o.Spill = &Spill{Dir: dir}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "journal.spill.dir") {
		t.Errorf("Open = %v", err)
	}
}

// An append whose context ends may be stored all the same. The spill counts such events:
// forwarding ends, and the count returns to zero.
func TestSpilledAfterItsContext(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	j := process(t, b.URL(), "a", spilling(t))
	c := mustReader(t, j)
	b.Stop(t)
	mustAppend(t, j, of("k", "first")) // the cluster is down from now on
	var appending sync.WaitGroup
	for n := range 400 {
		appending.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n%40)*100*time.Microsecond)
			defer cancel()
			_, _ = j.Append(ctx, of(fmt.Sprint(n%5), fmt.Sprint(n)))
		})
	}
	appending.Wait()
	b.Restart(t)
	mustAppend(t, j, of("k", "last"))
	within(t, "all is forwarded", func() bool { return j.Usage().Spilled == 0 })
	within(t, "all is stored", func() bool { return j.Usage().Events >= 2 })
	if n := j.Usage().Spilled; n != 0 {
		t.Errorf("%d events are in the spill", n)
	}
	read(t, c, int(j.Usage().Events))
}

// The forwarder waits for the cluster, and a peer announces older events of the shard: the
// peer goes first.
func TestForwardingInTurn(t *testing.T) {
	t.Parallel()
	nodes := natstest.StartCluster(t, nil)
	core, logs := observer.New(zapcore.DebugLevel)
	j := process(t, natstest.URLs(nodes[:1]), "a", spilling(t), func(o *Options) { o.Replicas, o.Log = 3, zap.New(core) })
	c := mustReader(t, j)
	for _, n := range nodes[1:] { // the first one answers, and has no quorum
		n.Kill(t)
	}
	mustAppend(t, j, of("k", "late"))
	logs.TakeAll()
	within(t, "the forwarder waits for the cluster", func() bool { return logs.FilterMessage("storing events in the cluster").Len() > 0 })
	shard := shardOf(of("k", ""))
	older := func(low int64) {
		text, err := json.Marshal(announcement{Name: "peer", LowWatermarks: map[int]int64{shard: low}})
		if err != nil {
			t.Fatal(err)
		}
		j.spill.onAnnouncement(&nats.Msg{Data: text})
	}
	older(1)
	for _, n := range nodes[1:] {
		n.Start(t)
	}
	within(t, "the cluster answers", func() bool { return j.poll(t.Context()) == nil })
	for range 10 { // longer than reconnectGrace
		older(1)
		time.Sleep(reconnectGrace / 5)
	}
	if n := j.Usage().Spilled; n != 1 {
		t.Fatalf("%d events are in the spill, want 1", n)
	}
	older(0) // the peer has forwarded its events
	if ids, _ := read(t, c, 1); ids[0] != "late" {
		t.Errorf("forwarded: %q", ids)
	}
}

// Announcements may have been missed over a reconnect, however short.
func TestShortReconnect(t *testing.T) {
	t.Parallel()
	j := process(t, natstest.Start(t).URL(), "a", spilling(t))
	unknown := func() bool {
		j.spill.mu.Lock()
		defer j.spill.mu.Unlock()
		return time.Now().Before(j.spill.peersUnknownUntil)
	}
	within(t, "the peers are known", func() bool { return !unknown() })
	if err := j.conn.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	within(t, "the peers are unknown", unknown)
}
