package test

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/segmentio/kafka-go"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	v1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/source/auth"
)

// otlp is a collector of traces, over HTTP and over gRPC.
type otlp struct {
	collector.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans []*v1.Span
	shown []string // what it was shown as Authorization
}

func (o *otlp) keep(req *collector.ExportTraceServiceRequest, authorization string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shown = append(o.shown, authorization)
	for _, r := range req.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			o.spans = append(o.spans, s.GetSpans()...)
		}
	}
}

// Export implements the service over gRPC.
func (o *otlp) Export(ctx context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	o.keep(req, strings.Join(md.Get("authorization"), ""))
	return &collector.ExportTraceServiceResponse{}, nil
}

// ServeHTTP implements the service over HTTP.
func (o *otlp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	var req collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(b, &req) != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, "not understood", http.StatusBadRequest)
		return
	}
	o.keep(&req, r.Header.Get("Authorization"))
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// of returns the spans of a trace by name, which must be one each.
func (o *otlp) of(t *testing.T, trace string) map[string]*v1.Span {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	all := map[string]*v1.Span{}
	for _, s := range o.spans {
		if hex.EncodeToString(s.GetTraceId()) != trace {
			continue
		}
		if all[s.GetName()] != nil {
			t.Errorf("there are two spans %s", s.GetName())
		}
		all[s.GetName()] = s
	}
	return all
}

func (o *otlp) overHTTP(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(o)
	t.Cleanup(s.Close)
	return s.URL
}

