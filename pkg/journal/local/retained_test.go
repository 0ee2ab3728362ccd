package local

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
)

// TestOpenEventKeepsNoSegments: an event that stays open for one cursor does not keep the
// events after it, is found by every read, survives a crash, and goes when it is done.
func TestOpenEventKeepsNoSegments(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := options(t, mem, "data", newClock())
	o.MaxBytes, o.segment = 4<<20, 64<<10
	j := mustOpen(t, o)
	ctx := t.Context()
	sink, err := j.Reader(ctx, "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	stuck := []journal.Seq{7, 900}
	const batch, all = 100, 12_000 // several times journal.max_bytes
	for first := 1; first < all; first += batch {
		appendNoise(t, j, first, first+batch-1, 1<<10)
		var done []journal.Range
		for s := journal.Seq(first); s < journal.Seq(first+batch); s++ {
			if s != stuck[0] && s != stuck[1] {
				done = append(done, journal.Range{From: s, To: s})
			}
		}
		if err := sink.Commit(ctx, journal.Progress{Done: done}); err != nil {
			t.Fatal(err)
		}
		j.measure()
		if excess := j.excess(); excess > 0 {
			if err := j.trim(ctx, excess); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(j *Journal, sink journal.Cursor, want ...journal.Seq) {
		t.Helper()
		if sink.Lag() != uint64(len(want)) || j.Oldest() != want[0] || sink.Committed() != want[0]-1 {
			t.Errorf("the lag is %d, the oldest event is %d, committed through %d", sink.Lag(), j.Oldest(), sink.Committed())
		}
		from := journal.Seq(1)
		for _, s := range want {
			records, err := j.Read(ctx, from, 1)
			if err != nil || len(records) != 1 || records[0].Seq != s || records[0].Event.CloudEvent.ID() != fmt.Sprint(s) {
				t.Fatalf("Read(%d) = %v, %v; want event %d", from, records, err, s)
			}
			from = s + 1
		}
	}
	if j.removedBefore() < all/2 {
		t.Errorf("the log begins at %d", j.removedBefore())
	}
	check(j, sink, stuck...)

	o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	if err := errors.Join(sink.Close(), j.Close()); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	if sink, err = j.Reader(ctx, "sink", journal.Earliest); err != nil {
		t.Fatal(err)
	}
	check(j, sink, stuck...)
	records, err := sink.Next(ctx, 2)
	if err != nil || len(records) != 2 || records[0].Seq != stuck[0] || records[1].Seq != stuck[1] {
		t.Fatalf("Next = %v, %v", records, err)
	}
	// One becomes a dead letter, the other one is delivered.
	err = sink.Commit(ctx, journal.Progress{
		Done:        []journal.Range{{From: stuck[0], To: stuck[0]}},
		Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: stuck[0], Reason: "invalid"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := j.DeadLetter(ctx, journal.DeliveryID{Sink: "sink", Seq: stuck[0]}); err != nil || d.Event.CloudEvent.ID() != fmt.Sprint(stuck[0]) {
		t.Errorf("the dead letter is %v, %v", d, err)
	}
	if err := j.Expire(ctx); err != nil {
		t.Fatal(err)
	}
	check(j, sink, stuck[1])
	if err := sink.Commit(ctx, journal.Progress{Done: []journal.Range{{From: stuck[1], To: stuck[1]}}}); err != nil {
		t.Fatal(err)
	}
	if err := j.Expire(ctx); err != nil {
		t.Fatal(err)
	}
	if j.Oldest() < all/2 || sink.Committed() != all || j.retained.bytes != 0 {
		t.Errorf("the oldest event is %d, committed through %d, %d bytes are retained", j.Oldest(), sink.Committed(), j.retained.bytes)
	}
	if err := errors.Join(sink.Close(), j.Close()); err != nil {
		t.Fatal(err)
	}
	contents, err := Inspect(ctx, o)
	if err != nil || len(contents.Damage) > 0 || len(contents.Lost) > 0 {
		t.Errorf("Inspect = %+v, %v", contents, err)
	}
}

// TestManyOpenEventsKeepTheirSegment: the engine does not copy events of which too many are
// open, and refuses appends rather than lose one of them.
func TestManyOpenEventsKeepTheirSegment(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	o.MaxBytes, o.segment = 1<<20, 64<<10
	j := mustOpen(t, o)
	sink, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	appendNoise(t, j, 1, 400, 1<<10)
	var done []journal.Range
	for s := journal.Seq(1); s <= 400; s++ {
		if s%4 != 0 { // a quarter of each segment is open
			done = append(done, journal.Range{From: s, To: s})
		}
	}
	if err := sink.Commit(t.Context(), journal.Progress{Done: done}); err != nil {
		t.Fatal(err)
	}
	if err := j.trim(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if j.Oldest() > 4 || sink.Lag() != 100 {
		t.Errorf("the oldest event is %d, the lag %d", j.Oldest(), sink.Lag())
	}
	if err := errors.Join(sink.Close(), j.Close()); err != nil {
		t.Fatal(err)
	}
}
