package console

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/relay"
)

// TestOnJetStream: where the journal is in a cluster the pages are the same, and
// a pause holds for each relay that shares it.
func TestOnJetStream(t *testing.T) {
	broker := natstest.Start(t)
	on := func(name string) []string {
		return []string{
			"journal: {", fmt.Sprintf("journal: {engine: jetstream, jetstream: {url: %q, replicas: 1}, spill: {dir: %q}, ", broker.URL(), filepath.Join(t.TempDir(), "spill")),
			"name: relay-1", "name: " + name,
		}
	}
	w := start(t, on("relay-1")...)
	b := open(t, w.admin)
	b.signIn(operatorToken)
	b.shows("jetstream")
	w.uploads(3)
	eventually(t, "they arrive", func() bool { return w.taken.Load() == 3 && w.shaky.Load() == 3 })
	b.page("events", "Events")
	b.click(`form button[type="submit"]`)
	b.until(`!document.querySelector("#results").ariaBusy && document.querySelectorAll("#results tbody tr").length === 3`)
	b.until(`document.querySelector("#results tbody").innerText.match(/delivered/g).length === 6`)
	b.click("#results tbody a")
	b.until(`document.querySelectorAll("main tbody tr").length === 2`)
	b.shots("event")
	b.click(`button[data-sink="steady"]`)
	b.confirm()
	eventually(t, "it arrives again", func() bool { return w.taken.Load() == 4 })

	b.page("sinks", "Sinks")
	b.click(`[data-key="shaky"] [data-act="pause"]`)
	b.confirm()
	b.shows("shaky is paused.")
	other := start(t, on("relay-2")...) // it has never been told
	s, err := other.client.Status(t.Context())
	if err != nil || s.Sinks[1].Sink != "shaky" || s.Sinks[1].State != "paused" {
		t.Fatalf("the other relay: %+v, %v", s, err)
	}
	w.uploads(3)
	eventually(t, "the sink that is not paused has them", func() bool { return w.taken.Load()+other.taken.Load() == 7 })
	if n := w.shaky.Load() + other.shaky.Load(); n != 3 {
		t.Errorf("the paused sink was given %d events", n)
	}
	b.until(`/Lag\s+3/.test(document.querySelector('[data-key="shaky"] .facts').innerText)`)
	// What one is told, the other one does.
	if _, err := other.client.SteerSink(t.Context(), "shaky", "resume"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they arrive", func() bool { return w.shaky.Load()+other.shaky.Load() == 6 })
	b.until(`!document.querySelector('[data-key="shaky"]').innerText.includes("paused")`)
	b.page("overview", "Overview")
	b.shows("Nothing. Every sink accepts events")
	b.shots("overview")

	// What the one has delivered, the other one knows when.
	w.stop()
	found, err := other.client.Search(t.Context(), nil)
	if err != nil || len(found.Events) != 6 {
		t.Fatalf("the other relay finds %d events, %v", len(found.Events), err)
	}
	for _, f := range found.Events[5].Deliveries {
		if f.State != relay.Delivered || f.At != nil || f.After == nil || f.Before == nil || f.Before.Sub(*f.After) > 20*time.Second {
			t.Errorf("the fate of the first event at %s: %+v", f.Sink, f)
		}
	}
}
