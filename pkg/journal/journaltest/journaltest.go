// Package journaltest is the conformance suite of journal engines. The name of each test is
// a sentence of the contract in package journal.
package journaltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
)

// Harness is the journal under test with its environment.
type Harness struct {
	// Open opens the journal. Each call uses the same storage.
	Open func(t *testing.T) journal.Journal
	// Advance moves the clock of the journal.
	Advance func(time.Duration)
	// Expire removes expired data at once.
	Expire func(t *testing.T, j journal.Journal)
	// Window, Retention and Quarantine (bytes per source) are the settings of Open.
	Window, Retention time.Duration
	Quarantine        uint64
	// Discarded counts the requests that the journals of Open discarded.
	Discarded *Discarded
	// Consecutive is set if the engine assigns sequences without gaps.
	Consecutive bool
}

// Run runs the suite; start returns a harness with empty storage.
func Run(t *testing.T, start func(t *testing.T) Harness) {
	tests := []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"events are read back in order and whole", readBack},
		{"an event with a seen key is a duplicate", duplicates},
		{"any shared key makes a duplicate", anyKey},
		{"a key that is given twice is one key", sameKeyTwice},
		{"a duplicate teaches its other keys and extends nothing", duplicateTeaches},
		{"events of one append are compared with each other", withinAppend},
		{"of concurrent twins exactly one is stored", conflicts},
		{"the window ends at its edge", windowEdge},
		{"duplicates are known after reopening", reopenedWindow},
		{"sequence numbers have no gaps under concurrency", consecutive},
		{"a new cursor stands at latest or earliest", starts},
		{"a known cursor stands where it was committed", committed},
		{"what was read but not committed is read again", rereads},
		{"done ranges after the committed sequence are kept", doneRanges},
		{"next waits for an event", waits},
		{"next ends with its context", cancelled},
		{"cursors are independent", independent},
		{"dead letters are kept with their event", deadLetters},
		{"dead letters are listed from any place", deadPages},
		{"a dead letter is retried once, for its sink", retryDead},
		{"a dropped dead letter is remembered", dropDead},
		{"a dead letter is copied to another sink in the same write", copyDead},
		{"what was given up is known until it expires", discarded},
		{"a record names the source that its keys are of", sourced},
		{"the journal keeps its ID after reopening", identity},
		{"rejected requests are kept", quarantine},
		{"a repeat of a rejected request is counted", repeats},
		{"concurrent repeats are kept once and counted", concurrentRepeats},
		{"what tells two rejected requests apart is source and body", identities},
		{"a repeat of what is gone is kept anew", repeatAnew},
		{"a repeat beside a release is not lost", repeatBesideRelease},
		{"the oldest rejected requests of a source make room", sourceShare},
		{"a rejected request larger than its source's share is kept", largerThanShare},
		{"retention discards what was not received again", quarantineRetention},
		{"a rejected request is released once", release},
		{"the log is read without a cursor", logAccess},
		{"notes are kept", values},
		{"a cursor starts at a place and can be forgotten", startAt},
		{"retention spares what a cursor has not passed", retention},
		{"sequence numbers are not given twice after everything expired", noReuse},
		{"after close everything says so", closed},
		{"an event without a key is refused", keyless},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, start(t)) })
	}
}

// Event returns an event with an id and identity keys; the default key contains the id.
func Event(id string, keys ...event.Key) event.Event {
	e := cloudevents.NewEvent()
	e.SetID(id)
	e.SetType("com.example.test")
	e.SetSource("https://example.com/profiles/a%2Fb")
	e.SetSubject("instagram/" + id)
	e.SetTime(time.Date(2024, 3, 15, 14, 30, 0, 123456000, time.UTC))
	e.SetDataSchema("urn:postwire:schema:com.example.test:1")
	e.SetExtension(event.Platform, "instagram")
	e.SetExtension(event.RecordedTime, time.Date(2024, 3, 15, 14, 30, 1, 0, time.UTC))
	e.SetDataContentType("application/json")
	e.DataEncoded = []byte(`{"id": "` + id + `", "title": "ünï"}`)
	if len(keys) == 0 {
		keys = []event.Key{event.NewKey("test", id)}
	}
	return event.Event{CloudEvent: e, Keys: keys}
}

func identity(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Earliest)
	mustAppend(t, j, Event("a"))
	if _, err := c.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	id := j.ID()
	if id == "" || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		t.Errorf("the ID is %q", id)
	}
	if err := errors.Join(c.Close(), j.Close()); err != nil {
		t.Fatal(err)
	}
	j = h.Open(t)
	c = mustReader(t, j, "sink", journal.Earliest)
	if _, err := c.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if again := j.ID(); again != id {
		t.Errorf("the ID is %q after reopening, was %q", again, id)
	}
}

func mustAppend(t *testing.T, j journal.Journal, events ...event.Event) []journal.Receipt {
	t.Helper()
	receipts, err := j.Append(t.Context(), events...)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	if len(receipts) != len(events) {
		t.Fatalf("Append gave %d receipts for %d events", len(receipts), len(events))
	}
	return receipts
}

