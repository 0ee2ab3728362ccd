package jetstream

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

func TestSequences(t *testing.T) {
	for _, c := range []struct {
		seq      journal.Seq
		of, from uint64
	}{
		{0, 0, 0},
		{1, 0, 1},
		{63, 0, 1},
		{64, 1, 1}, // the event of message 1
		{65, 1, 2},
		{127, 1, 2},
		{128, 2, 2},
		{1<<53 - 64, 1<<47 - 1, 1<<47 - 1},
		{math.MaxUint64, 1<<58 - 1, 1 << 58},
	} {
		if of, from := messageOf(c.seq), messageFrom(c.seq); of != c.of || from != c.from {
			t.Errorf("sequence %d: of message %d, from message %d, want %d and %d", c.seq, of, from, c.of, c.from)
		}
	}
	if got := seqOf(1<<47 - 1); got >= 1<<53 {
		t.Errorf("message 2^47-1 has sequence %d, beyond the integers of JSON", got)
	}
}

// Ranges between the events of a message cover no event, and the ranges that a sink commits
// cover the sequences without an event.
func TestDoneSet(t *testing.T) {
	d := doneOf(seqOf(3), []journal.Range{
		{From: seqOf(4) + 1, To: seqOf(6)}, // after the event of 4 through the event of 6
		{From: seqOf(7) + 1, To: seqOf(8) - 1},
		{From: seqOf(10), To: seqOf(10)},
		{From: seqOf(10) + 1, To: seqOf(11)},
	})
	want := []journal.Range{{From: seqOf(5), To: seqOf(6)}, {From: seqOf(10), To: seqOf(11)}}
	var ranges, missing []journal.Range
	for r := range d.Ranges() {
		ranges = append(ranges, r)
	}
	for r := range d.MissingRanges(d.Floor()+1, seqOf(12)+5) {
		missing = append(missing, r)
	}
	if diff := cmp.Diff(want, ranges); diff != "" || d.Floor() != seqOf(3) {
		t.Errorf("floor %d; ranges (-want +got):\n%s", d.Floor(), diff)
	}
	if diff := cmp.Diff([]journal.Range{{From: seqOf(4), To: seqOf(4)}, {From: seqOf(7), To: seqOf(9)}, {From: seqOf(12), To: seqOf(12)}}, missing); diff != "" {
		t.Errorf("missing ranges (-want +got):\n%s", diff)
	}
	for m, done := range map[uint64]bool{3: true, 4: false, 5: true, 6: true, 7: false, 9: false, 11: true, 12: false} {
		if d.Has(seqOf(m)) != done {
			t.Errorf("message %d: done is %v", m, !done)
		}
	}
	if d.Add(seqOf(3)+1, seqOf(4)); d.Floor() != seqOf(6) {
		t.Errorf("the floor is %d, want %d", d.Floor(), seqOf(6))
	}
}

// A sink holds 10,000 events open among 100,000, each of two messages: a set of messages
// takes a few pages, a set of event sequences would take pages by the thousand.
func TestDoneSetIsCompact(t *testing.T) {
	const events, messages, share = 100_000, 2, 10
	d, direct := doneThrough(0), seqset.At(0)
	for n := range uint64(events) {
		if n%share == 3 {
			continue // open
		}
		from, to := seqOf(n*messages)+1, seqOf((n+1)*messages)
		d.Add(from, to)
		direct.Add(from, to)
	}
	measure := func(s *seqset.Set) (pages, bytes int) {
		for _, number := range s.Changed() {
			if page := s.Page(number); page != nil {
				pages, bytes = pages+1, bytes+len(page)
			}
		}
		return pages, bytes
	}
	pages, bytes := measure(d.messages)
	manyPages, manyBytes := measure(direct)
	t.Logf("done messages: %d pages, %d bytes; done event sequences: %d pages, %d bytes", pages, bytes, manyPages, manyBytes)
	if pages > 26 || bytes > 26<<10 || manyPages < 50*pages {
		t.Errorf("%d pages with %d bytes, instead of %d with %d", pages, bytes, manyPages, manyBytes)
	}
}