func (o *otlp) overGRPC(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	collector.RegisterTraceServiceServer(s, o)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// postTraced posts a webhook that is part of a trace.
func (e endpoint) postTraced(t *testing.T, body []byte, traceParent string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+e.addr+"/webhooks/upload-post", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("traceparent", traceParent)
	if err := auth.UploadPost.Sign(req.Header, secret, "", time.Now(), body); err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestTraces: one trace spans the sender's request, the append, and both
// brokers, whose consumers can go on with it.
func TestTraces(t *testing.T) {
	for protocol, serve := range map[string]func(*otlp, *testing.T) string{"http": (*otlp).overHTTP, "grpc": (*otlp).overGRPC} {
		t.Run(protocol, func(t *testing.T) {
			var o otlp
			w := newWorld(t)
			r := start(t, w.config+fmt.Sprintf("telemetry: {traces: {endpoint: %q, protocol: %s, sample_ratio: 0, headers: {Authorization: Bearer of-the-collector}}}\n", serve(&o, t), protocol))
			const trace, sender, again = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "5bf92f3577b34da6a3ce929d0e0e4736"
			if code := r.postTraced(t, upload(0, 1), "00-"+trace+"-"+sender+"-01"); code != http.StatusAccepted {
				t.Fatalf("answered %d", code)
			}
			if code := r.postTraced(t, upload(0, 1), "00-"+again+"-"+sender+"-01"); code != http.StatusOK {
				t.Errorf("a duplicate is answered %d", code)
			}
			if _, err := r.post(upload(0, 2)); err != nil { // no trace: the ratio is 0
				t.Fatal(err)
			}
			if code := r.postSigned(t, "whsec_of_somebody_else", upload(0, 3)); code != http.StatusUnauthorized {
				t.Errorf("another secret is answered %d", code)
			}
			w.settled(t, r.endpoint)
			// Of both events.
			r.must(t, nil, "replay", "--sink", "nats", "--from", "1h", "--subject", "events.again.x")
			if err := r.stop(t); err != nil { // it sends what it has
				t.Errorf("stopping: %v", err)
			}

			spans := o.of(t, trace)
			accept, appended, toNATS, toKafka := spans["POST /webhooks/upload-post"], spans["append journal"], spans["send nats"], spans["send kafka"]
			if len(spans) != 4 || accept == nil || appended == nil || toNATS == nil || toKafka == nil {
				t.Fatalf("the trace has %v", spans)
			}
			if hex.EncodeToString(accept.GetParentSpanId()) != sender {
				t.Errorf("the request's span is below %x", accept.GetParentSpanId())
			}
			for _, below := range [][2]*v1.Span{{accept, appended}, {appended, toNATS}, {appended, toKafka}} {
				if string(below[0].GetSpanId()) != string(below[1].GetParentSpanId()) {
					t.Errorf("%s is not below %s", below[1].GetName(), below[0].GetName())
				}
			}
			for span, want := range map[*v1.Span]map[string]string{
				accept:   {"http.route": "/webhooks/upload-post", "postwire.outcome": "accepted", "postwire.source": "upload-post", "http.response.status_code": "202"},
				appended: {"messaging.system": "postwire", "messaging.operation.type": "send", "messaging.operation.name": "append", "messaging.destination.name": "journal", "messaging.message.id": id(0, 1)},
				toNATS: {
					"messaging.system": "nats", "postwire.sink": "nats", "messaging.message.id": id(0, 1), "postwire.attempt": "1",
					"messaging.destination.name": "events.instagram.success", "messaging.destination.template": "events.{platform}.{outcome}",
				},
				toKafka: {
					"messaging.system": "kafka", "postwire.sink": "kafka", "messaging.operation.type": "send", "messaging.operation.name": "send",
					"messaging.destination.name": w.topic, "messaging.destination.template": "", "messaging.batch.message_count": "",
				},
			} {
				for key, value := range want {
					if got := attributeOf(span, key); got != value {
						t.Errorf("%s: %s is %q, want %s", span.GetName(), key, got, value)
					}
				}
			}
			if spans := o.of(t, again); len(spans) != 2 || attributeOf(spans["POST /webhooks/upload-post"], "postwire.outcome") != "duplicate" {
				t.Errorf("the duplicate's trace has %v", spans)
			}
			if len(o.spans) != 7 {
				t.Errorf("%d spans were sent, want 7", len(o.spans))
			}
			i := slices.IndexFunc(o.spans, func(s *v1.Span) bool { return attributeOf(s, "postwire.replay") != "" })
			if i < 0 {
				t.Fatalf("the replay has no span: %v", o.spans)
			}
			replayed := o.spans[i]
			if links := replayed.GetLinks(); len(links) != 1 || hex.EncodeToString(links[0].GetTraceId()) != trace || string(links[0].GetSpanId()) != string(appended.GetSpanId()) ||
				hex.EncodeToString(replayed.GetTraceId()) == trace || len(replayed.GetParentSpanId()) != 0 {
				t.Errorf("the replay's span is %v", replayed)
			}
			if to, of := attributeOf(replayed, "messaging.destination.name"), attributeOf(replayed, "messaging.message.id"); to != "events.again.x" || of != id(0, 1) {
				t.Errorf("the replay's span is of %s to %s", of, to)
			}
			if slices.ContainsFunc(o.shown, func(s string) bool { return s != "Bearer of-the-collector" }) {
				t.Errorf("the collector was shown %q", o.shown)
			}
			for _, s := range o.spans {
				for _, personal := range []string{email, title, caption} {
					if strings.Contains(s.String(), personal) {
						t.Errorf("a span holds %q", personal)
					}
				}
			}

			want := "00-" + trace + "-" + hex.EncodeToString(appended.GetSpanId()) + "-01"
			for broker, got := range w.traceParents(t) {
				if got[id(0, 1)] != want || !strings.HasSuffix(got[id(0, 2)], "-00") {
					t.Errorf("%s has %v, want %s", broker, got, want)
				}
			}
		})
	}
}

// Nothing of it is there where traces are off.
func TestNoTraces(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	if code := r.postTraced(t, upload(0, 1), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"); code != http.StatusAccepted {
		t.Fatalf("answered %d", code)
	}
	w.settled(t, r.endpoint)
	for broker, got := range w.traceParents(t) {
		if text, ok := got[id(0, 1)]; !ok || text != "" {
			t.Errorf("%s has %v", broker, got)
		}
	}
}

// A collector that is away costs nothing but the traces.
func TestCollectorIsAway(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config+fmt.Sprintf("telemetry: {traces: {endpoint: %q}}\n", "http://"+natstest.FreeAddr(t)))
	l := startLoad(t, r.endpoint, 4, 0)
	l.more(t, 500)
	l.stop()
	w.settled(t, r.endpoint)
	check(t, "Kafka", l.acked, w.onKafka(t), true)
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
}

func attributeOf(s *v1.Span, key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			if v := a.GetValue(); v.GetStringValue() == "" {
				return fmt.Sprint(v.GetIntValue())
			}
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// traceParents is what consumers of each broker are given, by the event's id.
func (w *world) traceParents(t *testing.T) map[string]map[string]string {
	t.Helper()
	onNATS, onKafka := map[string]string{}, map[string]string{}
	w.nats.Each(t, w.nats.Connect(t), "EVENTS", func(m *nats.Msg, _ time.Time) {
		onNATS[m.Header.Get("ce-id")] = m.Header.Get("ce-traceparent")
	})
	w.kafka.Each(t, w.topic, func(m kafka.Message) {
		of := map[string]string{}
		for _, h := range m.Headers {
			of[h.Key] = string(h.Value)
		}
		onKafka[of["ce_id"]] = of["ce_traceparent"]
	})
	return map[string]map[string]string{"NATS": onNATS, "Kafka": onKafka}
}