func mustReader(t *testing.T, j journal.Journal, name string, start journal.Start) journal.Cursor {
	t.Helper()
	c, err := j.Reader(t.Context(), name, start)
	if err != nil {
		t.Fatalf("Reader(%s): %v", name, err)
	}
	return c
}

// mustRead reads n records. Each comes within ten seconds.
func mustRead(t *testing.T, c journal.Cursor, n int) []journal.Record {
	t.Helper()
	var records []journal.Record
	for len(records) < n {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		next, err := c.Next(ctx, n-len(records))
		cancel()
		if err != nil {
			t.Fatalf("Next after %d of %d records: %v", len(records), n, err)
		}
		records = append(records, next...)
	}
	return records
}

func mustCommit(t *testing.T, c journal.Cursor, through journal.Seq, dead ...journal.DeadLetter) {
	t.Helper()
	if err := c.Commit(t.Context(), journal.Progress{Done: journal.UpTo(through).Done, Undelivered: journal.Undelivered{Dead: dead}}); err != nil {
		t.Fatalf("Commit(%d): %v", through, err)
	}
}

func mustClose(t *testing.T, j journal.Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// mustBeIdle fails the test if the cursor has a record.
func mustBeIdle(t *testing.T, c journal.Cursor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if records, err := c.Next(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Next = %v, %v; want to wait", records, err)
	}
}

// within waits for a condition.
func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for start := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("it never was so: %s", what)
		}
	}
}

func ids(records []journal.Record) []string {
	var s []string
	for _, r := range records {
		s = append(s, r.Event.CloudEvent.ID())
	}
	return s
}

func wantIDs(t *testing.T, got []journal.Record, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, ids(got)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func readBack(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	want := []event.Event{Event("a"), Event("b"), Event("c")}
	bare := cloudevents.NewEvent()
	bare.SetID("bare")
	bare.SetType("t")
	bare.SetSource("/s")
	want = append(want, event.Event{CloudEvent: bare, Keys: []event.Key{"k"}})
	mustAppend(t, j, want[:2]...)
	mustAppend(t, j, want[2:]...)
	for i, r := range mustRead(t, c, len(want)) {
		if err := r.Event.CloudEvent.Validate(); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
		if diff := cmp.Diff(want[i].CloudEvent.String(), r.Event.CloudEvent.String()); diff != "" {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
		if diff := cmp.Diff(want[i].CloudEvent.Data(), r.Event.CloudEvent.Data(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("data of record %d (-want +got):\n%s", i, diff)
		}
		if h.Consecutive && r.Seq != journal.Seq(i+1) {
			t.Errorf("record %d has seq %d", i, r.Seq)
		}
		if i == len(want)-1 && j.Last() != r.Seq {
			t.Errorf("Last = %d, want %d", j.Last(), r.Seq)
		}
	}
}

func duplicates(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	first := mustAppend(t, j, Event("a"))[0]
	if first.Duplicate || first.ID != "a" {
		t.Errorf("first receipt = %+v", first)
	}
	again := mustAppend(t, j, Event("a"))[0]
	if !again.Duplicate || again.ID != "a" || again.Seq != first.Seq {
		t.Errorf("second receipt = %+v, first = %+v", again, first)
	}
	wantIDs(t, mustRead(t, c, 1), "a")
	mustBeIdle(t, c)
}

func anyKey(t *testing.T, h Harness) {
	j := h.Open(t)
	first := mustAppend(t, j, Event("a", "k1", "k2"))[0]
	for _, keys := range [][]event.Key{{"k2"}, {"k1"}, {"k9", "k2"}} {
		r := mustAppend(t, j, Event("other", keys...))[0]
		if !r.Duplicate || r.ID != "a" || r.Seq != first.Seq {
			t.Errorf("keys %v: receipt = %+v", keys, r)
		}
	}
	if r := mustAppend(t, j, Event("b", "k3"))[0]; r.Duplicate {
		t.Errorf("an unseen key: receipt = %+v", r)
	}
}

func sameKeyTwice(t *testing.T, h Harness) {
	j := h.Open(t)
	if r := mustAppend(t, j, Event("a", "k", "k")); r[0].Duplicate {
		t.Errorf("the first one: %+v", r)
	}
	for _, e := range []event.Event{Event("b", "k", "l", "l"), Event("c", "l")} {
		if r := mustAppend(t, j, e); !r[0].Duplicate || r[0].ID != "a" {
			t.Errorf("a twin: %+v", r)
		}
	}
}

func duplicateTeaches(t *testing.T, h Harness) {
	j := h.Open(t)
	mustAppend(t, j, Event("a", "k1"))
	h.Advance(h.Window / 2)
	mustAppend(t, j, Event("a", "k1", "k2"))
	if r := mustAppend(t, j, Event("x", "k2"))[0]; !r.Duplicate || r.ID != "a" {
		t.Errorf("a key learned from a duplicate: receipt = %+v", r)
	}
	h.Advance(h.Window / 2)
	if r := mustAppend(t, j, Event("y", "k2"))[0]; r.Duplicate {
		t.Errorf("a duplicate extended the window: receipt = %+v", r)
	}
}

func withinAppend(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	r := mustAppend(t, j, Event("a", "k1"), Event("b", "k2"), Event("c", "k1"))
	if r[0].Duplicate || r[1].Duplicate || !r[2].Duplicate || r[2].ID != "a" {
		t.Errorf("receipts = %+v", r)
	}
	wantIDs(t, mustRead(t, c, 2), "a", "b")
	mustBeIdle(t, c)
}

func conflicts(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	const n = 200
	var wg sync.WaitGroup
	receipts := make([]journal.Receipt, n)
	for i := range n {
		wg.Go(func() {
			r, err := j.Append(t.Context(), Event("a"))
			if err != nil {
				t.Errorf("Append: %v", err)
				return
			}
			receipts[i] = r[0]
		})
	}
	wg.Wait()
	stored := 0
	for _, r := range receipts {
		if !r.Duplicate {
			stored++
		}
	}
	if stored != 1 {
		t.Errorf("%d of %d twins were stored, want 1", stored, n)
	}
	wantIDs(t, mustRead(t, c, 1), "a")
	mustBeIdle(t, c)
}

func windowEdge(t *testing.T, h Harness) {
	j := h.Open(t)
	mustAppend(t, j, Event("a"))
	h.Advance(h.Window - 1)
	h.Expire(t, j)
	if r := mustAppend(t, j, Event("a"))[0]; !r.Duplicate {
		t.Error("a nanosecond before the edge: not a duplicate")
	}
	h.Advance(1)
	if r := mustAppend(t, j, Event("a"))[0]; r.Duplicate {
		t.Error("at the edge: still a duplicate")
	}
	// The second event has a later window, over several removals.
	for range 4 {
		h.Advance(h.Window / 5)
		h.Expire(t, j)
		if r := mustAppend(t, j, Event("a"))[0]; !r.Duplicate {
			t.Error("inside the second window: not a duplicate")
		}
	}
}

func reopenedWindow(t *testing.T, h Harness) {
	j := h.Open(t)
	first := mustAppend(t, j, Event("a", "k1", "k2"))[0]
	mustClose(t, j)
	j = h.Open(t)
	if r := mustAppend(t, j, Event("a", "k2"))[0]; !r.Duplicate || r.Seq != first.Seq {
		t.Errorf("receipt = %+v", r)
	}
	h.Advance(h.Window)
	if r := mustAppend(t, j, Event("a", "k2"))[0]; r.Duplicate {
		t.Errorf("outside the window: receipt = %+v", r)
	}
}

func consecutive(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	const writers, each = 16, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				// Every third event is a duplicate of the previous event.
				if _, err := j.Append(t.Context(), Event(fmt.Sprintf("%d-%d", w, i-i%3/2))); err != nil {
					t.Errorf("Append: %v", err)
					return
				}
			}
		})
	}
	unique := writers * (each - each/3)
	last := journal.Seq(0)
	seen := map[string]bool{}
	for _, r := range mustRead(t, c, unique) {
		if r.Seq <= last || h.Consecutive && r.Seq != last+1 {
			t.Fatalf("seq %d follows %d", r.Seq, last)
		}
		last, seen[r.Event.CloudEvent.ID()] = r.Seq, true
	}
	if len(seen) != unique {
		t.Errorf("%d events were read, want %d", len(seen), unique)
	}
	wg.Wait()
	mustBeIdle(t, c)
}

