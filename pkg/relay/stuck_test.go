package relay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/sinks"
)

// TestStuckEventFillsNoJournal: an event that is refused for ever keeps no room, and not the
// events of other keys. The journal takes several times its size, also over restarts.
func TestStuckEventFillsNoJournal(t *testing.T) {
	for name, engine := range map[string]struct {
		events int
		size   uint64
		open   func(t *testing.T, size uint64) func() journal.Journal
	}{
		"local":     {pick(t, 30_000, 1_000_000), uint64(pick(t, 12<<20, 256<<20)), openLocal},
		"jetstream": {pick(t, 20_000, 100_000), uint64(pick(t, 16<<20, 64<<20)), openJetStream},
	} {
		t.Run(name, func(t *testing.T) { testStuckEvent(t, engine.events, engine.size, engine.open(t, engine.size)) })
	}
}

func openLocal(t *testing.T, size uint64) func() journal.Journal {
	dir := t.TempDir()
	return func() journal.Journal {
		j, err := local.Open(local.Options{Dir: dir, Window: time.Minute, Retention: time.Hour, MaxBytes: size, Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
}

func openJetStream(t *testing.T, size uint64) func() journal.Journal {
	url := config.URL(natstest.Start(t).URL())
	return func() journal.Journal {
		j, err := jetstream.Open(t.Context(), jetstream.Options{
			URL: url, Stream: "postwire", Name: "one", Window: time.Minute, Retention: time.Hour, MaxBytes: size, Log: zap.NewNop(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
}

func testStuckEvent(t *testing.T, events int, size uint64, open func() journal.Journal) {
	var mu sync.Mutex
	got, repeated := make(map[string]bool, events), 0
	sink := &scripted{t: t, limits: sinks.Limits{InFlight: 4}, acked: func(journal.Seq, string) {}}
	sink.outcome = func(_ context.Context, e event.Event) error {
		if e.CloudEvent.ID() == "poison" {
			return errors.New("500")
		}
		mu.Lock()
		defer mu.Unlock()
		if got[e.CloudEvent.ID()] {
			repeated++
		}
		got[e.CloudEvent.ID()] = true
		return nil
	}
	settings := sinks.DefaultSettings()
	settings.Start, settings.Retry.Max = "earliest", time.Second
	out := sinks.Configured{Name: "sink", Settings: settings, Open: func(context.Context, sinks.Env) (sinks.Sink, error) { return sink, nil }}
	run := func(j journal.Journal) (r *Relay, stop func(orderly bool)) {
		r, err := New(t.Context(), Options{Journal: j, Sinks: []sinks.Configured{out}, Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry())})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		hard, cut := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx, hard) }()
		return r, func(orderly bool) {
			if !orderly {
				cut()
			}
			cancel()
			if err := errors.Join(<-ended, r.Close(), j.Close()); err != nil {
				t.Error(err)
			}
			cut()
		}
	}
	j := open()
	r, stop := run(j)
	data := strings.Repeat("0123456789abcdef", 64)
	put := func(id, key string) event.Event {
		e := journaltest.Event(id)
		e.CloudEvent.SetExtension(event.PartitionKey, key)
		e.CloudEvent.DataEncoded = fmt.Appendf(nil, `{"id": %q, "text": %q, "noise": "%x"}`, id, data[:512], journaltest.Event(id).Keys[0])
		return e
	}
	first, err := j.Append(t.Context(), put("poison", "poison"))
	if err != nil {
		t.Fatal(err)
	}
	poison := first[0].Seq
	for n := 0; n < events; n += 100 {
		batch := make([]event.Event, 100)
		for i := range batch {
			batch[i] = put(fmt.Sprint(n+i), fmt.Sprint("key", (n+i)%997))
		}
		if _, err := j.Append(t.Context(), batch...); err != nil {
			t.Fatalf("after %d events: %v", n, err)
		}
		for r.Status()[0].LagEvents > 5000 { // the sender is as fast as the sink
			time.Sleep(time.Millisecond)
		}
		if n == events/3 || n == events/2 {
			stop(n == events/2)
			j = open()
			r, stop = run(j)
		}
	}
	eventually(t, "only the stuck event is pending", func() bool { return r.Status()[0].LagEvents == 1 })
	mu.Lock()
	if len(got) != events || repeated > 20_000 {
		t.Errorf("%d of %d events are delivered, %d twice", len(got), events, repeated)
	}
	mu.Unlock()
	if c := r.pumps[0].cursor.Committed(); c >= poison || j.Oldest() != poison {
		t.Errorf("committed through %d, the oldest event is %d", c, j.Oldest())
	}
	if u := j.Usage(); u.Bytes > size {
		t.Errorf("the journal has %d bytes, the limit is %d", u.Bytes, size)
	}
	if err := r.ResolveBlocked(t.Context(), "sink", poison, BlockedDeadLetter, false); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing is pending", func() bool { return r.Status()[0].LagEvents == 0 })
	stop(true)
}
