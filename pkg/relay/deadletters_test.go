package relay

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/sinks"
)

var errRefused = sinks.Permanent(sinks.ReasonTooLarge, errors.New("message too large"))

// copying is a relay with a sink "main", whose dead letters go to a sink "dead".
type copying struct {
	main, dead *broker
	change     func(main, dead *sinks.Settings) // nil changes nothing

	relay   *Relay
	metrics *Metrics
	logs    *observer.ObservedLogs
}

// run starts the relay on a journal. The returned function ends the relay, and the deliveries
// in flight with it.
func (c *copying) run(t *testing.T, j journal.Journal) (kill func()) {
	t.Helper()
	mainSettings, deadSettings := sinks.DefaultSettings(), sinks.DefaultSettings()
	for _, s := range []*sinks.Settings{&mainSettings, &deadSettings} {
		s.Retry = sinks.Retry{Initial: time.Millisecond, Max: 5 * time.Millisecond}
	}
	mainSettings.DeadLetters.Sink, deadSettings.Filter = "dead", deadLettersOnly
	if c.change != nil {
		c.change(&mainSettings, &deadSettings)
	}
	core, logs := observer.New(zap.InfoLevel)
	c.metrics, c.logs = NewMetrics(prometheus.NewRegistry()), logs
	r, err := New(t.Context(), Options{Journal: j, Log: zap.New(core), Metrics: c.metrics, Sinks: []sinks.Configured{
		{Name: "main", Settings: mainSettings, Open: c.main.open}, {Name: "dead", Settings: deadSettings, Open: c.dead.open},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.relay = r
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, r.Close()); err != nil {
			t.Error(err)
		}
	})
}

func keyedEvent(id, key string) event.Event {
	e := journaltest.Event(id)
	e.CloudEvent.SetExtension(event.PartitionKey, key)
	return e
}

func deadLettersOf(t *testing.T, j journal.Journal) (ids []string) {
	t.Helper()
	for d, err := range j.DeadLetters(t.Context(), journal.DeliveryID{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.Sink+"/"+d.Event.CloudEvent.ID())
	}
	return ids
}