func starts(t *testing.T, h Harness) {
	j := h.Open(t)
	mustAppend(t, j, Event("a"), Event("b"))
	latest := mustReader(t, j, "latest", journal.Latest)
	earliest := mustReader(t, j, "earliest", journal.Earliest)
	mustAppend(t, j, Event("c"))
	wantIDs(t, mustRead(t, latest, 1), "c")
	wantIDs(t, mustRead(t, earliest, 3), "a", "b", "c")
	// A cursor without a commit keeps its start.
	mustClose(t, j)
	j = h.Open(t)
	wantIDs(t, mustRead(t, mustReader(t, j, "latest", journal.Latest), 1), "c")
}

func committed(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	mustAppend(t, j, Event("a"), Event("b"), Event("c"))
	records := mustRead(t, c, 2)
	mustCommit(t, c, records[1].Seq)
	if c.Committed() != records[1].Seq {
		t.Errorf("Committed = %d", c.Committed())
	}
	mustClose(t, j)
	j = h.Open(t)
	c = mustReader(t, j, "sink", journal.Earliest)
	if c.Committed() != records[1].Seq {
		t.Errorf("Committed after reopening = %d", c.Committed())
	}
	wantIDs(t, mustRead(t, c, 1), "c")
}

func rereads(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	mustAppend(t, j, Event("a"), Event("b"))
	wantIDs(t, mustRead(t, c, 2), "a", "b")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, mustRead(t, mustReader(t, j, "sink", journal.Latest), 2), "a", "b")
}

