package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

func rejected(source string, number, size int) journal.QuarantinedRequest {
	return journal.QuarantinedRequest{Source: source, Received: newClock().Now(), Body: fmt.Appendf(bytes.Repeat([]byte("x"), size), " %d", number), Reason: "odd"}
}

// A list of large requests holds few of them at once, whatever the caller wants of
// it, and ends with its context, also within what it holds.
func TestPagesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	j := process(t, natstest.Start(t).URL(), "one")
	var want []string
	for n := range 60 {
		size := 100
		if n%3 == 0 {
			size = 400 << 10
		}
		id, err := j.Quarantine(t.Context(), rejected("s", n, size))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, id)
	}
	pages, messages := 0, 0
	for page, err := range j.pages(t.Context(), j.opts.Stream+".rejected.", func(string) bool { return true }) {
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, m := range page {
			size += len(m.data)
			messages++
		}
		if pages++; size > maxPageBytes+500<<10 {
			t.Errorf("page %d holds %d bytes", pages, size)
		}
	}
	if messages != len(want) || pages < 8 {
		t.Errorf("%d messages on %d pages", messages, pages)
	}
	var got []string
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range j.Quarantined(ctx, want[0]) { // many small ones are on one page
		if n++; n == 1 {
			cancel()
			continue
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after its context ended: %v", err)
		}
	}
	if n != 2 {
		t.Errorf("%d were yielded, and the context ended at the first", n)
	}
}

// What is removed leaves the stream whole, with the messages that a large value goes
// on in, and so does what is discarded.
func TestRemovedRequestsLeaveTheStream(t *testing.T) {
	t.Parallel()
	j := process(t, natstest.Start(t).URL(), "one", func(o *Options) { o.Quarantine, o.Log = 8<<20, nil })
	c, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	large := journaltest.Event("large")
	if err := large.CloudEvent.SetData("application/octet-stream", bytes.Repeat([]byte("x"), 3<<20)); err != nil {
		t.Fatal(err)
	}
	at := mustAppend(t, j, large)[0].Seq
	if _, err := c.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	bytes := func() uint64 {
		s, err := j.readState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.bytes
	}
	before := bytes()
	if err := c.Commit(t.Context(), journal.Progress{Done: journal.UpTo(at).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: at, Reason: "too_large"}}}}); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for n := range 2 {
		id, err := j.Quarantine(t.Context(), rejected("s", n, 3<<20))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if grown := bytes() - before; grown < 9<<20 {
		t.Errorf("the stream has grown by %d bytes", grown)
	}
	for _, id := range ids {
		if _, err := j.Release(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Drop(t.Context(), journal.DeliveryID{Sink: "sink", Seq: at}); err != nil {
		t.Fatal(err)
	}
	if now := bytes(); now > before+10<<10 {
		t.Errorf("the stream took %d bytes, and takes %d", before, now)
	}
	for n := range 10 { // two fit
		if _, err := j.Quarantine(t.Context(), rejected("s", 10+n, 3<<20)); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "what is discarded leaves the stream", func() bool { return bytes() < before+7<<20 })
}

// Two processes count the repeats of one request together, and keep the share of a
// source together.
func TestProcessesShareTheQuarantine(t *testing.T) {
	const share = 256 << 10
	seen := &journaltest.Discarded{}
	b := natstest.Start(t)
	change := func(o *Options) { o.Quarantine, o.Discarded, o.Log = share, seen.Add, nil }
	all := []*Journal{process(t, b.URL(), "one", change), process(t, b.URL(), "two", change)}
	const each = 60
	var senders sync.WaitGroup
	for n, j := range all {
		for w := range 2 {
			senders.Go(func() {
				for i := range each {
					_, err := j.Quarantine(t.Context(), rejected("repeated", 0, 10))
					if err == nil {
						_, err = j.Quarantine(t.Context(), rejected("flood", n*10000+w*1000+i, 4<<10))
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	senders.Wait()
	var repeated []journal.QuarantinedRequest
	flood := func() (n int) {
		repeated = nil
		for r, err := range all[0].Quarantined(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			if r.Source == "flood" {
				n++
			} else {
				repeated = append(repeated, r)
			}
		}
		return n
	}
	const fit = share / (4<<10 + entryBytes)
	within(t, "the share of the flood", func() bool { return flood() <= fit+2*fit/16 })
	if len(repeated) != 1 || repeated[0].Count != 4*each {
		t.Errorf("what was received %d times is kept as %+v", 4*each, repeated)
	}
	// Whoever has discarded one tells of it, and nobody else.
	within(t, "what was discarded is told of", func() bool { return seen.Of("flood", journal.QuarantineMaxBytes)+uint64(flood()) == 4*each })
}

// What a spill keeps of repeats is one request, and its count is carried on.
func TestSpilledRepeatsAreCounted(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	j := process(t, b.URL(), "a", spilling(t))
	id, err := j.Quarantine(t.Context(), rejected("s", 1, 10))
	if err != nil {
		t.Fatal(err)
	}
	b.Stop(t)
	for range 3 {
		if _, err := j.Quarantine(t.Context(), rejected("s", 1, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if u := j.Usage(); u.Spilled != 1 {
		t.Errorf("%d are spilled", u.Spilled)
	}
	b.Restart(t)
	within(t, "it is forwarded", func() bool { return j.Usage().Spilled == 0 })
	if r, err := j.QuarantinedRequest(t.Context(), id); err != nil || r.Count != 4 {
		t.Errorf("Rejected = %+v, %v", r, err)
	}
}
