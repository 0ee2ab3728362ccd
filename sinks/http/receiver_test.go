package http

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request is what a receiver got.
type request struct {
	at     string // scheme and host
	path   string
	proto  string
	header nethttp.Header
	body   []byte
}

// ids are those of the events in it, in order.
func (r request) ids(t *testing.T) []string {
	t.Helper()
	events, err := readSDK(r)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.Attributes["id"]
	}
	return ids
}

// receiver is a receiver inside the test.
type receiver struct {
	*httptest.Server
	// answer decides on a request before it is kept; nil takes all. What it
	// returns as status 0 has been answered.
	answer func(w nethttp.ResponseWriter, r request) int

	mu    sync.Mutex
	asked []request // all that came whole
	taken []request // what was answered with a 2xx
}

// maxSize is the largest body that a receiver takes.
const maxSize = 1 << 20

func start(t *testing.T, answer func(w nethttp.ResponseWriter, r request) int) *receiver {
	t.Helper()
	r := &receiver{answer: answer}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// startTLS starts one that speaks HTTP/2, and returns the file of whom to trust.
func startTLS(t *testing.T, change ...func(*httptest.Server)) (r *receiver, caFile string) {
	t.Helper()
	r = &receiver{}
	r.Server = httptest.NewUnstartedServer(r)
	r.EnableHTTP2 = true
	r.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	for _, c := range change {
		c(r.Server)
	}
	r.StartTLS()
	t.Cleanup(r.Close)
	caFile = filepath.Join(t.TempDir(), "ca.crt")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	if err := os.WriteFile(caFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return r, caFile
}

func (r *receiver) ServeHTTP(w nethttp.ResponseWriter, h *nethttp.Request) {
	body, err := io.ReadAll(nethttp.MaxBytesReader(w, h.Body, maxSize))
	if _, large := errors.AsType[*nethttp.MaxBytesError](err); large {
		w.WriteHeader(nethttp.StatusRequestEntityTooLarge)
		_, _ = w.Write(body[:100])
		return
	}
	if err != nil {
		return // it did not come whole
	}
	scheme := "http://"
	if h.TLS != nil {
		scheme = "https://"
	}
	got := request{scheme + h.Host, h.URL.RequestURI(), h.Proto, h.Header.Clone(), body}
	r.mu.Lock()
	r.asked = append(r.asked, got)
	r.mu.Unlock()
	status := nethttp.StatusAccepted
	if r.answer != nil {
		if status = r.answer(w, got); status == 0 {
			return
		}
	}
	if status < 300 {
		r.mu.Lock()
		r.taken = append(r.taken, got)
		r.mu.Unlock()
	}
	w.WriteHeader(status)
	if status >= 300 {
		_, _ = w.Write(body) // an echo of the event
	}
}

func (r *receiver) all() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

func (r *receiver) kept() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.taken)
}

// keptIDs are those of all events that were taken, in order.
func (r *receiver) keptIDs(t *testing.T) []string {
	t.Helper()
	var ids []string
	for _, got := range r.kept() {
		ids = append(ids, got.ids(t)...)
	}
	return ids
}