func doneRanges(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Earliest)
	mustAppend(t, j, Event("a"), Event("b"), Event("c"), Event("d"), Event("e"))
	var seqs []journal.Seq
	for _, r := range mustRead(t, c, 5) {
		seqs = append(seqs, r.Seq)
	}
	// check checks the cursor and its stored position.
	check := func(when string, committed journal.Seq, done []journal.Range, open ...int) {
		t.Helper()
		if c.Committed() != committed {
			t.Errorf("%s: Committed = %d, want %d", when, c.Committed(), committed)
		}
		for i, s := range seqs {
			if want := !slices.Contains(open, i); c.Done(s) != want {
				t.Errorf("%s: Done(%d) = %v", when, s, !want)
			}
		}
		within(t, fmt.Sprintf("%s: the lag is %d", when, len(open)), func() bool { return c.Lag() == uint64(len(open)) })
		all, err := j.Cursors(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: Cursors = %v, %v", when, all, err)
		}
		if p := all[0]; p.Committed != committed || !slices.Equal(p.Done, done) || p.Lag != uint64(len(open)) {
			t.Errorf("%s: the position is %+v, want %v after %d and %d open", when, p, done, committed, len(open))
		}
	}
	reopen := func() {
		t.Helper()
		mustClose(t, j)
		j = h.Open(t)
		c = mustReader(t, j, "sink", journal.Latest)
	}
	commit := func(open uint64, done ...journal.Range) {
		t.Helper()
		if err := c.Commit(t.Context(), journal.Progress{Done: done, Open: open}); err != nil {
			t.Fatal(err)
		}
	}
	started := c.StartSeq()
	commit(4, journal.Range{From: seqs[1], To: seqs[1]})
	commit(3, journal.Range{From: seqs[3], To: seqs[3]})
	holes := []journal.Range{{From: seqs[1], To: seqs[1]}, {From: seqs[3], To: seqs[3]}}
	check("with holes", started, holes, 0, 2, 4)
	reopen()
	mustRead(t, c, 1)
	check("with holes, after reopening", started, holes, 0, 2, 4)
	mustRead(t, c, 4)
	check("with holes, after reading again", started, holes, 0, 2, 4)
	commit(2, journal.Range{From: started + 1, To: seqs[1] - 1})
	check("without the first hole", seqs[1], holes[1:], 2, 4)
	commit(1, journal.Range{From: seqs[1], To: seqs[3] - 1})
	check("without holes", seqs[3], nil, 4)
	reopen()
	check("without holes, after reopening", seqs[3], nil, 4)
	wantIDs(t, mustRead(t, c, 1), "e")
	mustCommit(t, c, seqs[4])
	check("at the end", seqs[4], nil)
}

func waits(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	got := make(chan []journal.Record)
	go func() {
		records, err := c.Next(t.Context(), 10)
		if err != nil {
			t.Errorf("Next: %v", err)
		}
		got <- records
	}()
	mustAppend(t, j, Event("a"))
	wantIDs(t, <-got, "a")
}

func cancelled(t *testing.T, h Harness) {
	c := mustReader(t, h.Open(t), "sink", journal.Latest)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Next(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Next = %v", err)
	}
}

func independent(t *testing.T, h Harness) {
	j := h.Open(t)
	a, b := mustReader(t, j, "a", journal.Latest), mustReader(t, j, "b", journal.Latest)
	mustAppend(t, j, Event("1"), Event("2"))
	records := mustRead(t, a, 2)
	mustCommit(t, a, records[1].Seq)
	wantIDs(t, mustRead(t, b, 2), "1", "2")
	if b.Committed() != b.StartSeq() {
		t.Errorf("b was committed at %d", b.Committed())
	}
	within(t, "a is 0 and b is 2 behind", func() bool { return a.Lag() == 0 && b.Lag() == 2 })
	within(t, "both are read here", func() bool { return a.Owner().Local && b.Owner().Local })
	if _, err := j.Reader(t.Context(), "a", journal.Latest); err == nil {
		t.Error("one cursor was opened twice")
	}
}

func deadLetters(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	other := mustReader(t, j, "sink2", journal.Latest)
	mustAppend(t, j, Event("a"), Event("b"), Event("c"))
	records := mustRead(t, c, 3)
	letter := journal.DeadLetter{
		Seq: records[1].Seq, Reason: "too_large", Err: "message size exceeds maximum", Attempts: 3,
		First: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Last: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
	mustCommit(t, c, records[2].Seq, letter)
	mustCommit(t, other, mustRead(t, other, 3)[2].Seq)
	h.Advance(h.Retention + time.Hour)
	h.Expire(t, j)
	mustClose(t, j)
	j = h.Open(t)
	var got []journal.Dead
	for d, err := range j.DeadLetters(t.Context(), journal.DeliveryID{}) {
		if err != nil {
			t.Fatalf("DeadLetters: %v", err)
		}
		got = append(got, d)
	}
	if len(got) != 1 {
		t.Fatalf("%d dead letters, want 1", len(got))
	}
	if diff := cmp.Diff(letter, got[0].Letter); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
	wantIDs(t, []journal.Record{got[0].Record}, "b")
	if got[0].ID() != (journal.DeliveryID{Sink: "sink", Seq: records[1].Seq}) {
		t.Errorf("ID = %+v", got[0].ID())
	}
	one, err := j.DeadLetter(t.Context(), got[0].ID())
	if err != nil || one.Letter != got[0].Letter {
		t.Errorf("DeadLetter = %+v, %v", one, err)
	}
	if _, err := j.DeadLetter(t.Context(), journal.DeliveryID{Sink: "sink2", Seq: records[1].Seq}); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("DeadLetter of the other sink = %v", err)
	}
}

