package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// TestBreakerProbesWithOneEvent: a sink that takes nothing is tried with one
// event at a time, and gets more at once again when that one arrives.
func TestBreakerProbesWithOneEvent(t *testing.T) {
	var sizes []int
	broker := &broker{}
	broker.whole = func(attempt int) error {
		if attempt <= 5 {
			return errDown
		}
		return nil
	}
	broker.seen = func(batch []event.Event) { sizes = append(sizes, len(batch)) }
	broker.entered, broker.hold = make(chan struct{}, 100), make(chan struct{})
	b := start(t, nil, broker)
	b.put(t, "first")
	<-broker.entered
	b.put(t, numbers(20)...)
	close(broker.hold)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 21 })
	b.put(t, "x", "y", "z")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 24 })
	b.stop()
	if diff := cmp.Diff([]int{1, 1, 1, 1, 1, 1, 2, 4, 8, 6, 3}, sizes); diff != "" {
		t.Errorf("sizes of batches (-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(b.metrics.open.WithLabelValues("sink0")); n != 0 {
		t.Errorf("the breaker is %v at the end", n)
	}
	if n := b.logs.FilterMessageSnippet("sink delivery failing").Len(); n != 1 {
		t.Errorf("the failure is logged %d times", n)
	}
}

// TestBreakerHoldsABatch: the rest of a failed batch waits behind the probe.
func TestBreakerHoldsABatch(t *testing.T) {
	var sizes []int
	broker := &broker{whole: func(attempt int) error {
		if attempt <= 3 {
			return errDown
		}
		return nil
	}}
	broker.seen = func(batch []event.Event) { sizes = append(sizes, len(batch)) }
	b := start(t, nil, broker)
	b.put(t, numbers(10)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 10 })
	b.stop()
	if diff := cmp.Diff([]int{10, 1, 1, 1, 2, 4, 3}, sizes); diff != "" {
		t.Errorf("sizes of batches (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(numbers(10), broker.sorted()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

func (b *bench) fates(t *testing.T, s journal.Seq) string {
	t.Helper()
	records, err := b.journal.Read(t.Context(), s, 1)
	if err != nil || len(records) == 0 {
		t.Fatalf("Read(%d) = %v, %v", s, records, err)
	}
	fates, err := b.relay.Deliveries(t.Context(), records[0])
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, f := range fates {
		states = append(states, strings.TrimSuffix(fmt.Sprintf("%s:%s", f.State, f.Reason), ":"))
	}
	return strings.Join(states, " ")
}

// TestDiscardsByAgeAndNumber: the discard policy of a sink discards the oldest events,
// which the log, a metric and the event's fate say.
func TestDiscardsByAgeAndNumber(t *testing.T) {
	up := make(chan struct{})
	broker := &broker{whole: func(int) error {
		select {
		case <-up:
			return nil
		default:
			return errDown
		}
	}}
	b := start(t, func(s *sinks.Settings) { s.Discard.Beyond, s.Batch = 10, 4 }, broker)
	b.put(t, numbers(25)...)
	eventually(t, "the cursor gives up", func() bool { return b.committed(0) == 15 })
	close(up)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 25 })
	if diff := cmp.Diff(numbers(25)[15:], broker.sorted()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	b.stop()
	if n := testutil.ToFloat64(b.metrics.discarded.WithLabelValues("sink0", "beyond")); n != 15 {
		t.Errorf("%v given up are counted", n)
	}
	told := int64(0)
	for _, e := range b.logs.FilterMessageSnippet("events discarded").All() {
		told += e.ContextMap()["events"].(int64)
	}
	if told != 15 {
		t.Errorf("the log tells of %d given up", told)
	}
	for s, want := range map[journal.Seq]string{1: "discarded:beyond", 15: "discarded:beyond", 16: "delivered", 25: "delivered"} {
		if got := b.fates(t, s); got != want {
			t.Errorf("the fate of event %d is %s, want %s", s, got, want)
		}
	}
}

func TestGivesUpByAge(t *testing.T) {
	broker := &broker{whole: func(int) error { return errDown }}
	b := start(t, func(s *sinks.Settings) { s.Discard.After = 30 * time.Millisecond }, broker)
	b.put(t, "0", "1")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 2 })
	if got := b.fates(t, 2); got != "discarded:after" {
		t.Errorf("the fate is %s", got)
	}
	if len(b.dead(t)) != 0 {
		t.Error("what was given up is a dead letter")
	}
}

