package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker is a sink whose outcomes a test scripts.
type broker struct {
	mu       sync.Mutex
	got      []string                               // ids acknowledged, in order
	attempts int                                    // of Deliver
	deliver  func(attempt int, e event.Event) error // nil acknowledges
	whole    func(attempt int) error                // fails a whole batch
	openErr  func(attempt int) error
	seen     func(batch []event.Event)
	opened   int
	env      sinks.Env
	hold     chan struct{} // Deliver waits for it, where it is not nil
	entered  chan struct{}
}

func (b *broker) open(_ context.Context, env sinks.Env) (sinks.Sink, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.env = env
	b.opened++
	if b.openErr != nil {
		if err := b.openErr(b.opened); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *broker) Deliver(ctx context.Context, batch []event.Event) error {
	if b.entered != nil {
		b.entered <- struct{}{}
	}
	if b.hold != nil {
		select {
		case <-b.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempts++
	if b.seen != nil {
		b.seen(batch)
	}
	if b.whole != nil {
		if err := b.whole(b.attempts); err != nil {
			return err
		}
	}
	errs := make(sinks.BatchError, len(batch))
	failed := false
	for i, e := range batch {
		if b.deliver != nil {
			errs[i] = b.deliver(b.attempts, e)
		}
		if errs[i] == nil {
			b.got = append(b.got, e.CloudEvent.ID())
		} else {
			failed = true
		}
	}
	if failed {
		return errs
	}
	return nil
}

func (b *broker) Destination(e event.Event) sinks.Destination {
	return sinks.Destination{Name: "to/" + e.CloudEvent.ID(), Template: "to/{id}"}
}

func (b *broker) Close() error { return nil }

func (b *broker) ids() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

// sorted returns the acknowledged ids by number: events without a key have no order.
func (b *broker) sorted() []string {
	ids := b.ids()
	slices.SortFunc(ids, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return ids
}

// bench is a running relay.
type bench struct {
	opts    Options
	journal *local.Journal
	relay   *Relay
	metrics *Metrics
	logs    *observer.ObservedLogs
	stop    func() // orderly
	cut     context.CancelFunc
}

func start(t *testing.T, change func(*sinks.Settings), brokers ...*broker) *bench {
	t.Helper()
	j, err := local.Open(local.Options{Dir: "data", FS: vfs.NewMem(), Window: time.Hour, Retention: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	b := &bench{journal: j, logs: logs, opts: Options{Journal: j, Log: zap.New(core)}}
	for i, broker := range brokers {
		s := sinks.DefaultSettings()
		s.Retry = sinks.Retry{Initial: time.Millisecond, Max: 5 * time.Millisecond}
		if change != nil {
			change(&s)
		}
		b.opts.Sinks = append(b.opts.Sinks, sinks.Configured{Name: fmt.Sprint("sink", i), Settings: s, Open: broker.open})
	}
	b.run(t)
	t.Cleanup(func() {
		b.cut()
		b.stop()
		if err := errors.Join(b.relay.Close(), j.Close()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// run makes a relay on the journal and sets it going.
func (b *bench) run(t *testing.T) {
	t.Helper()
	b.metrics = NewMetrics(prometheus.NewRegistry())
	b.opts.Metrics = b.metrics
	var err error
	if b.relay, err = New(t.Context(), b.opts); err != nil {
		t.Fatal(err)
	}
	relay := b.relay
	ctx, cancel := context.WithCancel(context.Background())
	hard, cut := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- relay.Run(ctx, hard) }()
	b.cut = cut
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		cut()
	})
}

// restart ends the relay and begins another one on the same journal.
func (b *bench) restart(t *testing.T) {
	t.Helper()
	b.stop()
	if err := b.relay.Close(); err != nil {
		t.Fatal(err)
	}
	b.run(t)
}

func (b *bench) put(t *testing.T, ids ...string) {
	t.Helper()
	var events []event.Event
	for _, id := range ids {
		events = append(events, journaltest.Event(id))
	}
	if _, err := b.journal.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) committed(i int) journal.Seq { return b.relay.pumps[i].cursor.Committed() }

func (b *bench) dead(t *testing.T) map[string]journal.DeadLetter {
	t.Helper()
	letters := map[string]journal.DeadLetter{}
	for d, err := range b.journal.DeadLetters(t.Context(), journal.DeliveryID{}) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Sink == "sink0" {
			letters[d.Event.CloudEvent.ID()] = d.Letter
		}
	}
	return letters
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func numbers(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprint(i))
	}
	return ids
}

var errDown = errors.New("the broker is down")

func TestDeliversInOrder(t *testing.T) {
	broker := &broker{}
	b := start(t, func(s *sinks.Settings) { s.Batch = 7 }, broker)
	ids := numbers(100)
	b.put(t, ids...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 100 })
	if diff := cmp.Diff(ids, broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(b.metrics.delivered.WithLabelValues("sink0")); n != 100 {
		t.Errorf("%v delivered are counted", n)
	}
}

func TestBrokerThatIsDownIsRetriedAndLoggedOnce(t *testing.T) {
	broker := &broker{
		openErr: func(n int) error {
			if n < 4 {
				return errDown
			}
			return nil
		},
		whole: func(n int) error {
			if n < 4 {
				return errDown
			}
			if n < 6 { // no event was judged, so that none may be set aside
				return sinks.Permanent(sinks.ReasonUnauthorized, errDown)
			}
			return nil
		},
	}
	b := start(t, nil, broker)
	b.put(t, numbers(10)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 10 })
	if diff := cmp.Diff(numbers(10), broker.sorted()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	b.stop()
	if n := b.logs.FilterMessageSnippet("sink delivery failing").Len(); n != 1 {
		t.Errorf("the failure is logged %d times, want once", n)
	}
	if n := b.logs.FilterMessageSnippet("sink delivery recovered").Len(); n != 1 {
		t.Errorf("the recovery is logged %d times, want once", n)
	}
	if n := testutil.ToFloat64(b.metrics.retries.WithLabelValues("sink0")); n != 8 {
		t.Errorf("%v retries are counted, want 8", n)
	}
}

func TestPermanentIsSetAsideAndTransientHoldsTheLine(t *testing.T) {
	broker := &broker{deliver: func(attempt int, e event.Event) error {
		switch id := e.CloudEvent.ID(); {
		case id == "3":
			return sinks.Permanent(sinks.ReasonTooLarge, errors.New("message too large"))
		case id >= "5" && attempt < 4: // no later event counts as delivered
			return errDown
		case id == "7" && attempt < 6:
			return errDown
		}
		return nil
	}}
	b := start(t, nil, broker)
	b.put(t, numbers(10)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 10 })
	got := broker.ids()
	slices.Sort(got)
	if diff := cmp.Diff([]string{"0", "1", "2", "4", "5", "6", "7", "8", "9"}, got); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	letters := b.dead(t)
	l := letters["3"]
	if len(letters) != 1 || l.Seq != 4 || l.Reason != "too_large" || l.Err != "message too large" || l.Attempts != 1 || l.First.IsZero() || l.Last.Before(l.First) {
		t.Errorf("dead letters: %+v", letters)
	}
	if n := testutil.ToFloat64(b.metrics.dead.WithLabelValues("sink0", "too_large")); n != 1 {
		t.Errorf("%v dead letters are counted", n)
	}
}

// TestCursorFollowsTheLine: what is done at the head of the journal is committed while the
// rest is still being tried.
func TestCursorFollowsTheLine(t *testing.T) {
	up := make(chan struct{})
	broker := &broker{deliver: func(_ int, e event.Event) error {
		if e.CloudEvent.ID() < "4" {
			return nil
		}
		select {
		case <-up:
			return nil
		default:
			return errDown
		}
	}}
	b := start(t, nil, broker)
	b.put(t, numbers(8)...)
	eventually(t, "the cursor is behind what is done", func() bool { return b.committed(0) == 4 })
	close(up)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 8 })
	got := broker.ids()
	slices.Sort(got) // events without a key do not wait for each other
	if diff := cmp.Diff(numbers(8), got); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

func TestDeadLetterAfter(t *testing.T) {
	broker := &broker{deliver: func(_ int, e event.Event) error {
		if e.CloudEvent.ID() == "0" {
			return errDown
		}
		return nil
	}}
	b := start(t, func(s *sinks.Settings) { s.Retry.DeadLetterAfter = 20 * time.Millisecond }, broker)
	b.put(t, "0", "1")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 2 })
	if l := b.dead(t)["0"]; l.Reason != "expired" || l.Err != errDown.Error() || l.Attempts < 2 {
		t.Errorf("dead letter: %+v", l)
	}
}

// TestInDoubt: an event that the broker may have stored becomes no dead letter and is not
// discarded, by age or by an operator, until the sink knows the outcome.
func TestInDoubt(t *testing.T) {
	for name, fail := range map[string]func(*broker, func(e event.Event) error){
		"the event fails": func(b *broker, outcome func(e event.Event) error) {
			b.deliver = func(_ int, e event.Event) error { return outcome(e) }
		},
		"the sink fails": func(b *broker, outcome func(e event.Event) error) {
			b.whole = func(int) error { return outcome(event.Event{}) }
		},
	} {
		for _, policy := range []string{"dead letter", "discard"} {
			t.Run(name+", "+policy, func(t *testing.T) {
				var known atomic.Bool
				var attempts atomic.Int64
				broker := &broker{}
				fail(broker, func(e event.Event) error {
					attempts.Add(1)
					switch {
					case e.CloudEvent.Context != nil && e.CloudEvent.ID() == "1":
						return errDown
					case known.Load():
						return nil
					}
					return sinks.InDoubt(errDown)
				})
				b := start(t, func(s *sinks.Settings) {
					if policy == "discard" {
						s.Discard.After = 20 * time.Millisecond
					} else {
						s.Retry.DeadLetterAfter = 20 * time.Millisecond
						s.Retry.MaxAttempts = 1
					}
				}, broker)
				b.put(t, "0")
				eventually(t, "several attempts", func() bool { return attempts.Load() > 8 })
				want := journal.Seq(1)
				if name == "the event fails" {
					b.put(t, "1")
					want++
					eventually(t, "an event that is not in doubt is given up", func() bool {
						return testutil.CollectAndCount(b.metrics.dead)+testutil.CollectAndCount(b.metrics.discarded) > 0
					})
					if err := b.relay.ResolveBlocked(t.Context(), "sink0", 1, BlockedDiscard, false); !errors.Is(err, ErrState) {
						t.Errorf("an operator discards the event: %v", err)
					}
				}
				if n := b.committed(0); n != 0 {
					t.Errorf("the event is done before its outcome is known")
				}
				known.Store(true)
				eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == want })
				if letter, ok := b.dead(t)["0"]; ok {
					t.Errorf("dead letter: %+v", letter)
				}
				if n := testutil.ToFloat64(b.metrics.delivered.WithLabelValues("sink0")); n != 1 {
					t.Errorf("%v delivered events are counted", n)
				}
			})
		}
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	var times []time.Time
	broker := &broker{whole: func(n int) error {
		times = append(times, time.Now())
		if n == 1 {
			return sinks.RetryAfter(100*time.Millisecond, errDown)
		}
		return nil
	}}
	b := start(t, nil, broker)
	b.put(t, "0")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 1 })
	if d := times[1].Sub(times[0]); d < 100*time.Millisecond {
		t.Errorf("tried again after %v, asked for 100ms", d)
	}
}