// bury makes dead letters of events, and returns their IDs.
func bury(t *testing.T, sink string, c journal.Cursor, n int) (buried []journal.DeliveryID) {
	t.Helper()
	var dead []journal.DeadLetter
	records := mustRead(t, c, n)
	for _, r := range records {
		dead = append(dead, journal.DeadLetter{Seq: r.Seq, Reason: "invalid"})
		buried = append(buried, journal.DeliveryID{Sink: sink, Seq: r.Seq})
	}
	mustCommit(t, c, records[n-1].Seq, dead...)
	return buried
}

func deadOf(t *testing.T, j journal.Journal, after journal.DeliveryID) (ids []journal.DeliveryID) {
	t.Helper()
	for d, err := range j.DeadLetters(t.Context(), after) {
		if err != nil {
			t.Fatalf("DeadLetters: %v", err)
		}
		ids = append(ids, d.ID())
	}
	return ids
}

func deadPages(t *testing.T, h Harness) {
	j := h.Open(t)
	a, b := mustReader(t, j, "a", journal.Latest), mustReader(t, j, "b", journal.Latest)
	mustAppend(t, j, Event("1"), Event("2"), Event("3"))
	all := append(bury(t, "a", a, 3), bury(t, "b", b, 2)...)
	if diff := cmp.Diff(all, deadOf(t, j, journal.DeliveryID{})); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	for i := range all {
		if diff := cmp.Diff(all[i+1:], deadOf(t, j, all[i]), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("behind %v (-want +got):\n%s", all[i], diff)
		}
	}
}

