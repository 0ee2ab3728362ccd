package journaltest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/journal"
)

// Discarded counts discarded requests. The zero value is ready. The methods may be called
// concurrently.
type Discarded struct {
	mu  sync.Mutex
	all map[journal.QuarantineDiscards]uint64
}

// Add is the value of an engine's option Discarded.
func (d *Discarded) Add(one journal.QuarantineDiscards) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = map[journal.QuarantineDiscards]uint64{}
	}
	d.all[journal.QuarantineDiscards{Source: one.Source, Reason: one.Reason}] += one.Requests
}

// Of returns the number of discarded requests of a source by reason.
func (d *Discarded) Of(source, reason string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[journal.QuarantineDiscards{Source: source, Reason: reason}]
}

var received = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func mustQuarantine(t *testing.T, j journal.Journal, r journal.QuarantinedRequest) string {
	t.Helper()
	id, err := j.Quarantine(t.Context(), r)
	if err != nil || id == "" {
		t.Fatalf("Quarantine = %q, %v", id, err)
	}
	return id
}

// eventually waits for background work of an engine.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// quarantined lists the quarantined requests of a source.
func quarantined(t *testing.T, j journal.Journal, source string) (all []journal.QuarantinedRequest) {
	t.Helper()
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatalf("Quarantined: %v", err)
		}
		if r.Source == source {
			all = append(all, r)
		}
	}
	return all
}

func rejectedIDs(all []journal.QuarantinedRequest) (ids []string) {
	for _, r := range all {
		ids = append(ids, r.ID)
	}
	return ids
}

func repeats(t *testing.T, h Harness) {
	j := h.Open(t)
	first := journal.QuarantinedRequest{Source: "s", Received: received, Method: "POST", Path: "/in", Body: []byte("{"), Reason: "not JSON"}
	id := mustQuarantine(t, j, first)
	other := mustQuarantine(t, j, journal.QuarantinedRequest{Source: "s", Received: received, Body: []byte("[")})
	again := first
	again.Received, again.Path, again.Reason = received.Add(time.Minute), "/in?captured", "not JSON at all"
	if got := mustQuarantine(t, j, again); got != id || got == other {
		t.Errorf("a repeat of %s is %s", id, got)
	}
	mustClose(t, j)

	j = h.Open(t)
	again.Received, again.ID = received.Add(time.Second), "of-its-own"
	if got := mustQuarantine(t, j, again); got != id {
		t.Errorf("after it was opened again a repeat of %s is %s", id, got)
	}
	want := first
	want.ID, want.Count, want.LastReceived = id, 3, received.Add(time.Minute) // the order of arrival differs from the clocks
	got, err := j.QuarantinedRequest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Rejected (-want +got):\n%s", diff)
	}
	all := quarantined(t, j, "s")
	if !slices.Equal(rejectedIDs(all), []string{id, other}) || all[0].Count != 3 || all[1].Count != 1 {
		t.Errorf("quarantined: %+v", all)
	}
}

