package relay

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
)

// TestWindow follows the number of events handed over at once through a
// failure of a whole batch and of the probes behind it.
func TestWindow(t *testing.T) {
	w := newWindow(64)
	w.failed(64)
	w.failed(1)
	w.failed(1)
	var sizes []int
	for range 12 {
		sizes = append(sizes, w.size)
		w.succeeded(w.size)
	}
	if diff := cmp.Diff([]int{1, 2, 4, 8, 16, 32, 36, 40, 44, 48, 52, 56}, sizes); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
	for range 12 {
		w.succeeded(w.size)
	}
	if w.size != 64 {
		t.Errorf("it grows to %d, want 64", w.size)
	}
	w.failed(64)
	w.succeeded(1)
	w.succeeded(1) // there was no more to hand over
	if w.size != 2 {
		t.Errorf("an unfilled window grows to %d, want 2", w.size)
	}
}

// TestTooSlowForABatch: a broker that can take some events within the timeout,
// but not a whole batch, gets them all.
func TestTooSlowForABatch(t *testing.T) {
	most := 0
	broker := &broker{}
	broker.seen = func(batch []event.Event) { most = len(batch) }
	broker.whole = func(int) error {
		if most > 30 {
			return errDown
		}
		return nil
	}
	b := start(t, nil, broker)
	b.put(t, numbers(300)...)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 300 })
	b.stop()
	if diff := cmp.Diff(numbers(300), broker.sorted()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if broker.attempts > 60 {
		t.Errorf("it took %d attempts", broker.attempts)
	}
}