func retryDead(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	mustAppend(t, j, Event("a"), Event("b"))
	ids := bury(t, "sink", c, 2)
	var once sync.Map
	var wg sync.WaitGroup
	for range 8 { // two operators at once
		wg.Go(func() {
			s, err := j.Redeliver(t.Context(), ids[0])
			if err == nil {
				once.Store(s, true)
			} else if !errors.Is(err, journal.ErrNotFound) {
				t.Errorf("Retry: %v", err)
			}
		})
	}
	wg.Wait()
	n, at := 0, journal.Seq(0)
	once.Range(func(s, _ any) bool {
		n++
		at = s.(journal.Seq)
		return true
	})
	if n != 1 {
		t.Fatalf("retried %d times", n)
	}
	records := mustRead(t, c, 1)
	if r := records[0]; r.Event.CloudEvent.ID() != "a" || r.TargetSink != "sink" || r.OriginSeq != ids[0].Seq || r.Seq != at {
		t.Errorf("record = %+v", r)
	}
	lost, err := j.Disposition(t.Context(), ids[0])
	if err != nil || lost.Reason != journal.Redelivered || lost.RedeliveredAs != at {
		t.Errorf("Lost = %+v, %v", lost, err)
	}
	// The original sequence stays after a second refusal.
	mustCommit(t, c, at, journal.DeadLetter{Seq: at, Reason: "invalid"})
	mustClose(t, j)
	j = h.Open(t)
	if s, err := j.Redeliver(t.Context(), journal.DeliveryID{Sink: "sink", Seq: at}); err != nil || s <= at {
		t.Fatalf("Retry = %d, %v", s, err)
	}
	if r := mustRead(t, mustReader(t, j, "sink", journal.Latest), 1)[0]; r.OriginSeq != ids[0].Seq || r.TargetSink != "sink" {
		t.Errorf("record = %+v", r)
	}
	if diff := cmp.Diff(ids[1:], deadOf(t, j, journal.DeliveryID{})); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

func copyDead(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	mustReader(t, j, "dead", journal.Latest)
	mustAppend(t, j, Event("a"), Event("b"))
	records := mustRead(t, c, 2)
	last := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	mustCommit(t, c, records[1].Seq,
		journal.DeadLetter{Seq: records[0].Seq, Reason: "invalid", Attempts: 3, Last: last, CopyTo: "dead"},
		journal.DeadLetter{Seq: records[1].Seq, Reason: "invalid"})
	mustClose(t, j)

	j = h.Open(t)
	ids := []journal.DeliveryID{{Sink: "sink", Seq: records[0].Seq}, {Sink: "sink", Seq: records[1].Seq}}
	if diff := cmp.Diff(ids, deadOf(t, j, journal.DeliveryID{})); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	if d, err := j.DeadLetter(t.Context(), ids[0]); err != nil || d.Letter.CopyTo != "dead" {
		t.Errorf("DeadLetter = %+v, %v", d, err)
	}
	other := mustReader(t, j, "dead", journal.Latest)
	r := mustRead(t, other, 3)[2]
	if r.TargetSink != "dead" || r.DeadLetterOf != "sink" || r.OriginSeq != ids[0].Seq || r.Seq <= ids[1].Seq || r.Event.SourceName != "test" {
		t.Errorf("record = %+v", r)
	}
	want := Event("a").CloudEvent
	want.SetExtension(event.DeadLetterID, fmt.Sprintf("%d@sink", ids[0].Seq))
	want.SetExtension(event.DeadLetterSink, "sink")
	want.SetExtension(event.DeadLetterReason, "invalid")
	want.SetExtension(event.DeadLetterAttempts, 3)
	want.SetExtension(event.DeadLetterTime, last)
	if diff := cmp.Diff(want.String(), r.Event.CloudEvent.String()); diff != "" {
		t.Errorf("copy (-want +got):\n%s", diff)
	}
	mustBeIdle(t, other) // only one of the dead letters was copied
	if got := mustAppend(t, j, Event("a"))[0]; !got.Duplicate || got.Seq != ids[0].Seq {
		t.Errorf("a repeat of the original is %+v, want a duplicate of the original", got)
	}
}

func dropDead(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	mustAppend(t, j, Event("a"))
	id := bury(t, "sink", c, 1)[0]
	if err := j.Drop(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := j.Drop(t.Context(), id); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("the second Drop = %v", err)
	}
	if got := deadOf(t, j, journal.DeliveryID{}); len(got) != 0 {
		t.Errorf("dead letters: %v", got)
	}
	if lost, err := j.Disposition(t.Context(), id); err != nil || lost.Reason != journal.DroppedByOperator {
		t.Errorf("Lost = %+v, %v", lost, err)
	}
}

func discarded(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	for i := range 12 {
		mustAppend(t, j, Event(fmt.Sprint(i)))
	}
	records := mustRead(t, c, 12)
	seq := func(n int) journal.Seq { return records[n-1].Seq }
	give := func(through journal.Seq, ranges ...journal.Disposition) {
		t.Helper()
		if err := c.Commit(t.Context(), journal.Progress{Done: journal.UpTo(through).Done, Undelivered: journal.Undelivered{Discarded: ranges}}); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	give(seq(4), journal.Disposition{From: seq(2), To: seq(4), Reason: journal.DiscardedAfter, At: at})
	give(seq(6), journal.Disposition{From: seq(5), To: seq(6), Reason: journal.DiscardedAfter, At: at})
	give(seq(10), journal.Disposition{From: seq(8), To: seq(8), Reason: journal.DiscardedBeyond, At: at}, journal.Disposition{From: seq(10), To: seq(10), Reason: journal.DiscardedBeyond, At: at})
	check := func(want string) {
		t.Helper()
		var got strings.Builder
		for _, r := range records {
			switch lost, err := j.Disposition(t.Context(), journal.DeliveryID{Sink: "sink", Seq: r.Seq}); {
			case errors.Is(err, journal.ErrNotFound):
				got.WriteString(".")
			case err != nil:
				t.Fatal(err)
			default:
				got.WriteString(map[string]string{journal.DiscardedAfter: "a", journal.DiscardedBeyond: "e"}[lost.Reason])
			}
		}
		if got := got.String(); got != want {
			t.Errorf("given up: %s, want %s", got, want)
		}
	}
	check(".aaaaa.e.e..")
	if _, err := j.Disposition(t.Context(), journal.DeliveryID{Sink: "other", Seq: seq(3)}); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("Lost of another sink = %v", err)
	}
	// Dispositions are removed with their events.
	mustCommit(t, c, seq(12))
	h.Advance(h.Retention)
	mustAppend(t, j, Event("new"))
	h.Advance(time.Second)
	h.Expire(t, j)
	check("............")
}

func release(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	var kept []string
	for _, body := range []string{"1", "2", "{"} {
		id, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, id)
	}
	mustAppend(t, j, Event("a"))
	r, err := j.Release(t.Context(), kept[0], Event("a"), Event("b"))
	if err != nil || len(r) != 2 || !r[0].Duplicate || r[1].Duplicate {
		t.Errorf("Release = %+v, %v", r, err)
	}
	if _, err := j.Release(t.Context(), kept[0], Event("c")); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("the second Release = %v", err)
	}
	if _, err := j.Release(t.Context(), kept[1]); err != nil {
		t.Errorf("Release without events = %v", err)
	}
	wantIDs(t, mustRead(t, c, 2), "a", "b")
	mustBeIdle(t, c)
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil || r.ID != kept[2] {
			t.Errorf("still quarantined: %s, %v", r.ID, err)
		}
	}
	for r, err := range j.Quarantined(t.Context(), kept[2]) {
		t.Errorf("behind the last: %v, %v", r, err)
	}
	if r, err := j.QuarantinedRequest(t.Context(), kept[2]); err != nil || r.ID != kept[2] || string(r.Body) != "{" {
		t.Errorf("Rejected = %+v, %v", r, err)
	}
	if _, err := j.QuarantinedRequest(t.Context(), kept[1]); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("Rejected of what is gone = %v", err)
	}
}

