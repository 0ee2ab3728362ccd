package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/journal"
)

// notesOf is what is stored of a sink's marks, in order.
func notesOf(t *testing.T, j journal.Journal, sink string) (notes []journal.KVEntry) {
	t.Helper()
	for n, err := range j.Values(t.Context(), checkpointPrefix+sink+"/") {
		if err != nil {
			t.Fatal(err)
		}
		notes = append(notes, n)
	}
	return notes
}

func TestMarksAreReadAsTheyWereWritten(t *testing.T) {
	want := []checkpoint{
		{3, 9, 1_700_000_000_000, 1_700_000_000_000}, {8, 8, 1_700_000_010_000, 1_700_000_019_999}, // tried again
		{100, 5000, 1_600_000_000_000, 1_600_000_000_001}, // a clock was set
		{math.MaxInt64, math.MaxInt64 + 1, 1_700_000_000_000, 1_700_000_000_000},
	}
	b := encodeCheckpoints(want)
	got, err := decodeCheckpoints(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(checkpoint{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if all, err := decodeCheckpoints(encodeCheckpoints(nil)); err != nil || len(all) != 0 {
		t.Errorf("none are read as %v, %v", all, err)
	}
	for what, bad := range map[string][]byte{"cut": b[:len(b)-1], "of a later version": {checkpointsVersion + 1}, "empty": nil} {
		if _, err := decodeCheckpoints(bad); err == nil {
			t.Errorf("%s: they were read", what)
		}
	}
}

// FuzzMarks: bytes that no version has written are an error, or marks.
func FuzzMarks(f *testing.F) {
	f.Add(encodeCheckpoints([]checkpoint{{1, 2, 3, 4}, {5, 6, 7, 8}}))
	f.Add([]byte{checkpointsVersion, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := decodeCheckpoints(b)
		if err != nil {
			return
		}
		again, err := decodeCheckpoints(encodeCheckpoints(all))
		if diff := cmp.Diff(all, again, cmp.AllowUnexported(checkpoint{})); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	})
}

// What is delivered for long makes a mark in ten seconds and a note in a thousand
// marks; those whose events have expired go, and the oldest of too many.
func TestMarksAreBounded(t *testing.T) {
	b := start(t, nil, &broker{})
	b.stop()
	p := &deliveryHistory{sink: "busy"}
	at := time.UnixMilli(1_700_000_000_000)
	place := journal.Seq(0)
	flood := func(notes int) {
		t.Helper()
		for range notes * checkpointsPerEntry {
			for range 4 { // in a span
				place++
				p.add([]ackRange{{place, place, at, 1}})
				at = at.Add(checkpointSpan / 4)
			}
		}
		b.relay.saveCheckpoints(t.Context(), map[string]*deliveryHistory{"busy": p})
	}
	flood(2)
	notes := notesOf(t, b.journal, "busy")
	if len(notes) != 2 || len(notes[0].Value) > 20<<10 {
		t.Fatalf("%d notes, the first of %d bytes", len(notes), len(notes[0].Value))
	}
	all, err := decodeCheckpoints(notes[1].Value)
	if err != nil || len(all) != checkpointsPerEntry || all[0] != (checkpoint{4*checkpointsPerEntry + 1, 4*checkpointsPerEntry + 4, 1_700_010_240_000, 1_700_010_247_500}) {
		t.Errorf("%d marks, the first %+v, %v", len(all), all[0], err)
	}
	flood(maxCheckpointEntries)
	if notes := notesOf(t, b.journal, "busy"); len(notes) != maxCheckpointEntries {
		t.Errorf("%d notes are kept", len(notes))
	}
	if len(p.checkpoints.full) != 0 {
		t.Errorf("%d notes are still to be stored", len(p.checkpoints.full))
	}
	after, before, err := b.relay.checkpointTimes(t.Context(), "busy", p, place-1)
	if want := at.Add(-checkpointSpan); err != nil || !after.Equal(want) || !before.Equal(want.Add(3*checkpointSpan/4+time.Millisecond)) {
		t.Errorf("the last but one was delivered from %v to %v, %v; want from %v", after, before, err, want)
	}
	if after, before, err := b.relay.checkpointTimes(t.Context(), "busy", p, 1); err != nil || !after.IsZero() || !before.IsZero() {
		t.Errorf("the first was delivered from %v to %v, %v", after, before, err)
	}
	// Another sink, whose events are gone, and whose name begins alike.
	if err := b.journal.PutValue(t.Context(), checkpointPrefix+"busy/too/1", encodeCheckpoints([]checkpoint{{0, 0, 1, 1}})); err != nil {
		t.Fatal(err)
	}
	flood(1)
	if notes := notesOf(t, b.journal, "busy/too"); len(notes) != 0 {
		t.Errorf("kept of what has expired: %v", notes)
	}
}

// unwritable is a journal that stores no checkpoints for a while.
type unwritable struct {
	journal.Journal
	err error
}

func (d *unwritable) PutValue(ctx context.Context, name string, value []byte) error {
	if d.err != nil && strings.HasPrefix(name, checkpointPrefix) {
		return d.err
	}
	return d.Journal.PutValue(ctx, name, value)
}

func TestMarksThatCouldNotBeStoredAreStoredLater(t *testing.T) {
	b := start(t, nil, &broker{})
	b.stop()
	d := &unwritable{b.journal, errors.New("not now")}
	b.relay.opts.Journal = d
	p := &deliveryHistory{sink: "s"}
	for i := range checkpointsPerEntry + 1 {
		p.add([]ackRange{{journal.Seq(i + 1), journal.Seq(i + 1), time.Unix(int64(60*i), 0), 1}})
	}
	b.relay.saveCheckpoints(t.Context(), map[string]*deliveryHistory{"s": p})
	if n := len(notesOf(t, b.journal, "s")); n != 0 {
		t.Fatalf("%d notes were stored", n)
	}
	d.err = nil
	b.relay.saveCheckpoints(t.Context(), map[string]*deliveryHistory{"s": p})
	if n := len(notesOf(t, b.journal, "s")); n != 2 {
		t.Errorf("%d notes were stored, want 2", n)
	}
	if notes, _ := p.unsavedCheckpoints(); len(notes) != 0 {
		t.Errorf("%d are to be stored again", len(notes))
	}
}

// What another process that shares the journal has delivered is known here, and of
// an event that was delivered in parts or twice, both times.
func TestMarksOfOtherProcesses(t *testing.T) {
	b := start(t, nil, &broker{})
	b.put(t, "a", "b", "c")
	eventually(t, "they arrive", func() bool { return b.committed(0) == 3 })
	b.stop()
	b.relay.histories.delete("sink0") // as if it had not been this one
	b.relay.pumps[0].history = &deliveryHistory{sink: "sink0", since: time.Now()}
	for n := range notesOf(t, b.journal, "sink0") {
		if err := b.journal.DeleteValue(t.Context(), notesOf(t, b.journal, "sink0")[n].Key); err != nil {
			t.Fatal(err)
		}
	}
	for i, marks := range [][]checkpoint{{{1, 2, 1000, 2000}}, {{2, 2, 5000, 6000}}} {
		if err := b.journal.PutValue(t.Context(), fmt.Sprint(checkpointPrefix, "sink0/", i), encodeCheckpoints(marks)); err != nil {
			t.Fatal(err)
		}
	}
	for place, want := range map[journal.Seq][2]int64{1: {1000, 2001}, 2: {1000, 6001}} {
		if f := b.fate(t, place); f.At != nil || f.After == nil || f.After.UnixMilli() != want[0] || f.Before.UnixMilli() != want[1] {
			t.Errorf("the fate of %d is %+v, want %v", place, f, want)
		}
	}
	if f := b.fate(t, 3); f.At != nil || f.After != nil || f.Before != nil {
		t.Errorf("of what nobody has marked the fate is %+v", f)
	}
}
