package ingress

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

func TestIdentitiesAreBounded(t *testing.T) {
	i := newIdentities()
	for n := range 3 * maxIdentities {
		if i.stored(journaltest.Event(fmt.Sprint(n))) {
			t.Fatalf("event %d shares its id", n)
		}
	}
	if len(i.ring) != maxIdentities || len(i.counts) != maxIdentities {
		t.Errorf("%d and %d are remembered, want %d", len(i.ring), len(i.counts), maxIdentities)
	}
	newest := journaltest.Event(fmt.Sprint(3*maxIdentities - 1))
	for range 2 {
		if !i.stored(newest) {
			t.Error("the id of the newest event is not known")
		}
	}
	if i.stored(journaltest.Event("0")) {
		t.Error("an event is remembered that is not among the newest")
	}
	other := journaltest.Event(fmt.Sprint(3*maxIdentities - 1))
	other.CloudEvent.SetSource("/other")
	if i.stored(other) {
		t.Error("an event of another source shares the id")
	}
}

// TestSharedIDsAreCounted: of stored events only, by source.
func TestSharedIDsAreCounted(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	shop, other := m.of("shop"), m.of("other")
	a := journaltest.Event("A-1")
	shop.events([]event.Event{a, a, journaltest.Event("A-2")}, []journal.Receipt{{}, {Duplicate: true}, {}})
	other.events([]event.Event{journaltest.Event("B-1")}, []journal.Receipt{{}})
	if n := testutil.ToFloat64(shop.shared); n != 0 {
		t.Errorf("%v are counted of events with ids of their own", n)
	}
	shop.events([]event.Event{a, a}, []journal.Receipt{{}, {}})
	if n, none := testutil.ToFloat64(shop.shared), testutil.ToFloat64(other.shared); n != 2 || none != 0 {
		t.Errorf("%v and %v are counted, want 2 and 0", n, none)
	}
}
