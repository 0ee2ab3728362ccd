package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// process opens one of several journals on a server.
func process(t *testing.T, url, name string, change ...func(*Options)) *Journal {
	t.Helper()
	o := options(t, url, newClock())
	o.Name = name
	for _, f := range change {
		f(&o)
	}
	return mustOpen(t, o)
}

// die ends a journal as a crash does: nothing is handed over.
func die(j *Journal) {
	j.end()
	j.conn.Close()
}

func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for start := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("it never was so: %s", what)
		}
	}
}

func mustAppend(t *testing.T, j *Journal, events ...event.Event) []journal.Receipt {
	t.Helper()
	receipts, err := j.Append(t.Context(), events...)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return receipts
}

func mustReader(t *testing.T, j *Journal) journal.Cursor {
	t.Helper()
	c, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatalf("Reader: %v", err)
	}
	return c
}

// read reads n events and returns their ids.
func read(t *testing.T, c journal.Cursor, n int) (ids []string, last journal.Seq) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(ids) < n {
		records, err := c.Next(ctx, n-len(ids))
		if err != nil {
			t.Fatalf("Next after %v: %v", ids, err)
		}
		for _, r := range records {
			ids, last = append(ids, r.Event.CloudEvent.ID()), r.Seq
		}
	}
	return ids, last
}

func numbered(from, to int) (events []event.Event) {
	for n := from; n < to; n++ {
		events = append(events, journaltest.Event(fmt.Sprint(n)))
	}
	return events
}

