package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// A pause holds back everything, of one sink only, outlives the relay, and loses
// nothing.
func TestPauseHoldsUntilResume(t *testing.T) {
	held, other := &broker{}, &broker{}
	b := start(t, nil, held, other)
	b.put(t, "before")
	eventually(t, "both have the first", func() bool { return b.committed(0) == 1 && b.committed(1) == 1 })
	pause, err := b.relay.PauseSink(t.Context(), "sink0")
	if err != nil || pause.Sink != "sink0" || pause.Since.IsZero() {
		t.Fatalf("PauseSink = %+v, %v", pause, err)
	}
	if again, err := b.relay.PauseSink(t.Context(), "sink0"); err != nil || again != pause {
		t.Errorf("a second pause: %+v, %v", again, err)
	}
	b.put(t, "a", "b")
	eventually(t, "the other has them", func() bool { return b.committed(1) == 3 })
	s := b.relay.Status()
	if s[0].State != SinkPaused || s[0].Paused == nil || !s[0].Paused.Equal(pause.Since) || s[0].LagEvents != 2 || s[1].State != SinkUp {
		t.Errorf("Status = %+v", s)
	}
	if got := testutil.ToFloat64(b.metrics.paused.WithLabelValues("sink0")); got != 1 {
		t.Errorf("the metric says %v", got)
	}
	b.restart(t)
	b.put(t, "c")
	eventually(t, "the other has it too", func() bool { return b.committed(1) == 4 })
	if got := held.ids(); !slices.Equal(got, []string{"before"}) {
		t.Errorf("a paused sink was given %v", got)
	}
	if s := b.relay.Status()[0]; s.State != SinkPaused || !s.Paused.Equal(pause.Since) {
		t.Errorf("after a restart: %+v", s)
	}
	if err := b.relay.ResumeSink(t.Context(), "sink0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all arrive", func() bool { return b.committed(0) == 4 })
	if diff := cmp.Diff([]string{"before", "a", "b", "c"}, held.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if s := b.relay.Status()[0]; s.State != SinkUp || s.Paused != nil {
		t.Errorf("resumed: %+v", s)
	}
	for _, err := range []error{b.relay.ResumeSink(t.Context(), "none"), func() error { _, err := b.relay.PauseSink(t.Context(), "none"); return err }()} {
		if !errors.Is(err, ErrNoSink) {
			t.Errorf("a sink that is none: %v", err)
		}
	}
}

// Two relays on one journal: what an operator tells one, the other one does.
func TestPauseHoldsForAllThatShareTheJournal(t *testing.T) {
	broker := &broker{}
	b := start(t, nil, broker)
	if err := b.journal.PutValue(t.Context(), pausePrefix+"sink0", []byte(`{"sink":"sink0","since":"2026-01-02T03:04:05Z"}`)); err != nil {
		t.Fatal(err)
	}
	if err := b.relay.syncFromJournal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.relay.Status()[0]; s.State != SinkPaused {
		t.Errorf("paused elsewhere: %+v", s)
	}
	if err := b.journal.DeleteValue(t.Context(), pausePrefix+"sink0"); err != nil {
		t.Fatal(err)
	}
	if err := b.relay.syncFromJournal(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.put(t, "a")
	eventually(t, "it arrives", func() bool { return b.committed(0) == 1 })
}

func TestPauseHoldsReplays(t *testing.T) {
	broker := &broker{}
	b := start(t, nil, broker)
	b.put(t, "a", "b")
	eventually(t, "they arrive", func() bool { return b.committed(0) == 2 })
	if _, err := b.relay.PauseSink(t.Context(), "sink0"); err != nil {
		t.Fatal(err)
	}
	re, err := b.relay.StartReplay(t.Context(), spec(1000))
	if err != nil {
		t.Fatal(err)
	}
	b.restart(t)
	eventually(t, "it can be stopped while it is held", func() bool {
		_, err := b.relay.StopReplay(t.Context(), re.ID)
		return err == nil
	})
	if got := len(broker.ids()); got != 2 {
		t.Errorf("the paused sink was given %d events", got)
	}
	if err := b.relay.ResumeSink(t.Context(), "sink0"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.relay.ContinueReplay(t.Context(), re.ID); err != nil {
		t.Fatal(err)
	}
	b.replayed(t, re.ID)
	if diff := cmp.Diff([]string{"a", "b", "a", "b"}, broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

// Settings that change give a sink another pump; the pause, and what is
// remembered, is the sink's.
func TestPauseOutlivesAnExchange(t *testing.T) {
	broker := &broker{}
	b := start(t, nil, broker)
	b.put(t, "a")
	eventually(t, "it arrives", func() bool { return b.committed(0) == 1 })
	if _, err := b.relay.PauseSink(t.Context(), "sink0"); err != nil {
		t.Fatal(err)
	}
	changed := b.opts.Sinks[0]
	changed.Settings.Batch = 7
	if err := b.relay.SetSinks(t.Context(), []sinks.Configured{changed}); err != nil {
		t.Fatal(err)
	}
	if s := b.relay.Status()[0]; s.State != SinkPaused {
		t.Errorf("after an exchange: %+v", s)
	}
	if f := b.fate(t, 1); f.At == nil || f.Attempts != 1 {
		t.Errorf("what was delivered before is forgotten: %+v", f)
	}
	if err := b.relay.SetSinks(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.relay.SetSinks(t.Context(), []sinks.Configured{changed}); err != nil {
		t.Fatal(err)
	}
	if s := b.relay.Status()[0]; s.State != SinkPaused {
		t.Errorf("a sink that comes back: %+v", s)
	}
}

func (b *bench) fate(t *testing.T, s journal.Seq) DeliveryStatus {
	t.Helper()
	record, err := b.relay.Record(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	fates, err := b.relay.Deliveries(t.Context(), record)
	if err != nil {
		t.Fatal(err)
	}
	return fates[0]
}

func TestFatesSayWhenAndInHowManyAttempts(t *testing.T) {
	broker := &broker{deliver: func(attempt int, e event.Event) error {
		switch id := e.CloudEvent.ID(); {
		case id == "2" && attempt < 3:
			return errDown
		case id == "3":
			return sinks.Permanent(sinks.ReasonInvalid, errDown)
		}
		return nil
	}}
	b := start(t, nil, broker)
	began := time.Now().Add(-time.Second)
	b.put(t, "1", "2", "3", "4")
	eventually(t, "all is done", func() bool { return b.committed(0) == 4 })
	for place, attempts := range map[journal.Seq]int{1: 1, 2: 3, 3: 1, 4: 1} {
		f := b.fate(t, place)
		if f.Attempts != attempts || f.At == nil || f.At.Before(began) || f.Before != nil {
			t.Errorf("the fate of %d is %+v, want %d attempts and when", place, f, attempts)
		}
	}
	if f := b.fate(t, 3); f.State != DeadLetter || f.First == nil {
		t.Errorf("the dead letter's is %+v", f)
	}
	s := b.relay.Status()[0]
	if len(s.RecentErrors) != 1 || s.RecentErrors[0].Count != 2 || s.RecentErrors[0].Error != errDown.Error() {
		t.Errorf("the troubles are %+v", s.RecentErrors)
	}
	b.restart(t)
	if f := b.fate(t, 2); f.State != Delivered || f.At != nil || f.After == nil || f.After.Before(began.Truncate(time.Millisecond)) || f.Before == nil || f.Before.After(time.Now().Add(time.Millisecond)) || f.Attempts != 0 {
		t.Errorf("after a restart it is known when, less exactly: %+v", f)
	}
	for n, err := range b.journal.Values(t.Context(), checkpointPrefix) {
		if err == nil {
			err = b.journal.DeleteValue(t.Context(), n.Key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b.restart(t)
	if f := b.fate(t, 2); f.State != Delivered || f.At != nil || f.After != nil || f.Before == nil {
		t.Errorf("without a mark it is known only that it was before: %+v", f)
	}
}

func TestThePastIsBounded(t *testing.T) {
	p := &deliveryHistory{}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 3*maxAckRanges/2 + 10 {
		s := journal.Seq(2*i + 1)
		p.add([]ackRange{{s, s + 1, at.Add(time.Duration(i) * time.Second), 1}})
	}
	if len(p.acked) != maxAckRanges {
		t.Errorf("%d runs are kept", len(p.acked))
	}
	oldest := maxAckRanges/2 + 10
	if when, _, _ := p.deliveredAt(journal.Seq(2*oldest + 2)); !when.Equal(at.Add(time.Duration(oldest) * time.Second)) {
		t.Errorf("the oldest one that is kept was at %v", when)
	}
	if when, before, _ := p.deliveredAt(1); !when.IsZero() || !before.Equal(at.Add(time.Duration(oldest)*time.Second)) {
		t.Errorf("one that is not kept was at %v, before %v", when, before)
	}
	for i := range 2 * maxRecentErrors {
		p.recordError(fmt.Errorf("trouble %d", i), at)
	}
	if told := p.recentErrors(); len(told) != maxRecentErrors || told[0].Error != fmt.Sprintf("trouble %d", 2*maxRecentErrors-1) {
		t.Errorf("told: %+v", told)
	}
}

func TestReplayOfOneEvent(t *testing.T) {
	broker := &broker{}
	b := start(t, func(s *sinks.Settings) { s.Filter = `id != "c"` }, broker)
	b.put(t, "a", "b", "c")
	eventually(t, "they arrive", func() bool { return b.committed(0) == 3 })
	re, err := b.relay.StartReplay(t.Context(), ReplaySpec{Sink: "sink0", Seq: 2, Rate: 1})
	if err != nil || re.Total != 1 {
		t.Fatalf("StartReplay = %+v, %v", re, err)
	}
	b.replayed(t, re.ID)
	if diff := cmp.Diff([]string{"a", "b", "b"}, broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if _, err := b.relay.StartReplay(t.Context(), ReplaySpec{Sink: "sink0", Seq: 3, Rate: 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an event that the filter does not take: %v", err)
	}
	if _, err := b.relay.StartReplay(t.Context(), ReplaySpec{Sink: "sink0", Seq: 9, Rate: 1}); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("an event that is none: %v", err)
	}
}

// A tail that tells of so many a second counts the others, and none twice.
func TestTailCountsWhatItDoesNotTell(t *testing.T) {
	b := start(t, nil, &broker{})
	b.put(t, numbers(100)...)
	eventually(t, "they arrive", func() bool { return b.committed(0) == 100 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var s script
	ended := make(chan error, 1)
	go func() {
		_, err := b.relay.Tail(ctx, TailOptions{From: 1, MaxRate: 7}, &s)
		ended <- err
	}()
	seen, missed := 0, 0
	eventually(t, "all are told of or counted", func() bool {
		seen, missed = 0, 0
		for _, line := range s.text() {
			var n int
			if _, err := fmt.Sscanf(line, "missed %d", &n); err == nil {
				missed += n
			} else if strings.HasPrefix(line, "see ") {
				seen++
			}
		}
		return seen+missed == 100
	})
	if seen < 7 || seen > 14 { // the second may have changed meanwhile
		t.Errorf("%d were told of", seen)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Tail = %v", err)
	}
}
