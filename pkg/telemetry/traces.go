// Package telemetry sends traces by OpenTelemetry's protocol. A trace follows an
// event: from the request that brought it, through the journal, in which the
// traceparent extension carries it, to each attempt to hand it to a broker.
//
// Spans follow OpenTelemetry's semantic conventions for HTTP servers and for
// messaging. They hold names and ids, never data.
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

// Attributes of our own.
const (
	attrSource  = attribute.Key("postwire.source")
	attrOutcome = attribute.Key("postwire.outcome")
	attrSink    = attribute.Key("postwire.sink")
	attrAttempt = attribute.Key("postwire.attempt")
	attrBatch   = attribute.Key("postwire.batch")
	attrReplay  = attribute.Key("postwire.replay")
)

// Traces makes spans and sends them. A nil one makes none. Its methods may be
// called concurrently; none of them waits for the collector.
type Traces struct {
	tracer   trace.Tracer
	provider *sdktrace.TracerProvider
}

// Process says which process sends.
type Process struct{ Name, Version string }

// Open makes what sends traces; nil where the configuration has none. The
// collector need not be there: what it does not take is dropped.
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
		resource.WithFromEnv()) // OTEL_RESOURCE_ATTRIBUTES, as operators set it for all they run
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

// sampler decides for a trace that begins here: that of a request by the ratio, that
// of a replay always, for it is begun only where that of the event is sent. All
// others are decided.
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

// Close sends what is not sent yet, until ctx is done.
func (t *Traces) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("sending the last traces: %w", err)
	}
	return nil
}

// w3c reads and writes the traceparent of a header or an attribute. What a
// sender says in tracestate and baggage is none of ours to pass on.
var w3c propagation.TraceContext

// Accepting is the span of a request that has been verified.
type Accepting struct{ span trace.Span }

// Accept begins the span of a request that came at a time. It goes on a trace
// that the request names. Of a sender that has proven nothing, a trace of its
// own is begun and linked to that one: a stranger must not decide what is sent.
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

// ID is that of the trace; empty where there is none.
func (a Accepting) ID() string {
	if a.span == nil {
		return ""
	}
	return a.span.SpanContext().TraceID().String()
}

// End ends the span with what became of the request.
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

// Append begins the span of an append, and returns the events as they are to be
// stored: with a traceparent, so that the trace goes on behind the journal. An
// event that has one keeps it, for that is the trace in which it was made; the
// span is linked to it.
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
			marked[i].CloudEvent = mark(e.CloudEvent, carrier[event.TraceParent])
		}
	}
	return ctx, marked, func(err error) { end(span, err, "storage") }
}

// mark returns the event with a traceparent; the one that is given stays as it is.
func mark(e cloudevents.Event, traceParent string) cloudevents.Event {
	e.Context = e.Context.Clone()
	e.SetExtension(event.TraceParent, traceParent)
	return e
}

// contextOf is the trace that an event is part of; it is not valid where there is
// none.
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

// TraceID is that of the trace that an event is part of; empty where there is
// none.
func TraceID(e event.Event) string {
	if made := contextOf(e); made.IsValid() {
		return made.TraceID().String()
	}
	return ""
}

// Attempt is one attempt to hand an event to a broker.
type Attempt struct {
	Sink, Kind string // of the broker
	Number     int    // of the attempt, from 1
	Batch      int    // events that are handed over together
	Replay     string // that it is part of; empty in live traffic
}

// Delivered ends the span of an attempt. It is given where the event went, by name and
// by the template that made the name, as far as that is known.
type Delivered func(name, template string, err error)

// Deliver begins the span of an attempt, in the trace of its event, and returns
// what ends it; nil where the trace is not sent. A replay may come days later,
// when that trace is closed: its spans are linked to it, and begin their own.
//
// A span is of one message, even where the broker is handed many at once. So the
// count is ours: by convention messaging.batch.message_count is for spans of many.
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

// end ends a span. What an error says stands in the log.
func end(span trace.Span, err error, kind string) {
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	}
	span.End()
}
