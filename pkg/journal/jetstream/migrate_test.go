package jetstream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/record"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

func openTarget(t *testing.T, o Options) *target {
	t.Helper()
	dst, err := OpenTarget(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dst.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := dst.State(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dst.(*target)
}

func items(t *testing.T, n, size int) (all []transfer.Item) {
	t.Helper()
	for i := range n {
		e := journaltest.Event(fmt.Sprint(i))
		e.CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("x", size) + `"`)
		b, err := record.AppendEvent(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, transfer.Item{Event: &transfer.Event{Accepted: time.Unix(1, 0), Encoded: b}, SourceSeq: journal.Seq(i + 1)})
	}
	return all
}

func noteOf(state string) func([]journal.Seq) ([]byte, []byte) {
	return func([]journal.Seq) ([]byte, []byte) { return []byte("row"), []byte(state) }
}

// An answer that did not come is an append that is made again.
func TestTheSameStateIsStoredOnce(t *testing.T) {
	o := options(t, natstest.Start(t).URL(), newClock())
	dst := openTarget(t, o)
	unanswered := &target{Journal: dst.Journal, end: dst.end} // knows nothing of what the other one does
	if err := dst.Append(t.Context(), items(t, 3, 10), noteOf("1")); err != nil {
		t.Fatal(err)
	}
	if err := unanswered.Append(t.Context(), items(t, 3, 10), noteOf("1")); err != nil {
		t.Fatal(err)
	}
	if unanswered.end != dst.end {
		t.Errorf("the stream ends at %d for one and at %d for the other", dst.end, unanswered.end)
	}
	unanswered.end--
	if err := unanswered.Append(t.Context(), items(t, 3, 10), noteOf("2")); !errors.Is(err, errConflict) {
		t.Errorf("an append behind what is not the last message: %v", err)
	}
	if err := dst.poll(t.Context()); err != nil || dst.state.events != 3 {
		t.Errorf("%d events are stored, %v", dst.state.events, err)
	}
}

// A migration that was killed has sent a batch that the server stores later.
func TestBatchesOfAKilledMigrationAreRejected(t *testing.T) {
	o := options(t, natstest.Start(t).URL(), newClock())
	killed := openTarget(t, o)
	if err := killed.Append(t.Context(), items(t, 3, 10), noteOf("1")); err != nil {
		t.Fatal(err)
	}
	next := openTarget(t, o)
	if err := killed.Append(t.Context(), items(t, 3, 10), noteOf("2")); !errors.Is(err, errConflict) {
		t.Errorf("the batch of the killed migration: %v", err)
	}
	if err := next.Append(t.Context(), items(t, 2, 10), noteOf("2")); err != nil {
		t.Error(err)
	}
	if err := next.poll(t.Context()); err != nil || next.state.events != 5 {
		t.Errorf("%d events are stored, %v", next.state.events, err)
	}
}

// What one act takes is bounded by its messages, of which a large event takes many
// where the server takes small ones.
func TestWhatFitsIsStored(t *testing.T) {
	o := options(t, natstest.Start(t, func(o *server.Options) { o.MaxPayload = 20 << 10 }).URL(), newClock())
	dst := openTarget(t, o)
	all := items(t, 500, 8<<10)
	for n := 0; len(all) > 0; n++ {
		fit := dst.Fit(all)
		if err := dst.Append(t.Context(), all[:fit], noteOf(fmt.Sprint(n))); err != nil {
			t.Fatalf("%d of %d: %v", fit, len(all), err)
		}
		all = all[fit:]
	}
	if err := dst.poll(t.Context()); err != nil || dst.state.events != 500 {
		t.Errorf("%d events are stored, %v", dst.state.events, err)
	}
}

func TestATargetWithEventsOfItsOwnIsRefused(t *testing.T) {
	o := options(t, natstest.Start(t).URL(), newClock())
	j := mustOpen(t, o)
	if _, err := j.Reader(t.Context(), "sink", journal.Latest); err != nil { // a relay that was only started
		t.Fatal(err)
	}
	refused := func() error {
		dst, err := OpenTarget(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		_, err = dst.State(t.Context())
		return err
	}
	if err := refused(); err != nil {
		t.Errorf("one that has taken nothing: %v", err)
	}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "postwire journal migrate") {
		t.Errorf("a stream that is to be filled was opened: %v", err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("a")); err != nil {
		t.Fatal(err)
	}
	if err := refused(); err == nil || !strings.Contains(err.Error(), "were not carried into it") {
		t.Errorf("one with an event: %v", err)
	}
}

func TestAStreamInUseIsRefused(t *testing.T) {
	o := options(t, natstest.Start(t).URL(), newClock())
	j := mustOpen(t, o)
	cursor, err := j.Reader(t.Context(), "sink", journal.Latest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := cursor.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		src, err := OpenSource(t.Context(), o)
		if err != nil {
			if !strings.Contains(err.Error(), "delivers to the sink") {
				t.Fatal(err)
			}
			break
		}
		_ = src.Close()
		if time.Since(start) > 10*time.Second {
			t.Fatal("it never was refused")
		}
	}
	if _, err := OpenTarget(t.Context(), o); err == nil || !strings.Contains(err.Error(), "delivers to the sink") {
		t.Errorf("as a target: %v", err)
	}
}

// What is written while it is read is noticed.
func TestASourceThatChangesIsNoticed(t *testing.T) {
	o := options(t, natstest.Start(t).URL(), newClock())
	j := mustOpen(t, o)
	src, err := OpenSource(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := src.Unchanged(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("a")); err != nil {
		t.Fatal(err)
	}
	if err := src.Unchanged(t.Context()); err == nil || !strings.Contains(err.Error(), "written to the stream meanwhile") {
		t.Errorf("Unchanged = %v", err)
	}
}

func TestWhatIsSpilledIsNotLeftBehind(t *testing.T) {
	broker := natstest.Start(t)
	o := options(t, broker.URL(), newClock())
	o.Spill, o.Hold = &Spill{Dir: t.TempDir()}, 50*time.Millisecond
	j := mustOpen(t, o)
	if src, err := OpenSource(t.Context(), o); err == nil || !strings.Contains(err.Error(), "spill") {
		_ = src
		t.Errorf("a spill in use: %v", err)
	}
	broker.Stop(t)
	if _, err := j.Append(t.Context(), journaltest.Event("a")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	broker.Restart(t)
	if _, err := OpenSource(t.Context(), o); err == nil || !strings.Contains(err.Error(), "holds 1 events and requests") {
		t.Errorf("an event in the spill: %v", err)
	}
}

// A key is not left of which only the hash is: that is said.
func TestKeysWithoutTextAreCounted(t *testing.T) {
	o := options(t, natstest.Start(t).URL(), newClock())
	j := mustOpen(t, o)
	receipts, err := j.Append(t.Context(), journaltest.Event("a"), journaltest.Event("b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("twin", event.NewKey("test", "a"), "learned")); err != nil {
		t.Fatal(err)
	}
	if _, err := j.remove(t.Context(), receipts[0].Seq); err != nil { // as for want of room
		t.Fatal(err)
	}
	src, err := OpenSource(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var keys []event.Key
	for k, err := range src.Keys(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k.Key)
	}
	if len(keys) != 2 || keys[0] != event.NewKey("test", "b") || keys[1] != "learned" {
		t.Errorf("keys are %q", keys)
	}
	if missing := src.Missing(); len(missing) != 1 || !strings.HasPrefix(missing[0], "1 identity keys") {
		t.Errorf("missing: %q", missing)
	}
}