func TestFilter(t *testing.T) {
	broker := &broker{}
	b := start(t, func(s *sinks.Settings) { s.Filter = `subject.matches("/2.$")` }, broker)
	b.put(t, numbers(40)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 40 })
	if diff := cmp.Diff([]string{"20", "21", "22", "23", "24", "25", "26", "27", "28", "29"}, broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(b.metrics.filtered.WithLabelValues("sink0")); n != 30 {
		t.Errorf("%v filtered are counted", n)
	}
}

// A filter that cannot be evaluated for an event does not select the event. The
// error is counted, logged once per reason, and shown in the status.
func TestFilterErrors(t *testing.T) {
	broker := &broker{}
	b := start(t, func(s *sinks.Settings) { s.Filter = `id.substring(0, size(id) - 1) == "1"` }, broker)
	b.put(t, "1", "", "10", "12", "20")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 5 })
	if diff := cmp.Diff([]string{"10", "12"}, broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	s := b.relay.Status()[0]
	want := FilterCounts{Matched: 2, Filtered: 3, Errors: 1, LastError: "the filter cannot be evaluated: a character index is out of range"}
	if s.FilterCounts == nil || *s.FilterCounts != want {
		t.Errorf("the filter did %+v, want %+v", s.FilterCounts, want)
	}
	if n := b.logs.FilterMessageSnippet("filter cannot be evaluated").Len(); n != 1 {
		t.Errorf("the log tells of it %d times", n)
	}
	for metric, want := range map[*prometheus.CounterVec]float64{b.metrics.matched: 2, b.metrics.filtered: 3, b.metrics.filterErrors: 1} {
		if n := testutil.ToFloat64(metric.WithLabelValues("sink0")); n != want {
			t.Errorf("a metric counts %v events, want %v", n, want)
		}
	}
}