// Twins that come in at several processes at the same moment are stored once,
// whichever of their keys they share.
func TestTwinsOfSeveralProcesses(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	fleet := []*Journal{process(t, url, "a"), process(t, url, "b"), process(t, url, "c")}
	const n = 50
	var all sync.WaitGroup
	stored := make([]int, n)
	var mu sync.Mutex
	for i := range n {
		for p, j := range fleet {
			for twin := range 2 {
				all.Go(func() {
					keys := []event.Key{event.Key(fmt.Sprint("first", i)), event.Key(fmt.Sprint("second", i))}
					if twin == 1 { // known by its other key alone
						keys = keys[1:]
					}
					r, err := j.Append(t.Context(), journaltest.Event(fmt.Sprint(i), keys...))
					if err != nil {
						t.Errorf("Append at %d: %v", p, err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if !r[0].Duplicate {
						stored[i]++
					}
				})
			}
		}
	}
	all.Wait()
	for i, times := range stored {
		if times != 1 {
			t.Errorf("event %d was stored %d times", i, times)
		}
	}
	within(t, "there are as many events as there were", func() bool { return fleet[0].Usage().Events == n })
}

// A process that ends hands its sinks over at once, with what it had in hand; one
// that dies is followed within seconds. Nothing is skipped, and order holds.
func TestSinksChangeHands(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	a, b := process(t, url, "a"), process(t, url, "b")
	ca, cb := mustReader(t, a), mustReader(t, b)
	mustAppend(t, a, numbered(0, 10)...)
	ids, _ := read(t, ca, 10)
	if got := strings.Join(ids, " "); got != "0 1 2 3 4 5 6 7 8 9" {
		t.Fatalf("read %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if records, err := cb.Next(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the other process was given %v, %v", records, err)
	}
	cancel()
	within(t, "each knows who reads", func() bool {
		h := cb.Owner()
		return h.Name == "a" && !h.Local && ca.Owner().Local && cb.Lag() == 10
	})

	records, err := a.Read(t.Context(), 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Commit(t.Context(), journal.Progress{Done: journal.UpTo(records[3].Seq).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: records[1].Seq, Reason: "invalid"}}}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := ca.Close(); err != nil {
		t.Fatal(err)
	}
	ids, _ = read(t, cb, 6)
	if got := strings.Join(ids, " "); got != "4 5 6 7 8 9" {
		t.Errorf("after it was handed over: %s", got)
	}
	if took := time.Since(began); took > defaultLease {
		t.Errorf("handing over took %v", took)
	}
	if d, err := b.DeadLetter(t.Context(), journal.DeliveryID{Sink: "sink", Seq: records[1].Seq}); err != nil || d.Event.CloudEvent.ID() != "1" {
		t.Errorf("DeadLetter = %v, %v", d, err)
	}

	// The other way round, without a word.
	if ca, err = a.Reader(t.Context(), "sink", journal.Earliest); err != nil {
		t.Fatal(err)
	}
	moved := cb.OwnershipLost()
	stood := make(chan []journal.Record, 1)
	go func() { // it stands by
		records, _ := ca.Next(t.Context(), 1)
		stood <- records
	}()
	die(b)
	mustAppend(t, a, numbered(10, 12)...)
	within(t, "the one that is left reads", func() bool { return ca.Owner().Local })
	if records := <-stood; len(records) != 1 || records[0].Event.CloudEvent.ID() != "4" {
		t.Errorf("the one that stood by was given %v", records)
	}
	ids, last := read(t, ca, 7)
	if got := strings.Join(ids, " "); got != "5 6 7 8 9 10 11" {
		t.Errorf("after the other one died: %s", got)
	}
	if err := ca.Commit(t.Context(), journal.UpTo(last)); err != nil {
		t.Errorf("Commit: %v", err)
	}
	within(t, "nothing is left", func() bool { return ca.Lag() == 0 })
	select {
	case <-moved:
	case <-time.After(20 * time.Second):
		t.Error("the dead one never heard that its events were another's")
	}
}

// Of the processes that ask, one leads, and another when it asks no more.
func TestLead(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	a, b := process(t, url, "a"), process(t, url, "b")
	lead := func(j *Journal, until time.Duration) bool {
		t.Helper()
		ok, err := j.AcquireLease(t.Context(), "work/1", until)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !lead(a, time.Minute) || lead(b, time.Minute) || !lead(a, time.Second) {
		t.Error("the first to ask does not lead alone")
	}
	within(t, "the other one leads", func() bool { return lead(b, time.Minute) })
	if lead(a, time.Minute) {
		t.Error("both lead")
	}
}

// An event that does not fit a message is stored in several, and one act may be
// larger than a batch.
func TestLargeEvents(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t, func(o *server.Options) { o.MaxPayload = 64 << 10 }).URL()
	j := process(t, url, "a")
	c := mustReader(t, j)
	large := journaltest.Event("large")
	large.CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("0123456789", 30_000) + `"`)
	events := append(numbered(0, 1200), large)
	receipts := mustAppend(t, j, events...)
	ids, last := read(t, c, len(events))
	if ids[1200] != "large" || receipts[1200].Seq != last {
		t.Errorf("the last is %s at %d, and was stored at %d", ids[1200], last, receipts[1200].Seq)
	}
	records, err := j.Read(t.Context(), last, 1)
	if err != nil || len(records) != 1 || string(records[0].Event.CloudEvent.DataEncoded) != string(large.CloudEvent.DataEncoded) {
		t.Fatalf("Read: %d records, %v", len(records), err)
	}
	if err := c.Commit(t.Context(), journal.Progress{Done: journal.UpTo(last).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: last, Reason: "too_large"}}}}); err != nil {
		t.Fatal(err)
	}
	at, err := j.Redeliver(t.Context(), journal.DeliveryID{Sink: "sink", Seq: last})
	if err != nil {
		t.Fatal(err)
	}
	if ids, again := read(t, c, 1); ids[0] != "large" || again != at {
		t.Errorf("retried: %s at %d, want %d", ids[0], again, at)
	}
	id, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Body: large.CloudEvent.DataEncoded})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := j.QuarantinedRequest(t.Context(), id); err != nil || string(r.Body) != string(large.CloudEvent.DataEncoded) {
		t.Errorf("Rejected: %d bytes, %v", len(r.Body), err)
	}
}

