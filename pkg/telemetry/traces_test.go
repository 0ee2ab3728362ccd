package telemetry

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
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
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
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
