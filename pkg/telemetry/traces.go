// Package telemetry sends traces by the OpenTelemetry protocol. A trace follows an event
// from its request, through the journal in the traceparent extension, to each delivery
// attempt.
//
// Spans follow OpenTelemetry's semantic conventions for HTTP servers and messaging. Spans
// contain names and IDs, never data.
package telemetry

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
)

// Attributes of Postwire.
const (
	attrSource  = attribute.Key("postwire.source")
	attrOutcome = attribute.Key("postwire.outcome")
	attrSink    = attribute.Key("postwire.sink")
	attrAttempt = attribute.Key("postwire.attempt")
	attrBatch   = attribute.Key("postwire.batch")
	attrReplay  = attribute.Key("postwire.replay")
)

// Traces makes and sends spans. A nil Traces makes none. The methods may be called
// concurrently and never wait for the collector.
type Traces struct {
	tracer   trace.Tracer
	provider *sdktrace.TracerProvider
}

// Process identifies the process in spans.
type Process struct{ Name, Version string }

// Open returns Traces, or nil if the configuration disables tracing. The collector may be
// unavailable; Traces then discards spans.
func Open(ctx context.Context, c config.Traces, p Process, log *zap.Logger) (*Traces, error) {
	if !c.Enabled() {
		return nil, nil //nolint:nilnil // nil makes no spans
	}
	exporter, err := export(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("telemetry.traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("postwire"), semconv.ServiceVersion(p.Version), semconv.ServiceInstanceID(p.Name)),
		resource.WithFromEnv()) // OTEL_RESOURCE_ATTRIBUTES
	if err != nil {
		return nil, fmt.Errorf("telemetry.traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces cannot be sent; they are dropped", zap.Error(err)) }))
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter), sdktrace.WithResource(about),
		sdktrace.WithSampler(sampler(c.SampleRatio)),
	)
	return &Traces{provider.Tracer("github.com/postwire/postwire"), provider}, nil
}

// sampler samples the trace of a request by the ratio, and always the trace of a replay,
// which begins only for a sampled event. Other spans follow their parent.
func sampler(ratio float64) sdktrace.Sampler {
	return sdktrace.ParentBased(roots{sdktrace.TraceIDRatioBased(ratio)})
}

type roots struct{ sdktrace.Sampler }

func (r roots) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if p.Kind == trace.SpanKindClient {
		return sdktrace.AlwaysSample().ShouldSample(p)
	}
	return r.Sampler.ShouldSample(p)
}

func export(ctx context.Context, c config.Traces) (*otlptrace.Exporter, error) {
	headers := map[string]string{}
	for name, value := range c.Headers {
		headers[name] = value.Reveal()
	}
	trust, err := config.TLS{Enabled: c.CAFile != "", CAFile: c.CAFile}.Config()
	if err != nil {
		return nil, err
	}
	if c.Protocol == "grpc" {
		opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(c.Endpoint.Reveal()), otlptracegrpc.WithHeaders(headers)}
		if trust != nil {
			opts = append(opts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(trust)))
		}
		return otlptracegrpc.New(ctx, opts...)
	}
	endpoint, err := url.Parse(c.Endpoint.Reveal())
	if err != nil {
		return nil, err
	}
	if endpoint.Path == "" || endpoint.Path == "/" {
		endpoint.Path = "/v1/traces"
	}
	opts := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(endpoint.String()), otlptracehttp.WithHeaders(headers)}
	if trust != nil {
		opts = append(opts, otlptracehttp.WithTLSClientConfig(trust))
	}
	return otlptracehttp.New(ctx, opts...)
}

// Close sends the remaining spans, until ctx is done.
func (t *Traces) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("sending the last traces: %w", err)
	}
	return nil
}

// w3c reads and writes traceparent. Postwire does not pass on tracestate and baggage of a
// sender.
var w3c propagation.TraceContext

// Accepting is the span of a verified request.
type Accepting struct{ span trace.Span }

// Accept begins the span of a request that arrived at start. The span continues the trace
// that the request names. Without authentication the span begins a new trace with a link to
// that trace, so that a stranger does not decide about sampling.
func (t *Traces) Accept(ctx context.Context, r *http.Request, source, route string, proven bool, came time.Time) (context.Context, Accepting) {
	if t == nil {
		return ctx, Accepting{}
	}
	parent := w3c.Extract(ctx, propagation.MapCarrier{event.TraceParent: r.Header.Get(event.TraceParent)})
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	var start []trace.SpanStartOption
	if named := trace.SpanContextFromContext(parent); named.IsValid() && !proven {
		start = append(start, trace.WithNewRoot(), trace.WithLinks(trace.Link{SpanContext: named}))
	}
	ctx, span := t.tracer.Start(parent, http.MethodPost+" "+route, append(start, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(came),
		trace.WithAttributes(semconv.HTTPRequestMethodPost, semconv.HTTPRoute(route), semconv.URLPath(route), semconv.URLScheme(scheme), attrSource.String(source)))...)
	return ctx, Accepting{span}
}

