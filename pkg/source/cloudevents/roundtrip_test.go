package cloudevents

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/sinks"
	httpsink "github.com/postwire/postwire/sinks/http"
	"github.com/postwire/postwire/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is a source behind HTTP, without the journal.
type receiver struct {
	t      *testing.T
	source source.Source

	mu   sync.Mutex
	read []event.Event
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	body, err := io.ReadAll(hr.Body)
	if err != nil {
		r.t.Error(err)
	}
	events, err := r.source.Normalize(&source.Request{Header: hr.Header, Body: body, Received: received})
	if err != nil {
		r.t.Errorf("a request of the sink is not understood: %v", err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = append(r.read, events...)
}

// stored returns events as they come out of a journal.
func stored(t *testing.T, events []event.Event) []event.Event {
	t.Helper()
	j, err := local.Open(local.Options{Dir: "data", FS: vfs.NewMem(), Window: time.Hour, Retention: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := j.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	records, err := j.Read(t.Context(), 1, len(events)+1)
	if err != nil {
		t.Fatal(err)
	}
	var all []event.Event
	for _, r := range records {
		all = append(all, r.Event)
	}
	return all
}

// TestFromPostwireToPostwire: what one Postwire takes goes through its journal
// and its sink http to another one, which reads it as the first one did.
func TestFromPostwireToPostwire(t *testing.T) {
	src := newSource(t, Config{Auth: auth.Auth{None: true}}, source.Rate{})
	var events []event.Event
	for _, tt := range cases(t) {
		h, body := parse(tt.text)
		read, err := src.Normalize(&source.Request{Header: h, Body: body, Received: received})
		if err != nil {
			continue
		}
		for _, e := range read { // each is to be one of its own
			e.Keys = []event.Key{event.Key(tt.name + e.CloudEvent.ID())}
			events = append(events, e)
		}
	}
	events = append(events, sinktest.Events(12, 3)[10:]...)
	for i := range events {
		if i >= len(events)-2 { // a tab is in it, which CloudEvents forbids
			events[i].CloudEvent.SetExtension(event.CorrelationID, "a,b;c=d%20e")
		}
		events[i].CloudEvent.SetExtension(event.PartitionKey, "all in one line")
	}
	kept := stored(t, events)
	if len(kept) < 40 || len(kept) > len(events) {
		t.Fatalf("%d events were stored of %d", len(kept), len(events))
	}
	for _, mode := range []string{sinks.Binary, sinks.Structured, "batched"} {
		t.Run(mode, func(t *testing.T) {
			r := &receiver{t: t, source: src}
			server := httptest.NewServer(r)
			defer server.Close()
			p := sinktest.Configure(t, httpsink.Kind(), "url: "+server.URL+"\ncontent_mode: "+mode)
			sink, err := p.Open(t.Context(), sinks.Env{Name: "test"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := sink.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := sink.Deliver(t.Context(), kept); err != nil {
				t.Fatal(err)
			}
			if len(r.read) != len(kept) {
				t.Fatalf("%d events arrived of %d", len(r.read), len(kept))
			}
			for i, e := range kept {
				got := r.read[i].CloudEvent
				got.SetExtension(event.RecordedTime, e.CloudEvent.Extensions()[event.RecordedTime]) // is each one's own
				asJSON := event.IsJSON(got.DataContentType()) && json.Valid(event.TrimBOM(e.CloudEvent.Data()))
				if diff := sinktest.Diff(e, sinktest.FromSDK(&got), asJSON); diff != "" {
					t.Errorf("%s: %s", e.CloudEvent.ID(), diff)
				}
			}
		})
	}
}