func TestSinksAreIndependent(t *testing.T) {
	stuck := &broker{hold: make(chan struct{})}
	well := &broker{}
	b := start(t, nil, stuck, well)
	b.put(t, numbers(50)...)
	eventually(t, "the sink that is well has all", func() bool { return b.committed(1) == 50 })
	if b.committed(0) != 0 {
		t.Errorf("the stuck sink is at %d", b.committed(0))
	}
	close(stuck.hold)
	eventually(t, "the stuck sink has all", func() bool { return b.committed(0) == 50 })
}

// TestStopWaitsForTheAcknowledgement: what the broker has acknowledged by the
// time the relay stops is not sent again by the next process.
func TestStopWaitsForTheAcknowledgement(t *testing.T) {
	broker := &broker{hold: make(chan struct{}), entered: make(chan struct{}, 1)}
	b := start(t, nil, broker)
	b.put(t, "0")
	<-broker.entered
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	close(broker.hold)
	<-stopped
	if b.committed(0) != 1 {
		t.Errorf("the cursor is at %d, want 1", b.committed(0))
	}
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	broker := &broker{hold: make(chan struct{}), entered: make(chan struct{}, 1)}
	b := start(t, nil, broker)
	b.put(t, "0")
	<-broker.entered
	b.cut()
	b.stop()
	if b.committed(0) != 0 {
		t.Errorf("the cursor is at %d, nothing was acknowledged", b.committed(0))
	}
}