// A crash between a dead letter and its delivery to the sink in dead_letters loses neither of
// the two, and live events do not wait for that sink.
func TestCrashKeepsDeadLettersForTheirSink(t *testing.T) {
	for name, engine := range map[string]func(t *testing.T) (open func() journal.Journal, crash func(journal.Journal)){
		"local": func(t *testing.T) (func() journal.Journal, func(journal.Journal)) {
			mem := vfs.NewCrashableMem()
			open := func() journal.Journal {
				j, err := local.Open(local.Options{Dir: "data", FS: mem, Window: time.Hour, Retention: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				return j
			}
			return open, func(j journal.Journal) {
				after := mem.CrashClone(vfs.CrashCloneCfg{})
				if err := j.Close(); err != nil {
					t.Error(err)
				}
				mem = after
			}
		},
		"jetstream": func(t *testing.T) (func() journal.Journal, func(journal.Journal)) {
			return openJetStream(t, 0), func(j journal.Journal) {
				if err := j.Close(); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			open, crash := engine(t)
			var mu sync.Mutex
			var copies []event.Event
			up := false
			c := &copying{
				// The follower is not in the delivery of the refused event.
				change: func(main, _ *sinks.Settings) { main.Batch = 1 },
				main: &broker{deliver: func(_ int, e event.Event) error {
					if e.CloudEvent.ID() == "poison" {
						return errRefused
					}
					return nil
				}},
				dead: &broker{
					whole: func(int) error {
						mu.Lock()
						defer mu.Unlock()
						if !up {
							return errDown
						}
						return nil
					},
					seen: func(batch []event.Event) {
						mu.Lock()
						defer mu.Unlock()
						if up {
							copies = append(copies, batch...)
						}
					},
				},
			}
			j := open()
			kill := c.run(t, j)
			if _, err := j.Append(t.Context(), keyedEvent("poison", "k"), keyedEvent("follower", "k"), keyedEvent("other", "l")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "live events are delivered", func() bool { return len(c.main.ids()) == 2 })
			if diff := cmp.Diff([]string{"main/poison"}, deadLettersOf(t, j)); diff != "" { // before the follower was handed over
				t.Errorf("dead letters (-want +got):\n%s", diff)
			}
			kill()
			crash(j)

			mu.Lock()
			up = true
			mu.Unlock()
			j = open()
			kill = c.run(t, j)
			eventually(t, "the dead letter is delivered", func() bool { return slices.Contains(c.dead.ids(), "poison") })
			eventually(t, "nothing is pending", func() bool {
				for _, s := range c.relay.Status() {
					if s.LagEvents > 0 {
						return false
					}
				}
				return true
			})
			if diff := cmp.Diff([]string{"main/poison"}, deadLettersOf(t, j)); diff != "" {
				t.Errorf("dead letters after the delivery (-want +got):\n%s", diff)
			}
			mu.Lock()
			got := copies[0].CloudEvent
			mu.Unlock()
			original := journaltest.Event("poison").CloudEvent
			if got.Source() != original.Source() || got.Type() != original.Type() || string(got.Data()) != string(original.Data()) || got.Extensions()[event.PartitionKey] != "k" {
				t.Errorf("the copy does not have the attributes and the data of its event:\n%s", got)
			}
			if e := got.Extensions(); e[event.DeadLetterSink] != "main" || e[event.DeadLetterReason] != "too_large" || e[event.DeadLetterAttempts] != int32(1) || e[event.DeadLetterTime] == nil {
				t.Errorf("extensions of the copy = %v", e)
			}
			kill()
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A dead letter that its sink refuses makes no further dead letter, and is reported.
func TestRefusedCopyMakesNoDeadLetter(t *testing.T) {
	j := openLocal(t, 0)()
	refuse := func(int, event.Event) error { return errRefused }
	c := &copying{main: &broker{deliver: refuse}, dead: &broker{deliver: refuse}}
	kill := c.run(t, j)
	if _, err := j.Append(t.Context(), keyedEvent("poison", "k")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal is counted", func() bool {
		return testutil.ToFloat64(c.metrics.refusedCopies.WithLabelValues("dead", "too_large")) == 1
	})
	eventually(t, "nothing is pending", func() bool { return c.relay.Status()[1].LagEvents == 0 })
	if diff := cmp.Diff([]string{"main/poison"}, deadLettersOf(t, j)); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	records, err := j.Read(t.Context(), 1, 10)
	if err != nil || len(records) != 2 {
		t.Fatalf("%d events, %v, want the event and one copy", len(records), err)
	}
	statuses, err := c.relay.Deliveries(t.Context(), records[1])
	if err != nil || statuses[0].State != Filtered || statuses[1].State != Discarded || statuses[1].Reason != journal.CopyRefused {
		t.Errorf("statuses of the copy = %+v, %v", statuses, err)
	}
	if c.logs.FilterMessageSnippet("dead letter of another sink refused").Len() != 1 {
		t.Error("the refusal is not logged once")
	}
	if recent := c.relay.Status()[1].FilterCounts; recent != nil && recent.NeverMatched() {
		t.Error("a sink for dead letters only has a filter that never matched")
	}
	kill()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

// Dead letters that wait for their sink do not delay its live events, and have message IDs of
// their own.
func TestCopiesBesideLiveEvents(t *testing.T) {
	j := openLocal(t, 0)()
	var mu sync.Mutex
	messages := map[string][]string{}
	c := &copying{
		main: &broker{deliver: func(int, event.Event) error { return errRefused }},
		dead: &broker{
			seen: func(batch []event.Event) {
				mu.Lock()
				defer mu.Unlock()
				for _, e := range batch {
					if id := e.CloudEvent.ID(); !slices.Contains(messages[id], e.MessageID) {
						messages[id] = append(messages[id], e.MessageID)
					}
				}
			},
			deliver: func(_ int, e event.Event) error {
				if _, copied := e.Attribute(event.DeadLetterSink); copied {
					return errDown
				}
				return nil
			},
		},
		change: func(_, dead *sinks.Settings) { dead.Filter = "" },
	}
	kill := c.run(t, j)
	if _, err := j.Append(t.Context(), keyedEvent("1", "k"), keyedEvent("2", "l")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both dead letters wait", func() bool {
		b, err := c.relay.Blocked(t.Context(), "dead", 10)
		return err == nil && len(b.Events) == 2
	})
	if _, err := j.Append(t.Context(), keyedEvent("3", "m")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a later event is delivered", func() bool { return slices.Contains(c.dead.ids(), "3") })
	mu.Lock()
	if len(messages["1"]) != 2 || len(messages["2"]) != 2 {
		t.Errorf("message IDs: %v, want one for the event and one for its copy", messages)
	}
	mu.Unlock()
	kill()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
