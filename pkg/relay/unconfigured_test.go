package relay

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// renamed is a relay whose sink0 had three events pending when it was renamed to
// other; one event came since.
func renamed(t *testing.T, taker *broker) *bench {
	t.Helper()
	stuck := &broker{whole: func(int) error { return errors.New("away") }}
	b := start(t, nil, stuck)
	b.put(t, "1", "2", "3")
	b.opts.Sinks = []sinks.Configured{{Name: "other", Settings: b.opts.Sinks[0].Settings, Open: taker.open}}
	b.restart(t)
	b.put(t, "4")
	eventually(t, "the new name has the new event", func() bool { return slices.Equal(taker.ids(), []string{"4"}) })
	eventually(t, "the old name is listed", func() bool { return len(b.relay.Unconfigured()) == 1 })
	return b
}

func TestPendingEventsOfARenamedSinkAreTold(t *testing.T) {
	b := renamed(t, &broker{})
	for range 2 { // also after another start, and however many events come
		all := b.relay.Unconfigured()
		if len(all) != 1 || all[0].Sink != "sink0" || all[0].LagEvents != 3 || all[0].Since.IsZero() {
			t.Errorf("unconfigured are %+v", all)
		}
		b.put(t, "5", "6")
		b.restart(t)
	}
	if n := b.logs.FilterMessageSnippet("its pending events are not delivered").Len(); n != 3 { // once each start
		t.Errorf("the log tells of it %d times", n)
	}
	if n := testutil.ToFloat64(b.metrics.unconfigured.WithLabelValues("sink0")); n != 3 {
		t.Errorf("the metric says %v", n)
	}
}

func TestAdopt(t *testing.T) {
	taker := &broker{}
	b := renamed(t, taker)
	re, err := b.relay.AdoptSink(t.Context(), "sink0", "other", 1000)
	if err != nil || re.Total != 3 || re.Adopts != "sink0" {
		t.Fatalf("AdoptSink = %+v, %v", re, err)
	}
	if done := b.replayed(t, re.ID); done.State != ReplayDone || done.Sent != 3 {
		t.Errorf("the replay is %+v", done)
	}
	// Each event once, and the cursor of the old name is gone.
	if diff := cmp.Diff([]string{"4", "1", "2", "3"}, taker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	cursors, err := b.journal.Cursors(t.Context())
	if err != nil || slices.ContainsFunc(cursors, func(p journal.Position) bool { return p.Name == "sink0" }) {
		t.Errorf("cursors are %+v, %v", cursors, err)
	}
	if all := b.relay.Unconfigured(); len(all) != 0 {
		t.Errorf("unconfigured are %+v", all)
	}
	if _, err := b.relay.AdoptSink(t.Context(), "sink0", "other", 1000); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("adopting twice: %v", err)
	}
}