func TestAttemptHasADeadline(t *testing.T) {
	hung := &broker{hold: make(chan struct{})}
	b := start(t, func(s *sinks.Settings) { s.Timeout = 5 * time.Millisecond }, hung)
	b.put(t, "0")
	eventually(t, "several attempts", func() bool {
		return testutil.ToFloat64(b.metrics.retries.WithLabelValues("sink0")) >= 3
	})
}

func TestLag(t *testing.T) {
	registry := prometheus.NewRegistry()
	broker := &broker{hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	b := start(t, nil, broker)
	now := time.Now().Add(time.Hour)
	b.put(t, numbers(3)...)
	<-broker.entered
	m := NewMetrics(registry)
	s := m.sink("x", b.relay.pumps[0].cursor, func() time.Time { return now })
	s.setOldest(now.Add(-90 * time.Second))
	want := `
# HELP postwire_sink_lag_events Lag of the sink: events in the journal that are not done for the sink.
# TYPE postwire_sink_lag_events gauge
postwire_sink_lag_events{sink="x"} 3
# HELP postwire_sink_lag_seconds Lag of the sink in seconds: age of the oldest pending event, 0 without pending events.
# TYPE postwire_sink_lag_seconds gauge
postwire_sink_lag_seconds{sink="x"} 90
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "postwire_sink_lag_events", "postwire_sink_lag_seconds"); err != nil {
		t.Error(err)
	}
	close(broker.hold)
}

// Limits implements sinks.Sink.
func (*broker) Limits() sinks.Limits { return sinks.Limits{} }