// ID returns the trace ID; empty without a span.
func (a Accepting) ID() string {
	if a.span == nil {
		return ""
	}
	return a.span.SpanContext().TraceID().String()
}

// End ends the span with the outcome of the request.
func (a Accepting) End(outcome string, status int) {
	if a.span == nil {
		return
	}
	a.span.SetAttributes(semconv.HTTPResponseStatusCode(status), attrOutcome.String(outcome))
	if status >= http.StatusInternalServerError {
		a.span.SetStatus(codes.Error, outcome)
	}
	a.span.End()
}

// Append begins the span of an append, and returns the events with a traceparent, so that
// the trace continues after the journal. An event keeps its own traceparent, the trace in
// which it was made; the span has a link to that trace.
func (t *Traces) Append(ctx context.Context, events []event.Event) (context.Context, []event.Event, func(error)) {
	if t == nil || len(events) == 0 {
		return ctx, events, func(error) {}
	}
	opts := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindProducer),
		trace.WithAttributes(semconv.MessagingSystemKey.String("postwire"), semconv.MessagingDestinationName("journal"),
			semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("append")),
	}
	if len(events) == 1 {
		opts = append(opts, trace.WithAttributes(semconv.MessagingMessageID(events[0].CloudEvent.ID())))
	} else {
		opts = append(opts, trace.WithAttributes(semconv.MessagingBatchMessageCount(len(events))))
	}
	for _, e := range events {
		if made := contextOf(e); made.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: made}))
		}
	}
	ctx, span := t.tracer.Start(ctx, "append journal", opts...)
	carrier := propagation.MapCarrier{}
	w3c.Inject(ctx, carrier)
	marked := make([]event.Event, len(events))
	for i, e := range events {
		marked[i] = e
		if _, has := e.Attribute(event.TraceParent); !has {
			marked[i].CloudEvent = withTraceParent(e.CloudEvent, carrier[event.TraceParent])
		}
	}
	return ctx, marked, func(err error) { end(span, err, "storage") }
}

// withTraceParent returns a copy of the event with a traceparent.
func withTraceParent(e cloudevents.Event, traceParent string) cloudevents.Event {
	e.Context = e.Context.Clone()
	e.SetExtension(event.TraceParent, traceParent)
	return e
}

// contextOf returns the trace of an event; invalid without a trace.
func contextOf(e event.Event) trace.SpanContext {
	text, _ := e.Attribute(event.TraceParent)
	parts := strings.Split(text, "-")
	if len(parts) < 4 || len(parts[0]) != 2 || len(parts[3]) != 2 || parts[0] == "ff" {
		return trace.SpanContext{}
	}
	id, err1 := trace.TraceIDFromHex(parts[1])
	span, err2 := trace.SpanIDFromHex(parts[2])
	flags, err3 := hex.DecodeString(parts[3])
	if err := errors.Join(err1, err2, err3); err != nil {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true})
}

// TraceID returns the ID of the trace of an event; empty without a trace.
func TraceID(e event.Event) string {
	if made := contextOf(e); made.IsValid() {
		return made.TraceID().String()
	}
	return ""
}

// Attempt is one delivery attempt.
type Attempt struct {
	Sink, Kind string // name and type of the sink
	Number     int    // number of the attempt, from 1
	Batch      int    // events in the batch
	Replay     string // ID of the replay; empty in live traffic
}

// Delivered ends the span of an attempt. Its arguments are the destination, the template of
// the destination, and the error.
type Delivered func(name, template string, err error)

// Deliver begins the span of an attempt in the trace of the event, and returns the function
// that ends the span, or nil for a trace that is not sampled. The spans of a replay,
// perhaps days later, begin a new trace with a link to the trace of the event.
//
// A span describes one message, also in a batch. The size of the batch is an attribute of
// Postwire, because messaging.batch.message_count is for spans of several messages.
func (t *Traces) Deliver(ctx context.Context, e event.Event, a Attempt) Delivered {
	if t == nil {
		return nil
	}
	made := contextOf(e)
	if !made.IsSampled() {
		return nil
	}
	opts := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(semconv.MessagingSystemKey.String(a.Kind), semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send"),
			semconv.MessagingMessageID(e.CloudEvent.ID()), attrSink.String(a.Sink), attrAttempt.Int(a.Number), attrBatch.Int(a.Batch)),
	}
	if a.Replay == "" {
		ctx = trace.ContextWithRemoteSpanContext(ctx, made)
	} else {
		opts = append(opts, trace.WithNewRoot(), trace.WithLinks(trace.Link{SpanContext: made}), trace.WithAttributes(attrReplay.String(a.Replay)))
	}
	_, span := t.tracer.Start(ctx, "send "+a.Sink, opts...)
	return func(name, template string, err error) {
		if name != "" {
			span.SetAttributes(semconv.MessagingDestinationName(name))
		}
		if template != "" {
			span.SetAttributes(semconv.MessagingDestinationTemplate(template))
		}
		end(span, err, "delivery")
	}
}

// end ends a span. The log has the text of the error.
func end(span trace.Span, err error, kind string) {
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	}
	span.End()
}