// open opens a sink to the receiver with further keys.
func (r *receiver) open(t *testing.T, block string) sinks.Sink {
	t.Helper()
	s, err := tryOpen(t, "url: "+r.URL+"/events?at=1\n"+block, sinks.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryOpen(t *testing.T, block string, env sinks.Env) (sinks.Sink, error) {
	t.Helper()
	p, err := sinktest.TryConfigure(Kind(), block)
	if err != nil {
		t.Fatal(err)
	}
	env.Name = "test"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := p.Open(ctx, env)
	if err == nil {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return s, err
}

func deliver(t *testing.T, s sinks.Sink, events []event.Event) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return s.Deliver(ctx, events)
}

// numbered are n events with the ids 0, 1, 2 …, and the keys in turn.
func numbered(n int, keys ...string) []event.Event {
	events := sinktest.Events(n, 1)
	for i := range events {
		events[i].CloudEvent.SetID(fmt.Sprint(i))
		events[i].CloudEvent.SetExtension(event.PartitionKey, nil)
		if len(keys) > 0 {
			events[i].CloudEvent.SetExtension(event.PartitionKey, keys[i%len(keys)])
		}
	}
	return events
}

// messages gives what was kept to both readers.
func messages(t *testing.T, all []request) []sinktest.Message {
	t.Helper()
	var read []sinktest.Message
	for _, r := range all {
		strict, err := readStrict(r)
		if err != nil {
			t.Fatalf("by the specification: %v", err)
		}
		sdk, err := readSDK(r)
		if err != nil {
			t.Fatalf("the SDK's receiver: %v", err)
		}
		if len(strict) != len(sdk) {
			t.Fatalf("by the specification there are %d events, the SDK's receiver sees %d", len(strict), len(sdk))
		}
		for i := range strict {
			m := sinktest.Message{At: r.at, Read: map[string]sinktest.ReadEvent{"specification": strict[i], "SDK": sdk[i]}}
			if i == 0 {
				m.Wire = wire(r)
			}
			read = append(read, m)
		}
	}
	return read
}

// readSDK reads with the SDK's receiver. That one leaves attributes as they are
// on the wire, percent-encoded, so they are decoded here.
func readSDK(r request) ([]sinktest.ReadEvent, error) {
	h := &nethttp.Request{Header: r.header, Body: io.NopCloser(bytes.NewReader(r.body))}
	if cehttp.IsHTTPBatch(r.header) {
		events, err := cehttp.NewEventsFromHTTPRequest(h)
		all := make([]sinktest.ReadEvent, len(events))
		for i := range events {
			all[i] = sinktest.FromSDK(&events[i])
		}
		return all, err
	}
	m := cehttp.NewMessageFromHttpRequest(h)
	mode := m.ReadEncoding()
	e, err := cehttp.NewEventFromHTTPRequest(h)
	if err != nil {
		return nil, err
	}
	seen := sinktest.FromSDK(e)
	for name, value := range seen.Attributes {
		if mode != binding.EncodingBinary || name == "datacontenttype" {
			continue
		}
		if seen.Attributes[name], err = url.PathUnescape(value); err != nil {
			return nil, err
		}
	}
	return []sinktest.ReadEvent{seen}, nil
}

// readStrict reads by the letter of the HTTP binding.
func readStrict(r request) ([]sinktest.ReadEvent, error) {
	for name, values := range r.header {
		if len(values) != 1 {
			return nil, fmt.Errorf("%s is there %d times", name, len(values))
		}
	}
	contentType := r.header.Get("Content-Type")
	if !strings.HasPrefix(contentType, "application/cloudevents") {
		seen, err := readBinary(r)
		return []sinktest.ReadEvent{seen}, err
	}
	for name := range r.header {
		if strings.HasPrefix(name, "Ce-") {
			return nil, fmt.Errorf("%s is there beside the whole event", name)
		}
	}
	var list []json.RawMessage
	switch contentType {
	case "application/cloudevents+json":
		list = []json.RawMessage{r.body}
	case "application/cloudevents-batch+json":
		if err := json.Unmarshal(r.body, &list); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the format is %q", contentType)
	}
	all := make([]sinktest.ReadEvent, len(list))
	for i, body := range list {
		var err error
		if all[i], err = sinktest.StrictJSON(body); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func readBinary(r request) (sinktest.ReadEvent, error) {
	headers := map[string][]string{}
	for name, values := range r.header {
		headers[strings.ToLower(name)] = values
	}
	attributes, err := sinktest.Encoded(headers)
	if err != nil {
		return sinktest.ReadEvent{}, err
	}
	if _, there := attributes["datacontenttype"]; there {
		return sinktest.ReadEvent{}, errors.New("there is ce-datacontenttype")
	}
	if contentType := r.header.Get("Content-Type"); contentType != "" {
		attributes["datacontenttype"] = contentType
	}
	return sinktest.Strict(attributes, r.body)
}

func wire(r request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s\n", r.path)
	for _, name := range slices.Sorted(maps.Keys(r.header)) {
		fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(name), strings.Join(r.header[name], " | "))
	}
	fmt.Fprintf(&b, "\n%s\n", r.body)
	return b.String()
}

// raw answers each connection with what it is given, whatever is asked.
func raw(t *testing.T, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				if n, _ := conn.Read(make([]byte, 1<<20)); n == 0 {
					return
				}
				_, _ = io.WriteString(conn, answer)
				_, _ = io.Copy(io.Discard, conn) // until the sink hangs up
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}