// TestRetryReachesItsSinkOnly: a retried dead letter goes the normal way, to
// the sink that refused it and to no other.
func TestRetryReachesItsSinkOnly(t *testing.T) {
	mended := make(chan struct{})
	picky := &broker{deliver: func(_ int, e event.Event) error {
		select {
		case <-mended:
			return nil
		default:
		}
		if e.CloudEvent.ID() == "1" {
			return sinks.Permanent(sinks.ReasonTooLarge, errors.New("too large"))
		}
		return nil
	}}
	easy := &broker{}
	b := start(t, nil, picky, easy)
	b.put(t, "0", "1", "2")
	eventually(t, "both are at the end", func() bool { return b.committed(0) == 3 && b.committed(1) == 3 })
	if got := b.fates(t, 2); got != "dead_letter:too_large delivered" {
		t.Errorf("the fate is %s", got)
	}
	close(mended)
	if _, err := b.journal.Redeliver(t.Context(), journal.DeliveryID{Sink: "sink0", Seq: 2}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are at the end", func() bool { return b.committed(0) == 4 && b.committed(1) == 4 })
	if diff := cmp.Diff([]string{"0", "2", "1"}, picky.ids()); diff != "" {
		t.Errorf("the sink that refused got (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"0", "1", "2"}, easy.ids()); diff != "" {
		t.Errorf("the other got (-want +got):\n%s", diff)
	}
	if a, z := b.fates(t, 2), b.fates(t, 4); a != "redelivered delivered" || z != "delivered filtered" {
		t.Errorf("the fates are %s, and of the retry %s", a, z)
	}
}

// script is a Watcher that writes down what it is told.
type script struct {
	mu    sync.Mutex
	lines []string
}

func (s *script) OnEvent(e TailEvent) error {
	line := "see " + e.Record.Event.CloudEvent.ID()
	for _, f := range e.Deliveries {
		line += " " + string(f.State)
	}
	return s.write(line)
}

func (s *script) OnStatusChange(e StatusChange) error {
	return s.write(fmt.Sprintf("%s at %s: %s", e.Record.Event.CloudEvent.ID(), e.Status.Sink, e.Status.State))
}

func (s *script) OnDropped(n uint64) error {
	return s.write(fmt.Sprint("missed ", n))
}

func (s *script) OnIdle(journal.Seq) error { return nil }

func (s *script) write(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	return nil
}

func (s *script) text() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

func TestTail(t *testing.T) {
	slow := &broker{hold: make(chan struct{})}
	slow.deliver = func(_ int, e event.Event) error {
		if e.CloudEvent.ID() == "new" {
			return sinks.Permanent(sinks.ReasonInvalid, errDown)
		}
		return nil
	}
	quick := &broker{}
	b := start(t, nil, slow, quick)
	b.put(t, "old")
	eventually(t, "the quick sink has it", func() bool { return b.committed(1) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	var s script
	ended := make(chan error, 1)
	selects, err := filter.Parse(`id != "hidden"`)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := b.relay.Tail(ctx, TailOptions{From: 1, Filter: selects}, &s)
		ended <- err
	}()
	eventually(t, "the old one is seen", func() bool { return len(s.text()) == 1 })
	close(slow.hold)
	eventually(t, "its fate is seen", func() bool { return len(s.text()) == 2 })
	b.put(t, "hidden")
	b.put(t, "new")
	eventually(t, "the new one's fates are seen", func() bool {
		text := strings.Join(s.text(), "\n")
		return strings.Contains(text, "see new") && strings.Contains(text, "dead_letter")
	})
	eventually(t, "all fates are seen", func() bool {
		text := strings.Join(s.text(), "\n")
		return strings.Contains(text, "new at sink1: delivered") || strings.Contains(text, "see new pending delivered") || strings.Contains(text, "see new dead_letter delivered")
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Tail = %v", err)
	}
	if diff := cmp.Diff([]string{"see old pending delivered", "old at sink0: delivered"}, s.text()[:2]); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if strings.Contains(strings.Join(s.text(), "\n"), "hidden") {
		t.Error("the filter is not obeyed")
	}
}

// A tail that is to end tells of no more events, but of what becomes of those it told
// of, and says where another one goes on.
func TestTailEnds(t *testing.T) {
	slow := &broker{hold: make(chan struct{})}
	b := start(t, nil, slow)
	b.put(t, "first")
	var s script
	end, ended := make(chan struct{}), make(chan TailResult, 1)
	go func() {
		at, err := b.relay.Tail(t.Context(), TailOptions{From: 1, End: end}, &s)
		if err != nil {
			t.Errorf("Tail = %v", err)
		}
		ended <- at
	}()
	eventually(t, "the first one is seen", func() bool { return len(s.text()) == 1 })
	close(end)
	b.put(t, "second")
	select {
	case at := <-ended:
		t.Fatalf("it ended at %+v while a delivery was pending", at)
	case <-time.After(50 * time.Millisecond):
	}
	close(slow.hold)
	if at := <-ended; at != (TailResult{Next: 2}) {
		t.Errorf("it ended at %+v", at)
	}
	if diff := cmp.Diff([]string{"see first pending", "first at sink0: delivered"}, s.text()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	at, err := b.relay.Tail(t.Context(), TailOptions{From: 1, End: end}, &s)
	if err != nil || at != (TailResult{Next: 1}) {
		t.Errorf("a tail that is to end at once ended at %+v, %v", at, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if at, err := b.relay.Tail(ctx, TailOptions{From: 2}, &s); !errors.Is(err, context.Canceled) || at.Next < 2 {
		t.Errorf("a tail whose caller is gone ended at %+v, %v", at, err)
	}
}

// replayed waits for a replay to be done.
func (b *bench) replayed(t *testing.T, id string) Replay {
	t.Helper()
	var re Replay
	eventually(t, "the replay is done", func() bool {
		var err error
		if re, err = b.relay.Replay(id); err != nil {
			t.Fatal(err)
		}
		return re.State == ReplayDone
	})
	return re
}

func spec(rate int) ReplaySpec {
	return ReplaySpec{Sink: "sink0", To: time.Now().Add(time.Hour), Rate: rate}
}

func TestReplaySendsTheRangeAgainInOrder(t *testing.T) {
	broker := &broker{}
	b := start(t, func(s *sinks.Settings) { s.Filter = `subject.contains("/1")` }, broker)
	b.put(t, numbers(200)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 200 })
	first := broker.ids()
	s := spec(1_000_000)
	s.Filter = `subject.endsWith("2")`
	var want []string
	for _, id := range first {
		if strings.HasSuffix(id, "2") {
			want = append(want, id)
		}
	}
	planned, err := b.relay.PlanReplay(t.Context(), s)
	if err != nil || planned.Total != len(want) || planned.First != 1 || planned.Last != 200 {
		t.Errorf("PlanReplay = %+v, %v; want %d", planned, err, len(want))
	}
	if len(broker.ids()) != len(first) {
		t.Error("a plan sends")
	}
	re, err := b.relay.StartReplay(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	re = b.replayed(t, re.ID)
	if re.Sent != len(want) || re.Total != len(want) || re.Refused != 0 || re.Expired != 0 {
		t.Errorf("replay: %+v", re)
	}
	if diff := cmp.Diff(slices.Concat(first, want), broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(b.metrics.replayed.WithLabelValues("sink0")); n != float64(len(want)) {
		t.Errorf("%v replayed are counted", n)
	}
}

// TestReplayStopsAndContinues: through a broker that is down, a stop, a
// restart of the relay, and an event that is refused; each of the range is
// sent exactly once, beside live traffic.
func TestReplayStopsAndContinues(t *testing.T) {
	broker := &broker{}
	b := start(t, nil, broker)
	b.put(t, numbers(100)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 100 })
	broker.mu.Lock()
	broker.got = nil
	broker.attempts = 0
	broker.whole = func(n int) error {
		if n < 3 {
			return errDown
		}
		return nil
	}
	broker.deliver = func(_ int, e event.Event) error {
		if e.CloudEvent.ID() == "50" {
			return sinks.Permanent(sinks.ReasonTooLarge, errors.New("too large"))
		}
		return nil
	}
	broker.mu.Unlock()
	re, err := b.relay.StartReplay(t.Context(), spec(200)) // 20 at once, so that there is time to stop it
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "some are sent", func() bool { re, _ := b.relay.Replay(re.ID); return re.Sent > 0 })
	stopped, err := b.relay.StopReplay(t.Context(), re.ID)
	if err != nil || stopped.State != ReplayStopped || stopped.Sent == 100 {
		t.Fatalf("StopReplay = %+v, %v", stopped, err)
	}
	n := len(broker.ids())
	if _, err := b.relay.StopReplay(t.Context(), re.ID); !errors.Is(err, ErrState) {
		t.Errorf("the second stop: %v", err)
	}
	b.put(t, "live")
	eventually(t, "live traffic goes on", func() bool { return b.committed(0) == 101 })
	if got := broker.ids(); len(got) != n+1 || got[n] != "live" {
		t.Errorf("%d were sent after the stop: %v", len(got)-n, got[n:])
	}
	if _, err := b.relay.ContinueReplay(t.Context(), re.ID); err != nil {
		t.Fatal(err)
	}
	b.restart(t)
	re = b.replayed(t, re.ID)
	got := map[string]int{}
	for _, id := range broker.ids() {
		got[id]++
	}
	for _, id := range numbers(100) {
		if want := 1; got[id] < want && id != "50" {
			t.Errorf("%s was not sent", id)
		}
	}
	if re.Refused < 1 || !strings.Contains(re.Error, "too large") {
		t.Errorf("replay: %+v", re)
	}
	for n, err := range b.journal.Values(t.Context(), "replay/") {
		if err != nil || !strings.Contains(string(n.Value), `"done"`) {
			t.Errorf("note: %s, %v", n.Value, err)
		}
	}
}

func TestReplayRefuses(t *testing.T) {
	b := start(t, nil, &broker{})
	for want, change := range map[string]func(*ReplaySpec){
		"not in the configuration": func(s *ReplaySpec) { s.Sink = "other" },
		"is not an expression":     func(s *ReplaySpec) { s.Filter = "(" },
		"is not before to":         func(s *ReplaySpec) { s.From = s.To },
		"rate is 0":                func(s *ReplaySpec) { s.Rate = 0 },
		"cannot be overridden":     func(s *ReplaySpec) { s.Keys = map[string]string{"topic": "x"} },
	} {
		s := spec(10)
		change(&s)
		if _, err := b.relay.StartReplay(t.Context(), s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("StartReplay = %v, want %q", err, want)
		}
	}
	if _, err := b.relay.Replay("nope"); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("Replay = %v", err)
	}
	if n := len(b.relay.Replays()); n != 0 {
		t.Errorf("there are %d replays", n)
	}
}