// What the sink refuses of adopted events becomes its dead letter.
func TestAdoptedEventsBecomeDeadLetters(t *testing.T) {
	taker := &broker{deliver: func(_ int, e event.Event) error {
		if e.CloudEvent.ID() == "2" {
			return sinks.Permanent(sinks.ReasonTooLarge, errors.New("too large"))
		}
		return nil
	}}
	b := renamed(t, taker)
	re, err := b.relay.AdoptSink(t.Context(), "sink0", "other", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if done := b.replayed(t, re.ID); done.Sent != 2 || done.Refused != 1 {
		t.Errorf("the replay is %+v", done)
	}
	dead, err := b.journal.DeadLetter(t.Context(), journal.DeliveryID{Sink: "other", Seq: 2})
	if err != nil || dead.Letter.Reason != "too_large" || dead.Letter.Attempts != 1 || dead.Letter.First.IsZero() {
		t.Errorf("the dead letter is %+v, %v", dead.Letter, err)
	}
	if f := b.fate(t, 2); f.State != DeadLetter {
		t.Errorf("the event is shown as %+v", f)
	}
}

// An adoption that was interrupted goes on after a restart, and an event is not
// lost meanwhile.
func TestAdoptionSurvivesARestart(t *testing.T) {
	taker := &broker{}
	b := renamed(t, taker)
	taker.mu.Lock()
	taker.whole = func(int) error { return errors.New("away") }
	taker.mu.Unlock()
	re, err := b.relay.AdoptSink(t.Context(), "sink0", "other", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.relay.AdoptSink(t.Context(), "sink0", "other", 1000); !errors.Is(err, ErrState) {
		t.Errorf("adopting while it is adopted: %v", err)
	}
	if _, err := b.relay.DeleteSink(t.Context(), "sink0"); !errors.Is(err, ErrState) {
		t.Errorf("deleting while it is adopted: %v", err)
	}
	b.restart(t)
	taker.mu.Lock()
	taker.whole = nil
	taker.mu.Unlock()
	if done := b.replayed(t, re.ID); done.Sent != 3 {
		t.Errorf("the replay is %+v", done)
	}
	if diff := cmp.Diff([]string{"4", "1", "2", "3"}, taker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

func TestDeleteSinkDiscards(t *testing.T) {
	b := renamed(t, &broker{})
	for name, want := range map[string]error{"other": ErrInvalid, "nobody": journal.ErrNotFound} {
		if _, err := b.relay.DeleteSink(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("deleting %s: %v", name, err)
		}
		if _, err := b.relay.AdoptSink(t.Context(), name, "other", 1); !errors.Is(err, want) {
			t.Errorf("adopting %s: %v", name, err)
		}
	}
	if _, err := b.relay.AdoptSink(t.Context(), "sink0", "nobody", 1); !errors.Is(err, ErrNoSink) {
		t.Errorf("adopting as a sink that is not there: %v", err)
	}
	if n, err := b.relay.DeleteSink(t.Context(), "sink0"); err != nil || n != 3 {
		t.Errorf("DeleteSink = %d, %v", n, err)
	}
	if left := b.relay.Unconfigured(); len(left) != 0 {
		t.Errorf("left are %+v", left)
	}
	if n := b.logs.FilterMessageSnippet("discarded").Len(); n != 1 {
		t.Errorf("the log tells of it %d times", n)
	}
}

// A reload that removes a sink lists it at once; when the sink is back it goes on.
func TestAReloadListsRemovedSinks(t *testing.T) {
	stuck := &broker{whole: func(int) error { return errors.New("away") }}
	b := start(t, nil, stuck, &broker{})
	b.put(t, "1")
	both := b.opts.Sinks
	if err := b.relay.SetSinks(t.Context(), both[1:]); err != nil {
		t.Fatal(err)
	}
	if all := b.relay.Unconfigured(); len(all) != 1 || all[0].Sink != "sink0" || all[0].LagEvents != 1 {
		t.Errorf("unconfigured are %+v", all)
	}
	if err := b.relay.SetSinks(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	if all := b.relay.Unconfigured(); len(all) != 0 {
		t.Errorf("unconfigured are %+v", all)
	}
}

// A sink that existed already adopts what its own filter of that time passed over;
// what its filter does not match now is counted.
func TestASinkThatExistedAdopts(t *testing.T) {
	stuck, taker := &broker{whole: func(int) error { return errors.New("away") }}, &broker{}
	n := 0
	b := start(t, func(s *sinks.Settings) {
		if n++; n == 2 {
			s.Filter = `id == "3"`
		}
	}, stuck, taker)
	b.put(t, "1", "2", "3")
	eventually(t, "the other sink is at the end", func() bool { return b.committed(1) == 3 })
	b.opts.Sinks = b.opts.Sinks[1:]
	b.opts.Sinks[0].Settings.Filter = `id != "2"`
	b.restart(t)
	b.put(t, "4")
	eventually(t, "the other sink goes on", func() bool { return slices.Equal(taker.ids(), []string{"3", "4"}) })
	re, err := b.relay.AdoptSink(t.Context(), "sink0", "sink1", 1000)
	if err != nil || re.Total != 2 || re.Skipped != 1 {
		t.Errorf("AdoptSink = %+v, %v", re, err)
	}
	if done := b.replayed(t, re.ID); done.Sent != 2 {
		t.Errorf("the replay is %+v", done)
	}
	if diff := cmp.Diff([]string{"3", "4", "1", "3"}, taker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

// A sink that was renamed twice leaves to the third name what was pending for the
// first, and not what the second got.
func TestOnlyWhatWasPendingIsAdopted(t *testing.T) {
	second, third := &broker{}, &broker{}
	b := renamed(t, second)
	b.opts.Sinks = []sinks.Configured{{Name: "third", Settings: b.opts.Sinks[0].Settings, Open: third.open}}
	b.restart(t)
	re, err := b.relay.AdoptSink(t.Context(), "sink0", "third", 1000)
	if err != nil || re.Total != 3 {
		t.Fatalf("AdoptSink = %+v, %v", re, err)
	}
	b.replayed(t, re.ID)
	if diff := cmp.Diff([]string{"1", "2", "3"}, third.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

// A sink that comes back while its events are adopted gets them, too, and keeps
// its cursor.
func TestASinkComesBackWhileItIsAdopted(t *testing.T) {
	taker := &broker{}
	b := renamed(t, taker)
	taker.mu.Lock()
	taker.whole = func(int) error { return errors.New("away") }
	taker.mu.Unlock()
	re, err := b.relay.AdoptSink(t.Context(), "sink0", "other", 1000)
	if err != nil {
		t.Fatal(err)
	}
	back := &broker{}
	if err := b.relay.SetSinks(t.Context(), append([]sinks.Configured{{Name: "sink0", Settings: b.opts.Sinks[0].Settings, Open: back.open}}, b.opts.Sinks...)); err != nil {
		t.Fatal(err)
	}
	taker.mu.Lock()
	taker.whole = nil
	taker.mu.Unlock()
	if done := b.replayed(t, re.ID); done.State != ReplayDone || done.Sent != 3 {
		t.Errorf("the replay is %+v", done)
	}
	eventually(t, "the sink that came back has its events", func() bool { return len(back.ids()) == 4 })
}