// A stream that is full refuses new events, and still takes dead letters.
func TestFull(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	j := process(t, url, "a", func(o *Options) { o.MaxBytes = 200_000 })
	c := mustReader(t, j)
	var err error
	n := 0
	for ; err == nil && n < 5000; n++ {
		_, err = j.Append(t.Context(), journaltest.Event(fmt.Sprint(n)))
	}
	if !errors.Is(err, journal.ErrFull) || !errors.Is(j.Check(), journal.ErrFull) {
		t.Fatalf("after %d events: %v, Check = %v", n, err, j.Check())
	}
	ids, last := read(t, c, n-1)
	if ids[0] != "0" {
		t.Errorf("the oldest is %s", ids[0])
	}
	if err := c.Commit(t.Context(), journal.Progress{Done: journal.UpTo(last).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: last, Reason: "invalid"}}}}); err != nil {
		t.Fatal(err)
	}
	// What every sink has passed makes room.
	within(t, "there is room", func() bool { return j.Check() == nil && j.Usage().Trimmed > 0 })
}

func TestStreamIsChecked(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	js := b.Connect(t)
	open := func(change func(*Options)) error {
		t.Helper()
		o := options(t, b.URL(), newClock())
		change(&o)
		j, err := Open(t.Context(), o)
		if err == nil {
			err = j.Close()
		}
		return err
	}
	want := func(err error, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("the error is %v, want it to say %q", err, part)
			}
		}
	}
	if err := open(func(*Options) {}); err != nil {
		t.Fatal(err)
	}
	want(open(func(o *Options) { o.MaxBytes = 1 << 30 }), "max_bytes is -1, and must be 1140850688", "journal.jetstream.update: true")
	if err := open(func(o *Options) { o.MaxBytes, o.Update = 1<<30, true }); err != nil {
		t.Error(err)
	}
	want(open(func(o *Options) { o.Replicas, o.Stream = 3, "other" }), "replicas > 1 not supported", "journal.jetstream.replicas: 1")
	s, err := js.Stream(t.Context(), "postwire")
	if err != nil {
		t.Fatal(err)
	}
	newer := s.CachedInfo().Config
	newer.Metadata[formatKey] = "99"
	if _, err := js.UpdateStream(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	want(open(func(o *Options) { o.MaxBytes = 1 << 30 }), "format 99 of another version")
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "theirs", Subjects: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	want(open(func(o *Options) { o.Stream = "theirs" }), "was not made by Postwire", "journal.jetstream.stream")
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "wide", Subjects: []string{"mine.>"}}); err != nil {
		t.Fatal(err)
	}
	want(open(func(o *Options) { o.Stream = "mine" }), "subjects overlap")
}

func TestServerVersions(t *testing.T) {
	for version, ok := range map[string]bool{"2.12.0": true, "v2.15.2": true, "3.0.0": true, "2.11.9": false, "2.9.25": false, "1.4.1": false, "dev": false} {
		err := checkVersion(version)
		if (err == nil) != ok {
			t.Errorf("%s: %v", version, err)
		}
		if err != nil && !strings.Contains(err.Error(), "2.12 or newer is needed") {
			t.Errorf("%s: %v", version, err)
		}
	}
}

func TestTokens(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"nats", "kafka-1", "replay/0190", "a.b", "a_b", "a_2Eb", "ü *>", "", "_", "%"} {
		got := token(name)
		if strings.ContainsAny(got, " .*>/") || seen[got] != "" {
			t.Errorf("token(%q) = %q, as of %q", name, got, seen[got])
		}
		seen[got] = name
		if back := untoken(got); back != name {
			t.Errorf("untoken(%q) = %q, want %q", got, back, name)
		}
	}
}

// On an idle cluster the replicas answer the leader every other second. A process does not
// take that for the loss of the quorum, and does not leave its server.
func TestIdleClusterHasQuorum(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	url := natstest.URLs(natstest.StartCluster(t, nil))
	o := options(t, url, newClock())
	o.Replicas, o.Log, o.replicaTimeout = 3, zap.New(core), 1 // in doubt at every poll
	var j *Journal
	within(t, "the cluster is ready", func() (ready bool) {
		var err error
		j, err = Open(t.Context(), o)
		return err == nil
	})
	defer j.Close()
	logs.TakeAll()
	before := j.conn.Stats().Reconnects
	for range 5 {
		if err := j.poll(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := j.conn.Stats().Reconnects - before; n > 0 {
		t.Errorf("%d reconnects", n)
	}
	if all := logs.TakeAll(); len(all) > 0 {
		t.Errorf("the log says %+v", all)
	}
}