func logAccess(t *testing.T, h Harness) {
	j := h.Open(t)
	read := func(from journal.Seq, limit int, want ...string) {
		t.Helper()
		records, err := j.Read(t.Context(), from, limit)
		if err != nil {
			t.Fatal(err)
		}
		wantIDs(t, records, want...)
	}
	since := func(at time.Time, want journal.Seq) {
		t.Helper()
		if s, err := j.Since(t.Context(), at); err != nil || s != want {
			t.Errorf("Since(%v) = %d, %v; want %d", at, s, err, want)
		}
	}
	count := func(from, through journal.Seq, want uint64) {
		t.Helper()
		within(t, fmt.Sprintf("%d events from %d through %d", want, from, through), func() bool {
			n, err := j.Count(t.Context(), from, through)
			return err == nil && n == want
		})
	}
	read(0, 10)
	count(0, math.MaxUint64, 0)
	since(time.Time{}, j.Last()+1)
	var times []time.Time
	var at []journal.Seq
	for _, id := range []string{"a", "b", "c"} {
		at = append(at, mustAppend(t, j, Event(id))[0].Seq)
		records, err := j.Read(t.Context(), j.Last(), 1)
		if err != nil || len(records) != 1 {
			t.Fatal(records, err)
		}
		times = append(times, records[0].Accepted)
		h.Advance(time.Minute)
	}
	read(0, 2, "a", "b")
	read(at[1], 10, "b", "c")
	read(at[2]+1, 10)
	count(0, at[2], 3)
	count(at[0]+1, at[2]-1, 1)
	count(at[1], at[1], 1)
	count(at[2], at[1], 0)
	count(at[2]+1, math.MaxUint64, 0)
	since(times[0], at[0])
	since(times[0].Add(1), at[1])
	since(times[2], at[2])
	since(times[2].Add(1), j.Last()+1)
	if err := j.Wait(t.Context(), at[2]); err != nil {
		t.Errorf("Wait = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := j.Wait(ctx, at[2]+1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait for what is not there = %v", err)
	}
	h.Advance(h.Retention - 2*time.Minute)
	h.Expire(t, j)
	if j.Oldest() != at[1] || j.Last() != at[2] {
		t.Errorf("from %d to %d", j.Oldest(), j.Last())
	}
	read(0, 10, "b", "c")
	count(0, math.MaxUint64, 2)
	since(time.Time{}, at[1])
}

func values(t *testing.T, h Harness) {
	j := h.Open(t)
	for _, n := range []journal.KVEntry{{Key: "a/1", Value: []byte("x")}, {Key: "a/2", Value: []byte("y")}, {Key: "b/1", Value: []byte("z")}, {Key: "a/2", Value: nil}, {Key: "a/1", Value: []byte("new")}} {
		put := j.PutValue
		if n.Value == nil {
			put = func(ctx context.Context, key string, _ []byte) error { return j.DeleteValue(ctx, key) }
		}
		if err := put(t.Context(), n.Key, n.Value); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, j)
	var got []journal.KVEntry
	for n, err := range h.Open(t).Values(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, n)
	}
	if diff := cmp.Diff([]journal.KVEntry{{Key: "a/1", Value: []byte("new")}}, got); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func startAt(t *testing.T, h Harness) {
	j := h.Open(t)
	r := mustAppend(t, j, Event("a"), Event("b"), Event("c"))
	c := mustReader(t, j, "at", journal.Start(r[0].Seq))
	if c.StartSeq() != r[0].Seq {
		t.Errorf("Began = %d", c.StartSeq())
	}
	mustCommit(t, c, mustRead(t, c, 2)[0].Seq)
	if err := j.DeleteCursor(t.Context(), "at"); err == nil {
		t.Error("an open cursor was forgotten")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c = mustReader(t, j, "at", journal.Earliest); c.StartSeq() != r[0].Seq || c.Committed() != r[1].Seq {
		t.Errorf("began at %d, stands at %d", c.StartSeq(), c.Committed())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := j.Cursors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i].InUse = false // another process may not have noticed the end
	}
	if diff := cmp.Diff([]journal.Position{{Name: "at", Committed: r[1].Seq, StartSeq: r[0].Seq, Lag: 1}}, all); diff != "" {
		t.Errorf("cursors (-want +got):\n%s", diff)
	}
	if err := j.DeleteCursor(t.Context(), "at"); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, mustRead(t, mustReader(t, j, "at", journal.Earliest), 3), "a", "b", "c")
	if c = mustReader(t, j, "beyond", journal.Start(r[2].Seq+99)); c.Committed() != r[2].Seq {
		t.Errorf("a cursor from beyond the end stands at %d", c.Committed())
	}
}