func concurrentRepeats(t *testing.T, h Harness) {
	j := h.Open(t)
	const senders, each = 8, 20
	var all sync.WaitGroup
	for n := range senders {
		all.Go(func() {
			for range each {
				for _, body := range []string{"a", "b"} { // also a repeat after another request
					if _, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Received: received, Body: []byte(body)}); err != nil {
						t.Errorf("sender %d: %v", n, err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	kept := quarantined(t, j, "s")
	if len(kept) != 2 || kept[0].Count != senders*each || kept[1].Count != senders*each {
		t.Errorf("%d requests are kept: %+v", len(kept), kept)
	}
}

func identities(t *testing.T, h Harness) {
	j := h.Open(t)
	seen := map[string]string{}
	for _, r := range []journal.QuarantinedRequest{
		{Source: "s", Body: []byte("body")},
		{Source: "s", Body: []byte("bodz")},
		{Source: "sb", Body: []byte("ody")},
		{Source: "t", Body: []byte("body")},
		{Source: "s", Method: "GET", Path: "/in", RawQuery: "a=1"},
		{Source: "s", Method: "GET", Path: "/in", RawQuery: "a=2"},
		{Source: "s", Method: "GET", Path: "/ina", RawQuery: "=1"},
		{Source: "s", Method: "POST", Path: "/in", RawQuery: "a=1"},
	} {
		r.Received = received
		id := mustQuarantine(t, j, r)
		if before, ok := seen[id]; ok {
			t.Errorf("%+v and %s are one", r, before)
		}
		seen[id] = fmt.Sprintf("%+v", r)
	}
}

func repeatAnew(t *testing.T, h Harness) {
	j := h.Open(t)
	r := journal.QuarantinedRequest{Source: "s", Received: received, Body: []byte("{")}
	for n := range 3 {
		id := mustQuarantine(t, j, r)
		mustQuarantine(t, j, r)
		kept := quarantined(t, j, "s")
		if len(kept) != 1 || kept[0].ID != id || kept[0].Count != 2 {
			t.Fatalf("round %d: %s is kept as %+v", n, id, kept)
		}
		if _, err := j.Release(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if kept := quarantined(t, j, "s"); len(kept) != 0 {
			t.Fatalf("round %d: after its release: %+v", n, kept)
		}
	}
}

func repeatBesideRelease(t *testing.T, h Harness) {
	j := h.Open(t)
	const rounds = 40
	r := journal.QuarantinedRequest{Source: "s", Received: received, Body: []byte("{")}
	var released uint64
	for range rounds {
		id := mustQuarantine(t, j, r)
		answer := make(chan string, 1)
		go func() {
			id, err := j.Quarantine(t.Context(), r)
			if err != nil {
				t.Errorf("Quarantine: %v", err)
			}
			answer <- id
		}()
		_, err := j.Release(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		repeat := <-answer
		kept := quarantined(t, j, "s")
		switch {
		case repeat == id && len(kept) == 0: // counted for the released request
			released += 2
		case repeat != id && len(kept) == 1 && kept[0].ID == repeat && kept[0].Count == 1:
			released++
			if _, err := j.Release(t.Context(), repeat); err != nil {
				t.Fatal(err)
			}
			released++
		default:
			t.Fatalf("the repeat of %s was answered %s, and %+v is kept", id, repeat, kept)
		}
	}
	if released != 2*rounds {
		t.Errorf("%d of %d receipts are accounted for", released, 2*rounds)
	}
}

func sourceShare(t *testing.T, h Harness) {
	j := h.Open(t)
	body := func(source string, n int) journal.QuarantinedRequest {
		return journal.QuarantinedRequest{Source: source, Received: received, Body: fmt.Appendf(bytes.Repeat([]byte("x"), int(h.Quarantine/8)), "%d", n)}
	}
	honest := mustQuarantine(t, j, body("honest", 0))
	var all []string
	for n := range 5 {
		all = append(all, mustQuarantine(t, j, body("s", n)))
	}
	mustQuarantine(t, j, body("s", 0)) // the newest request now
	for n := range 15 {
		all = append(all, mustQuarantine(t, j, body("s", 5+n)))
		if n == 1 { // received from time to time
			mustQuarantine(t, j, body("s", 0))
		}
	}
	eventually(t, "the share of the source", func() bool { return len(quarantined(t, j, "s")) <= 7 })
	kept := rejectedIDs(quarantined(t, j, "s"))
	if len(kept) < 5 {
		t.Errorf("%d requests are kept, of which 7 would fit", len(kept))
	}
	if want := all[len(all)-len(kept):]; !slices.Equal(kept, want) {
		t.Errorf("kept %v, want the newest, %v", kept, want)
	}
	if got := rejectedIDs(quarantined(t, j, "honest")); !slices.Equal(got, []string{honest}) {
		t.Errorf("of the other source %v is kept, want %s", got, honest)
	}
	n := uint64(len(all) - len(kept))
	eventually(t, "what was discarded is told of", func() bool { return h.Discarded.Of("s", journal.QuarantineMaxBytes) == n })
	if got := h.Discarded.Of("honest", journal.QuarantineMaxBytes); got != 0 {
		t.Errorf("%d requests of the other source were discarded", got)
	}
	mustClose(t, j)

	// The engine counts on after a restart.
	j = h.Open(t)
	newest := mustQuarantine(t, j, body("s", 99))
	eventually(t, "the share of the source after reopening", func() bool { return len(quarantined(t, j, "s")) <= 7 })
	if kept := rejectedIDs(quarantined(t, j, "s")); kept[len(kept)-1] != newest {
		t.Errorf("kept %v, want %s last", kept, newest)
	}
	if _, err := j.QuarantinedRequest(t.Context(), all[0]); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("Rejected of what was discarded: %v", err)
	}
	// A discarded request is quarantined again.
	if again := mustQuarantine(t, j, body("s", 1)); again == all[1] {
		t.Errorf("%s was discarded, and is there again", again)
	}
}

func largerThanShare(t *testing.T, h Harness) {
	j := h.Open(t)
	small := mustQuarantine(t, j, journal.QuarantinedRequest{Source: "s", Received: received, Body: []byte("small")})
	large := journal.QuarantinedRequest{Source: "s", Received: received, Body: bytes.Repeat([]byte("x"), int(h.Quarantine)*2)}
	id := mustQuarantine(t, j, large)
	eventually(t, "the older one is gone", func() bool { return len(quarantined(t, j, "s")) == 1 })
	h.Expire(t, j)
	if r, err := j.QuarantinedRequest(t.Context(), id); err != nil || !bytes.Equal(r.Body, large.Body) {
		t.Errorf("Rejected: %d bytes, %v", len(r.Body), err)
	}
	next := mustQuarantine(t, j, journal.QuarantinedRequest{Source: "s", Received: received, Body: []byte("small")})
	eventually(t, "the large one makes room", func() bool { return slices.Equal(rejectedIDs(quarantined(t, j, "s")), []string{next}) })
	if next == small {
		t.Errorf("%s was discarded, and is there again", small)
	}
}

func quarantineRetention(t *testing.T, h Harness) {
	j := h.Open(t)
	now := received
	put := func(body string) string {
		return mustQuarantine(t, j, journal.QuarantinedRequest{Source: "s", Received: now, Body: []byte(body)})
	}
	old, repeated := put("old"), put("repeated")
	advance := func(d time.Duration) {
		h.Advance(d)
		now = now.Add(d)
	}
	advance(h.Retention / 2)
	put("repeated")
	young := put("young")
	advance(h.Retention / 2)
	h.Expire(t, j)
	if kept := rejectedIDs(quarantined(t, j, "s")); !slices.Equal(kept, []string{old, repeated, young}) {
		t.Errorf("at the retention's edge %v is kept", kept)
	}
	advance(time.Second)
	h.Expire(t, j)
	if kept := rejectedIDs(quarantined(t, j, "s")); !slices.Equal(kept, []string{repeated, young}) {
		t.Errorf("kept %v, want %v", kept, []string{repeated, young})
	}
	if n := h.Discarded.Of("s", journal.QuarantineRetention); n != 1 {
		t.Errorf("%d requests were discarded", n)
	}
	// A clock that is set back discards no request, and no request stays for ever.
	h.Advance(-h.Retention)
	h.Expire(t, j)
	late := put("late")
	h.Advance(h.Retention)
	h.Expire(t, j)
	if kept := rejectedIDs(quarantined(t, j, "s")); !slices.Equal(kept, []string{repeated, young, late}) {
		t.Errorf("after the clock was set back: %v", kept)
	}
	advance(h.Retention * 2)
	h.Expire(t, j)
	if kept := quarantined(t, j, "s"); len(kept) != 0 {
		t.Errorf("kept for ever: %+v", kept)
	}
}
