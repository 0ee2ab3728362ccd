package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trace1 = "4bf92f3577b34da6a3ce929d0e0e4736"
	named  = "00-" + trace1 + "-00f067aa0ba902b7-01"
)

func recorded(t *testing.T) (*Traces, *tracetest.SpanRecorder) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sampler(0)))
	return &Traces{provider.Tracer("test"), provider}, spans
}

func request(t *testing.T) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/hooks", nil)
	r.Header.Set("Traceparent", named)
	r.TLS = &tls.ConnectionState{}
	return r
}

// A sender that has proven who it is decides whether its trace is sent; a
// stranger does not, and its trace is only linked to.
func TestWhoDecidesOverATrace(t *testing.T) {
	traces, spans := recorded(t)
	_, proven := traces.Accept(t.Context(), request(t), "a", "/hooks", true, time.Now())
	proven.End("accepted", http.StatusAccepted)
	_, stranger := traces.Accept(t.Context(), request(t), "a", "/hooks", false, time.Now())
	stranger.End("accepted", http.StatusAccepted)
	if proven.ID() != trace1 || stranger.ID() == trace1 || stranger.ID() == "" {
		t.Errorf("the traces are %s and %s", proven.ID(), stranger.ID())
	}
	if ended := spans.Ended(); len(ended) != 1 || ended[0].SpanContext().TraceID().String() != trace1 {
		t.Errorf("%d spans were sent", len(ended))
	}
}

// An event gets the trace in which it was stored, and is otherwise what it was.
func TestEventsAreMarked(t *testing.T) {
	traces, spans := recorded(t)
	ctx, span := traces.Accept(t.Context(), request(t), "a", "/hooks", true, time.Now())
	fresh, own := journaltest.Event("1"), journaltest.Event("2")
	const elsewhere = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01"
	own.CloudEvent.SetExtension(event.TraceParent, elsewhere)
	_, marked, end := traces.Append(ctx, []event.Event{fresh, own})
	end(nil)
	span.End("accepted", http.StatusAccepted)
	if _, has := fresh.Attribute(event.TraceParent); has {
		t.Error("the event that was given is changed")
	}
	if got, _ := marked[1].Attribute(event.TraceParent); got != elsewhere {
		t.Errorf("an event's own trace is now %s", got)
	}
	appended := spans.Ended()[0]
	if links := appended.Links(); len(links) != 1 || links[0].SpanContext.TraceID().String() != elsewhere[3:35] {
		t.Errorf("the append is linked to %v", links)
	}
	if got, _ := marked[0].Attribute(event.TraceParent); got != "00-"+trace1+"-"+appended.SpanContext().SpanID().String()+"-01" {
		t.Errorf("the event has %s", got)
	}
	if marked[0].CloudEvent.ID() != fresh.CloudEvent.ID() || marked[0].Keys[0] != fresh.Keys[0] || string(marked[0].CloudEvent.Data()) != string(fresh.CloudEvent.Data()) {
		t.Errorf("the event is another one: %v", marked[0])
	}
	if id := TraceID(marked[0]); id != trace1 {
		t.Errorf("the event's trace is %s", id)
	}
	for _, odd := range []string{"", "00", "ff-" + trace1 + "-00f067aa0ba902b7-01", "00-" + trace1 + "-0000000000000000-01", "00-x-y-01", "00-" + trace1 + "-00f067aa0ba902b7-zz"} {
		e := journaltest.Event("odd")
		e.CloudEvent.SetExtension(event.TraceParent, odd)
		if id := TraceID(e); id != "" {
			t.Errorf("%q is taken for the trace %s", odd, id)
		}
	}
	if end := traces.Deliver(t.Context(), fresh, Attempt{}); end != nil {
		t.Error("an event without a trace gets a span")
	}
}

// An attempt is part of its event's trace. One of a replay is a trace of its own,
// linked to that one, and is sent where that one is, whatever the ratio.
func TestAttempts(t *testing.T) {
	traces, spans := recorded(t)
	e, unsent := journaltest.Event("1"), journaltest.Event("2")
	e.CloudEvent.SetExtension(event.TraceParent, named)
	unsent.CloudEvent.SetExtension(event.TraceParent, named[:len(named)-1]+"0")
	traces.Deliver(t.Context(), e, Attempt{Sink: "n", Kind: "nats", Number: 2, Batch: 3})("events.a", "events.{platform}", nil)
	traces.Deliver(t.Context(), e, Attempt{Sink: "n", Kind: "nats", Number: 1, Batch: 1, Replay: "again"})("events.b", "", errors.New("no"))
	for _, replay := range []string{"", "again"} {
		if traces.Deliver(t.Context(), unsent, Attempt{Replay: replay}) != nil {
			t.Errorf("replay %q: what is not sent gets a span", replay)
		}
	}
	ended := spans.Ended()
	if len(ended) != 2 {
		t.Fatalf("there are %d spans", len(ended))
	}
	live, replayed := ended[0], ended[1]
	if live.SpanContext().TraceID().String() != trace1 || live.Parent().SpanID().String() != named[36:52] || len(live.Links()) != 0 {
		t.Errorf("an attempt is part of %v, below %v", live.SpanContext().TraceID(), live.Parent().SpanID())
	}
	if replayed.SpanContext().TraceID().String() == trace1 || replayed.Parent().IsValid() || len(replayed.Links()) != 1 ||
		replayed.Links()[0].SpanContext.TraceID().String() != trace1 || replayed.Links()[0].SpanContext.SpanID().String() != named[36:52] {
		t.Errorf("one of a replay is part of %v, below %v, linked to %v", replayed.SpanContext().TraceID(), replayed.Parent(), replayed.Links())
	}
	common := map[attribute.Key]string{
		"messaging.system": "nats", "messaging.operation.type": "send", "messaging.operation.name": "send", "messaging.message.id": "1", "postwire.sink": "n",
	}
	for span, own := range map[sdktrace.ReadOnlySpan]map[attribute.Key]string{
		live: {
			"messaging.destination.name": "events.a", "messaging.destination.template": "events.{platform}", "postwire.attempt": "2", "postwire.batch": "3",
		},
		replayed: {"messaging.destination.name": "events.b", "postwire.attempt": "1", "postwire.batch": "1", "postwire.replay": "again", "error.type": "delivery"},
	} {
		maps.Copy(own, common)
		got := map[attribute.Key]string{}
		for _, a := range span.Attributes() {
			got[a.Key] = a.Value.String()
		}
		if diff := cmp.Diff(own, got); diff != "" || span.SpanKind() != trace.SpanKindClient {
			t.Errorf("a span of kind %v (- want, + got):\n%s", span.SpanKind(), diff)
		}
	}
	if live.Status().Code == codes.Error || replayed.Status().Code != codes.Error {
		t.Errorf("they ended with %v and %v", live.Status(), replayed.Status())
	}
}

// Where traces are off, they cost the hot path nothing.
func TestOffCostsNothing(t *testing.T) {
	var traces *Traces
	r, events := request(t), []event.Event{journaltest.Event("1")}
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := traces.Accept(ctx, r, "a", "/hooks", true, time.Time{})
		_, _, end := traces.Append(ctx, events)
		end(nil)
		traces.Deliver(ctx, events[0], Attempt{})
		if span.ID() != "" {
			span.End("accepted", 202)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := traces.Close(ctx); err != nil {
		t.Error(err)
	}
}