func quarantine(t *testing.T, h Harness) {
	j := h.Open(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := []journal.QuarantinedRequest{
		{Source: "s", Received: at, Method: "POST", Path: "/in", RawQuery: "a=b&a=c", Header: http.Header{"A": {"b"}}, Body: []byte("\xff{"), Reason: "not JSON"},
		{Source: "s", Received: at, Body: []byte("2"), Reason: "no event"},
		{Source: "t", Received: at, Body: bytes.Repeat([]byte("large"), 500<<10), Reason: "no event"},
		{Source: "s", Received: at, LastReceived: at.Add(time.Hour), Count: 7, Body: []byte("3"), Reason: "from elsewhere"},
		{Source: "s", Received: at, Method: "POST", Path: "/in", RawQuery: "a=b", Reason: "no body"},
	}
	for i := range want {
		id, err := j.Quarantine(t.Context(), want[i])
		if err != nil || id == "" {
			t.Fatalf("Quarantine = %q, %v", id, err)
		}
		want[i] = want[i].WithDefaults(at)
		want[i].ID = id
	}
	mustClose(t, j)
	var got []journal.QuarantinedRequest
	for r, err := range h.Open(t).Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatalf("Quarantined: %v", err)
		}
		got = append(got, r)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); diff != "" { // by elements it takes very long
		t.Errorf("quarantined (-want +got):\n%s", diff)
	}
}

func retention(t *testing.T, h Harness) {
	j := h.Open(t)
	slow, fast := mustReader(t, j, "slow", journal.Latest), mustReader(t, j, "fast", journal.Latest)
	mustAppend(t, j, Event("a"), Event("b"), Event("c"))
	mustCommit(t, fast, mustRead(t, fast, 3)[2].Seq)
	mustCommit(t, slow, mustRead(t, slow, 1)[0].Seq)
	h.Expire(t, j)
	wantIDs(t, mustRead(t, mustReader(t, j, "before", journal.Earliest), 3), "a", "b", "c")
	mustClose(t, j)

	j = h.Open(t)
	slow = mustReader(t, j, "slow", journal.Latest)
	h.Advance(h.Retention + 1)
	mustAppend(t, j, Event("d"))
	h.Expire(t, j)
	wantIDs(t, mustRead(t, mustReader(t, j, "after", journal.Earliest), 3), "b", "c", "d")
	wantIDs(t, mustRead(t, slow, 3), "b", "c", "d")
}

func noReuse(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	last := mustAppend(t, j, Event("a"), Event("b"))[1].Seq
	mustCommit(t, c, mustRead(t, c, 2)[1].Seq)
	h.Advance(h.Retention + h.Window*3)
	h.Expire(t, j)
	mustClose(t, j)
	j = h.Open(t)
	c = mustReader(t, j, "sink", journal.Latest)
	if r := mustAppend(t, j, Event("a"))[0]; r.Duplicate || r.Seq <= last || h.Consecutive && r.Seq != last+1 {
		t.Errorf("receipt = %+v, after %d", r, last)
	}
	wantIDs(t, mustRead(t, c, 1), "a")
}

func closed(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "sink", journal.Latest)
	ended := make(chan error)
	go func() {
		_, err := c.Next(t.Context(), 1)
		ended <- err
	}()
	mustClose(t, j)
	if err := <-ended; !errors.Is(err, journal.ErrClosed) {
		t.Errorf("a waiting Next: %v", err)
	}
	if _, err := j.Append(t.Context(), Event("a")); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Append: %v", err)
	}
	if _, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{}); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Quarantine: %v", err)
	}
	if err := c.Commit(t.Context(), journal.UpTo(1)); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	if err := j.Check(); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Check: %v", err)
	}
	mustClose(t, j)
}

func sourced(t *testing.T, h Harness) {
	j := h.Open(t)
	c := mustReader(t, j, "s", journal.Earliest)
	mustAppend(t, j, Event("a", event.NewKey("shop", "a"), event.NewKey("shop", "1")), Event("b", event.NewKey("till", "b")), Event("c", "of no source"))
	check := func(when string, records []journal.Record) {
		t.Helper()
		var names []string
		for _, r := range records {
			names = append(names, r.Event.SourceName)
		}
		if want := []string{"shop", "till", ""}; !slices.Equal(names, want) {
			t.Errorf("%s: the sources are %q, want %q", when, names, want)
		}
	}
	records := mustRead(t, c, 3)
	check("at the cursor", records)
	first := records[0].Seq
	mustCommit(t, c, records[2].Seq, journal.DeadLetter{Seq: first, Reason: "too_large", Attempts: 1})
	mustClose(t, j)

	j = h.Open(t)
	records, err := j.Read(t.Context(), first, 3)
	if err != nil {
		t.Fatal(err)
	}
	check("read after it was opened again", records)
	id := journal.DeliveryID{Sink: "s", Seq: first}
	if d, err := j.DeadLetter(t.Context(), id); err != nil || d.Event.SourceName != "shop" {
		t.Errorf("the dead letter is of %q, %v", d.Event.SourceName, err)
	}
	c = mustReader(t, j, "s", journal.Earliest)
	if _, err := j.Redeliver(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if r := mustRead(t, c, 1)[0]; r.Event.SourceName != "shop" || r.OriginSeq != first {
		t.Errorf("what is retried is of %q, first at %d", r.Event.SourceName, r.OriginSeq)
	}
}

func keyless(t *testing.T, h Harness) {
	j := h.Open(t)
	e := Event("a")
	e.Keys = nil
	if _, err := j.Append(t.Context(), e); err == nil {
		t.Error("an event without a key was taken")
	}
}
