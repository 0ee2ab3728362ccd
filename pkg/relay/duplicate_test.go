package relay

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/sinks"
)

// dropping is a broker that drops what it has by its message ID, as JetStream does.
type dropping struct {
	broker
	mu     sync.Mutex
	stored []string // message IDs, in order
}

func newDropping() *dropping {
	d := &dropping{}
	d.seen = func(batch []event.Event) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, e := range batch {
			if slices.Contains(d.stored, e.MessageID) {
				d.env.Duplicate(e)
				continue
			}
			d.stored = append(d.stored, e.MessageID)
		}
	}
	return d
}

func (d *dropping) ids() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.stored)
}

func (b *bench) duplicates() (lost, repeats float64) {
	return testutil.ToFloat64(b.metrics.duplicates.WithLabelValues("sink0", "lost")), testutil.ToFloat64(b.metrics.duplicates.WithLabelValues("sink0", "repeat"))
}

// TestEachStoredEventHasAMessageID of its own: also where events share source and
// id, where a dead letter is sent again, and in a replay.
func TestEachStoredEventHasAMessageID(t *testing.T) {
	d := newDropping()
	refuse := true
	d.deliver = func(_ int, e event.Event) error {
		if refuse && string(e.CloudEvent.DataEncoded) == "refused" {
			return sinks.Permanent(sinks.ReasonTooLarge, errDown)
		}
		return nil
	}
	b := start(t, nil, &d.broker)
	for _, status := range []string{"created", "paid", "refused"} { // one source and id
		e := journaltest.Event("A-1", event.NewKey("test", "A-1", status))
		e.CloudEvent.DataEncoded = []byte(status)
		if _, err := b.journal.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 3 })
	d.broker.mu.Lock()
	refuse = false
	d.broker.mu.Unlock()
	if _, err := b.journal.Redeliver(t.Context(), journal.DeliveryID{Sink: "sink0", Seq: 3}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 4 })
	for range 2 {
		re, err := b.relay.StartReplay(t.Context(), spec(1_000_000))
		if err != nil {
			t.Fatal(err)
		}
		b.replayed(t, re.ID)
	}
	ids := d.ids()
	if len(ids) != 3+1+2*3 { // of a range, the dead letter is sent at its first place
		t.Errorf("%d messages were taken: %q", len(ids), ids)
	}
	for _, id := range ids {
		if !strings.HasPrefix(id, b.journal.ID()+"/") || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("a message ID is %q", id)
		}
	}
	if lost, repeats := b.duplicates(); lost+repeats > 0 {
		t.Errorf("%v events are counted as lost, %v as repeats", lost, repeats)
	}
}

// TestDuplicates are counted, and logged as errors where no earlier attempt can
// have delivered the event.
func TestDuplicates(t *testing.T) {
	d := newDropping()
	d.whole = func(attempt int) error {
		if attempt == 1 {
			return errDown // the acknowledgement was lost
		}
		return nil
	}
	b := start(t, nil, &d.broker)
	b.put(t, "0")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 1 })
	if lost, repeats := b.duplicates(); lost != 0 || repeats != 1 {
		t.Errorf("after a lost acknowledgement: %v lost, %v repeats", lost, repeats)
	}

	// Someone else has published under the next ID.
	d.mu.Lock()
	seen := d.seen
	d.mu.Unlock()
	d.broker.mu.Lock()
	d.seen = func(batch []event.Event) {
		d.mu.Lock()
		d.stored = append(d.stored, batch[0].MessageID)
		d.mu.Unlock()
		seen(batch)
	}
	d.broker.mu.Unlock()
	b.put(t, "1")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 2 })
	if lost, repeats := b.duplicates(); lost != 1 || repeats != 1 {
		t.Errorf("after a foreign message: %v lost, %v repeats", lost, repeats)
	}
	const said = "discarded an event as a duplicate although it was sent for the first time"
	if logged := b.logs.FilterMessageSnippet(said).All(); len(logged) != 1 || logged[0].ContextMap()["event_id"] != "1" {
		t.Errorf("%d lines are logged: %v", len(logged), logged)
	}

	// What was stored before the relay began an earlier process may have sent.
	b.stop()
	b.put(t, "2")
	if err := b.relay.Close(); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 3 })
	if lost, repeats := b.duplicates(); lost != 0 || repeats != 1 {
		t.Errorf("after a restart: %v lost, %v repeats", lost, repeats)
	}
}
