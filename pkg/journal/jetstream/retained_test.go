package jetstream

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

// idsFrom reads all events of the log and all retained events from a sequence on.
func idsFrom(t *testing.T, j *Journal, from journal.Seq) (ids []string) {
	t.Helper()
	for {
		records, err := j.Read(t.Context(), from, 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) == 0 {
			return ids
		}
		for _, r := range records {
			ids, from = append(ids, r.Event.CloudEvent.ID()), r.Seq+1
		}
	}
}

// Two events stay open for a sink, one of them larger than a message. The events after them
// are removed; the two are found by every read, by the next owner, by a sink that adopts the
// events, by a dead letter and by a migration, and their copies go when they are done.
func TestOpenEventsKeepNoStream(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t, func(o *server.Options) { o.MaxPayload = 64 << 10 }).URL()
	clock := newClock()
	with := func(o *Options) { short(o); o.Clock = clock.Now }
	a, b := process(t, url, "a", with), process(t, url, "b", with)
	sink := mustReader(t, a)
	large := journaltest.Event("large")
	large.CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("0123456789", 30_000) + `"`)
	mustAppend(t, a, numbered(0, 3)...)
	stuck := []journal.Seq{mustAppend(t, a, large)[0].Seq}
	mustAppend(t, a, numbered(3, 400)...)
	stuck = append(stuck, mustAppend(t, a, journaltest.Event("stuck"))[0].Seq)
	mustAppend(t, a, numbered(400, 800)...)
	_, last := read(t, sink, 802)
	mustCommit(t, sink, journal.Progress{Open: 2, Done: []journal.Range{{From: 1, To: stuck[0] - 1}, {From: stuck[0] + 1, To: stuck[1] - 1}, {From: stuck[1] + 1, To: last}}})

	standby := mustReader(t, b)
	clock.Advance(3 * time.Hour)
	mustAppend(t, a, numbered(800, 803)...)
	next, _ := read(t, sink, 3)
	if err := a.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if events := a.Usage().Events; events != 3 {
		t.Errorf("%d events are in the log, want 3", events)
	}
	want := append([]string{"large", "stuck"}, next...)
	for name, j := range map[string]*Journal{"the owner": a, "another process": b} {
		within(t, name+" finds the retained events", func() bool { return slices.Equal(idsFrom(t, j, 1), want) && j.Oldest() == stuck[0] })
	}
	if ids := idsFrom(t, a, stuck[0]+1); !slices.Equal(ids, want[1:]) {
		t.Errorf("after the first of them: %q", ids)
	}

	// The next owner, after a crash.
	die(a)
	if ids, _ := read(t, standby, 5); !slices.Equal(ids, want) {
		t.Errorf("the next owner reads %q, want %q", ids, want)
	}
	if lag := standby.Lag(); lag != 5 {
		t.Errorf("the lag is %d, want 5", lag)
	}
	mustCommit(t, standby, journal.Progress{Open: 2, Done: []journal.Range{{From: last + 1, To: b.Last()}}})

	// A sink that adopts the events.
	adopter, err := b.Reader(t.Context(), "adopter", journal.Start(stuck[0]-1))
	if err != nil {
		t.Fatal(err)
	}
	if ids, _ := read(t, adopter, 5); !slices.Equal(ids, want) {
		t.Errorf("the adopter reads %q, want %q", ids, want)
	}
	if err := adopter.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteCursor(t.Context(), "adopter"); err != nil {
		t.Fatal(err)
	}

	// A dead letter, and a delivery.
	mustCommit(t, standby, journal.Progress{
		Open: 1, Done: []journal.Range{{From: stuck[0], To: stuck[0]}},
		Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: stuck[0], Reason: "too_large"}}},
	})
	if got, err := b.DeadLetter(t.Context(), journal.DeliveryID{Sink: "sink", Seq: stuck[0]}); err != nil || len(got.Event.CloudEvent.DataEncoded) != len(large.CloudEvent.DataEncoded) {
		t.Errorf("the dead letter: %v", err)
	}
	if err := standby.Close(); err != nil {
		t.Fatal(err)
	}

	// A migration.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	o := options(t, url, clock)
	from, err := OpenSource(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	dir := t.TempDir() + "/local"
	to, err := local.OpenTarget(local.Options{Dir: dir, Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := transfer.Run(t.Context(), from, to, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	migrated, err := local.Open(local.Options{Dir: dir, Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer migrated.Close()
	c, err := migrated.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	records, err := c.Next(t.Context(), 10)
	records = slices.DeleteFunc(records, func(r journal.Record) bool { return c.Done(r.Seq) })
	if err != nil || len(records) != 1 || records[0].Event.CloudEvent.ID() != "stuck" {
		t.Errorf("the migrated journal has %d open events, %v", len(records), err)
	}

	// The copies go when they are done.
	end := process(t, url, "end", with)
	sink = mustReader(t, end)
	read(t, sink, 4)
	mustCommit(t, sink, journal.UpTo(end.Last()))
	within(t, "no copy is left", func() bool {
		copies, err := end.subjects(t.Context(), end.names.allRetained("sink"))
		return err == nil && len(copies) == 2 && len(idsFrom(t, end, 1)) == 3 // the markers of removal stay for a minute
	})
}
