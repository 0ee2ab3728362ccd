package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/forwarded"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/sinks"
)

// broker is a sink that refuses what a test tells it to.
type broker struct {
	mu     sync.Mutex
	refuse func(id string) error
	got    []string
}

func (b *broker) Deliver(_ context.Context, batch []event.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	errs := make(sinks.BatchError, len(batch))
	for i, e := range batch {
		if errs[i] = b.refuse(e.CloudEvent.ID()); errs[i] == nil {
			b.got = append(b.got, e.CloudEvent.ID())
		}
	}
	return errs
}

func (*broker) Destination(event.Event) sinks.Destination { return sinks.Destination{} }

func (*broker) Close() error { return nil }

func (b *broker) accept(refuse func(string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = refuse
}

func (b *broker) ids() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

func taken(string) error { return nil }

// world is a relay with its admin port; every answer of the API is held
// against the description that it serves.
type world struct {
	journal *local.Journal
	broker  *broker
	client  *Client
	server  *Server
	fluent  bool // the source understands what is in quarantine

	credentials *Credentials
	logs        *observer.ObservedLogs
	api         *API
	reloading   func() // is called while a reload runs

	history *MetricsRing
	changed []string // by a reload
	refusal error
}

// testCredentials are an operator's token and a viewer's without names of their own,
// and those of two persons.
func testCredentials(token string) []Credential {
	return []Credential{
		{"admin.token", Operator, config.Secret(token)},
		{"admin.viewer_token", Viewer, viewerToken},
		{"alice", Operator, aliceToken},
		{"bob", Viewer, bobToken},
	}
}

func (w *world) metrics() *Metrics { return w.api.Metrics }

func newWorld(t testing.TB, token string) *world {
	t.Helper()
	j, err := local.Open(local.Options{Dir: "data", FS: vfs.NewMem(), Window: time.Hour, Retention: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{journal: j, broker: &broker{refuse: taken}, credentials: NewCredentials()}
	if token != "" {
		w.credentials.Replace(testCredentials(token)...)
	}
	core, logs := observer.New(zap.InfoLevel)
	w.logs = logs
	settings := sinks.DefaultSettings()
	settings.Retry = sinks.Retry{Initial: time.Millisecond, Max: 5 * time.Millisecond}
	metrics := prometheus.NewRegistry()
	w.history = NewMetricsRing(metrics, time.Now)
	r, err := relay.New(t.Context(), relay.Options{
		Journal: j, Log: zap.NewNop(), Metrics: relay.NewMetrics(metrics),
		Sinks: []sinks.Configured{{Name: "out", Settings: settings, Open: func(context.Context, sinks.Env) (sinks.Sink, error) { return w.broker, nil }}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.api = &API{
		Attributes: event.Attributes,
		Journal:    j, Relay: r, Credentials: w.credentials, Metrics: NewMetrics(metrics), Proxies: forwarded.Proxies{netip.MustParsePrefix("10.0.0.0/8")}, Version: "test", Level: zap.NewAtomicLevel(), Reload: func(context.Context) ([]string, error) {
			if w.reloading != nil {
				w.reloading()
			}
			return w.changed, w.refusal
		}, Now: time.Now, Log: zap.New(core),
		Name: "test", Engine: "pebble", Series: w.history,
		Sources: func() []Source {
			return []Source{{Source: "in", Kind: "uploadpost", Paths: []string{"/in"}, Secret: &SecretAge{From: "api"}}}
		},
		Registration: func(_ context.Context, source string) (Registration, error) {
			if source != "in" {
				return Registration{}, fmt.Errorf("source %q: %w", source, ErrNoSource)
			}
			return Registration{URL: "https://example.com/in", Channels: []string{"webhook"}, Events: []string{}, PathMatches: true}, nil
		},
		Configuration: func() (Configuration, error) {
			return Configuration{YAML: "to: someone@example.com\n", Last: &LastReload{Changed: []string{}, Problem: "no someone@example.com"}}, nil
		},
		Renormalize: func(r journal.QuarantinedRequest) ([]event.Event, error) {
			if !w.fluent {
				return nil, errors.New("no event")
			}
			return []event.Event{journaltest.Event(string(r.Body))}, nil
		},
	}
	w.server = server(t, Options{Gatherer: prometheus.NewRegistry(), Log: zap.NewNop(), API: w.api})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.server.Serve(l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	running.Go(func() {
		if err := r.Run(ctx, context.Background()); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	transport := &http.Transport{}
	w.client = &Client{URL: "http://" + l.Addr().String(), Token: token, HTTP: &http.Client{Transport: &checked{t: t, next: transport}}}
	t.Cleanup(func() {
		cancel()
		transport.CloseIdleConnections()
		if err := w.server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		running.Wait()
		if err := errors.Join(r.Close(), j.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// checked holds requests and answers against the description.
type checked struct {
	t         testing.TB
	next      http.RoundTripper
	once      sync.Once
	validator validator.Validator
}

func (c *checked) RoundTrip(r *http.Request) (*http.Response, error) {
	c.once.Do(func() {
		resp, err := (&http.Client{Transport: c.next}).Get("http://" + r.URL.Host + BasePath + "/openapi.json")
		if err != nil {
			c.t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			c.t.Fatal(err)
		}
		doc, err := libopenapi.NewDocument(text)
		if err != nil {
			c.t.Fatal(err)
		}
		if !strings.HasPrefix(doc.GetVersion(), "3.1") {
			c.t.Errorf("the description is OpenAPI %s", doc.GetVersion())
		}
		v, errs := validator.NewValidator(doc)
		if len(errs) > 0 {
			c.t.Fatal(errs)
		}
		if ok, errs := v.ValidateDocument(); !ok {
			for _, e := range errs {
				c.t.Errorf("the description: %s: %s %v", e.Message, e.Reason, e.SchemaValidationErrors)
			}
		}
		c.validator = v
	})
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := c.next.RoundTrip(r)
	if err != nil || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return resp, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	r.Body = io.NopCloser(bytes.NewReader(body))
	if ok, errs := c.validator.ValidateHttpResponse(r, resp); !ok {
		for _, e := range errs {
			c.t.Errorf("%s %s: the answer is not as described: %s: %s\n%s", r.Method, r.URL.Path, e.Message, e.Reason, answer)
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp, nil
}

func (w *world) put(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if _, err := w.journal.Append(t.Context(), journaltest.Event(id)); err != nil {
			t.Fatal(err)
		}
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func (w *world) list(t *testing.T, filter url.Values) (ids []string) {
	t.Helper()
	page, err := w.client.List(t.Context(), filter)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Entries {
		ids = append(ids, e.ID)
	}
	return ids
}

// fits holds a record against its schema.
func fits(t *testing.T, typ string, e DLQEntry) {
	t.Helper()
	l, err := schema.Open("")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	n := schema.Name{Type: typ, Version: "1"}
	if _, ok := l.Text(n); !ok {
		t.Errorf("there is no schema %s", n)
	}
	if err := l.Check(n, "application/json", text); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

func TestDeadLettersAreListedShownRetriedAndDropped(t *testing.T) {
	w := newWorld(t, "")
	w.broker.accept(func(id string) error {
		if id < "4" {
			return sinks.Permanent(sinks.ReasonTooLarge, errors.New("too large"))
		}
		return nil
	})
	w.put(t, "1", "2", "3", "4")
	var all []string
	eventually(t, "three are dead", func() bool { all = w.list(t, nil); return len(all) == 3 })
	if diff := cmp.Diff([]string{"1@out", "2@out", "3@out"}, all); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	e, err := w.client.Show(t.Context(), "2@out")
	if err != nil || e.Kind != KindDeadLetter || e.Sink != "out" || e.Reason != "too_large" || e.Error != "too large" || e.Attempts != 1 || e.EventID != "2" {
		t.Errorf("Show = %+v, %v", e, err)
	}
	fits(t, "postwire.dead_letter", e)
	var shown struct{ Data struct{ Title string } }
	if err := json.Unmarshal(e.Event.RawMessage, &shown); err != nil || shown.Data.Title != "ünï" {
		t.Errorf("the event is %s, %v", e.Event.RawMessage, err)
	}
	for _, tt := range []struct {
		filter url.Values
		want   []string
	}{
		{url.Values{"sink": {"out"}, "reason": {"too_large"}, "since": {"1h"}}, all},
		{url.Values{"sink": {"other"}}, nil},
		{url.Values{"reason": {"invalid"}}, nil},
		{url.Values{"kind": {"quarantine"}}, nil},
		{url.Values{"until": {"1h"}}, nil},
		{url.Values{"after": {"2@out"}}, []string{"3@out"}},
		{url.Values{"limit": {"2"}}, []string{"1@out", "2@out"}},
	} {
		if diff := cmp.Diff(tt.want, w.list(t, tt.filter)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.filter, diff)
		}
	}
	page, err := w.client.List(t.Context(), url.Values{"limit": {"2"}})
	if err != nil || page.Next != "2@out" {
		t.Errorf("the first page: %+v, %v", page, err)
	}
	if page, err = w.client.List(t.Context(), url.Values{"limit": {"2"}, "after": {page.Next}}); err != nil || page.Next != "" || len(page.Entries) != 1 {
		t.Errorf("the last page: %+v, %v", page, err)
	}

	if h, err := w.client.Drop(t.Context(), "3@out"); err != nil || !h.Done {
		t.Errorf("Drop = %+v, %v", h, err)
	}
	w.broker.accept(taken)
	if h, err := w.client.Retry(t.Context(), "2@out"); err != nil || !h.Done || len(h.Events) != 1 || h.Events[0] != "2" {
		t.Errorf("Retry = %+v, %v", h, err)
	}
	handled, err := w.client.Handle(t.Context(), "retry", map[string]any{"sink": "out"})
	if err != nil || len(handled.Entries) != 1 || handled.Entries[0].ID != "1@out" || handled.Next != "" {
		t.Errorf("Handle = %+v, %v", handled, err)
	}
	eventually(t, "the retried ones arrive", func() bool { return len(w.broker.ids()) == 3 })
	if diff := cmp.Diff([]string{"4", "2", "1"}, w.broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if got := w.list(t, nil); got != nil {
		t.Errorf("still there: %v", got)
	}
	for _, id := range []string{"3@out", "9@out", "1@other", "nope"} {
		_, err := w.client.Show(t.Context(), id)
		if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusNotFound {
			t.Errorf("Show(%s) = %v", id, err)
		}
	}
}

func TestQuarantinedAreRetriedWhenTheyAreUnderstood(t *testing.T) {
	w := newWorld(t, "")
	var kept []string
	for _, body := range []string{"a", "b", "\xff"} {
		id, err := w.journal.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "in", Received: time.Now(), Header: http.Header{"X": {"y"}}, Body: []byte(body), Reason: "no event"})
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, id)
	}
	if diff := cmp.Diff(kept, w.list(t, url.Values{"source": {"in"}, "reason": {Malformed}})); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	// A repeat is no entry of its own.
	late := time.Now().Add(time.Minute)
	if id, err := w.journal.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "in", Received: late, Body: []byte("a"), Reason: "no event"}); err != nil || id != kept[0] {
		t.Errorf("a repeat of %s is %s, %v", kept[0], id, err)
	}
	page, err := w.client.List(t.Context(), url.Values{"kind": {KindQuarantine}})
	if err != nil || len(page.Entries) != 3 || page.Entries[0].Count != 2 || !page.Entries[0].Last.Equal(late) || page.Entries[0].First.Equal(late) || page.Entries[1].Count != 1 {
		t.Errorf("List = %+v, %v", page, err)
	}
	e, err := w.client.Show(t.Context(), kept[0])
	fits(t, "postwire.quarantine", e)
	if err != nil || e.Kind != KindQuarantine || e.Source != "in" || e.Error != "no event" || e.Count != 2 || e.Request.Body != "a" || e.Request.Header.Get("X") != "y" {
		t.Errorf("Show = %+v, %v", e, err)
	}
	if e, err = w.client.Show(t.Context(), kept[2]); err != nil || e.Request.Body != "" || e.Request.BodyBase64 != "/w==" {
		t.Errorf("Show = %+v, %v", e.Request, err)
	}
	_, err = w.client.Retry(t.Context(), kept[0])
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusUnprocessableEntity || !strings.Contains(r.Detail, "cannot convert the request") {
		t.Errorf("Retry = %v", err)
	}
	handled, err := w.client.Handle(t.Context(), "retry", map[string]any{"kind": KindQuarantine, "limit": 2, "until": late.Add(time.Second)})
	if err != nil || len(handled.Entries) != 2 || handled.Entries[0].Done || handled.Entries[0].Error == "" || handled.Next != kept[1] {
		t.Errorf("Handle = %+v, %v", handled, err)
	}
	w.fluent = true // a newer version
	if h, err := w.client.Retry(t.Context(), kept[0]); err != nil || !h.Done || h.Events[0] != "a" {
		t.Errorf("Retry = %+v, %v", h, err)
	}
	if h, err := w.client.Drop(t.Context(), kept[2]); err != nil || !h.Done {
		t.Errorf("Drop = %+v, %v", h, err)
	}
	eventually(t, "the event arrives", func() bool { return slices.Equal(w.broker.ids(), []string{"a"}) })
	if diff := cmp.Diff(kept[1:2], w.list(t, nil)); diff != "" {
		t.Errorf("still there (-want +got):\n%s", diff)
	}
}

func TestReplays(t *testing.T) {
	w := newWorld(t, "")
	w.put(t, "a", "b", "c")
	eventually(t, "they arrive", func() bool { return len(w.broker.ids()) == 3 })
	plan, err := w.client.StartReplay(t.Context(), ReplayRequest{Sink: "out", From: "1h", Rate: 100, Filter: "id != \"b\"", DryRun: true})
	if err != nil || plan.Total != 2 || plan.ID != "" {
		t.Errorf("the plan: %+v, %v", plan, err)
	}
	re, err := w.client.StartReplay(t.Context(), ReplayRequest{Sink: "out", From: "1h", Rate: 100, Filter: "id != \"b\""})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is done", func() bool {
		if re, err = w.client.Replay(t.Context(), re.ID); err != nil {
			t.Fatal(err)
		}
		return re.State == relay.ReplayDone
	})
	if diff := cmp.Diff([]string{"a", "b", "c", "a", "c"}, w.broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	all, err := w.client.Replays(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != re.ID || all[0].Sent != 2 {
		t.Errorf("Replays = %+v, %v", all, err)
	}
	for want, do := range map[int]func() error{
		409: func() error { _, err := w.client.SteerReplay(t.Context(), re.ID, "stop"); return err },
		404: func() error { _, err := w.client.SteerReplay(t.Context(), "nope", "continue"); return err },
		422: func() error {
			_, err := w.client.StartReplay(t.Context(), ReplayRequest{Sink: "out", From: "yesterday", Rate: 1})
			return err
		},
	} {
		if r, ok := errors.AsType[*RefusedError](do()); !ok || r.Status != want {
			t.Errorf("%+v, want status %d", r, want)
		}
	}
}

func TestTail(t *testing.T) {
	w := newWorld(t, "")
	w.put(t, "old")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	err := w.client.Tail(ctx, url.Values{"from": {"1h"}, "filter": {`id != "x"`}}, func(m Message) error {
		switch m.Name {
		case "heartbeat":
			return nil
		case "event":
			var s EventView
			if err := json.Unmarshal(m.Data, &s); err != nil {
				return err
			}
			if bytes.Contains(s.Event.RawMessage, []byte("title")) {
				t.Errorf("personal data that nobody asked for: %s", s.Event.RawMessage)
			}
			got = append(got, fmt.Sprint("event ", s.Seq))
			if s.Seq == 1 {
				w.put(t, "x", "new")
			}
			if s.Deliveries[0].State == relay.Delivered && s.Seq == 3 {
				cancel()
			}
		case "status":
			var b StatusChanged
			if err := json.Unmarshal(m.Data, &b); err != nil {
				return err
			}
			if b.Sink != "out" || b.State != relay.Delivered || b.ID == "" {
				t.Errorf("fate: %+v", b)
			}
			if b.Seq == 3 {
				cancel()
			}
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Tail = %v", err)
	}
	if diff := cmp.Diff([]string{"event 1", "event 3"}, got); diff != "" {
		t.Errorf("seen (-want +got):\n%s", diff)
	}
	// Of one source only.
	if _, err := w.journal.Append(t.Context(), journaltest.Event("shop", event.NewKey("shop", "1"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	var first EventView
	err = w.client.Tail(ctx, url.Values{"from": {"1h"}, "source": {"shop"}}, func(m Message) error {
		if m.Name == "event" && first.Seq == 0 {
			defer cancel()
			return json.Unmarshal(m.Data, &first)
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || first.Seq != 4 || first.Source != "shop" {
		t.Errorf("the tail of a source ended with %v, first is event %d of %q", err, first.Seq, first.Source)
	}
	err = w.client.Tail(t.Context(), url.Values{"filter": {"("}}, nil)
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != 422 || !strings.Contains(r.Detail, "is not an expression") {
		t.Errorf("a wrong filter: %v", err)
	}
	// The end of the relay ends a tail.
	ended := make(chan error, 1)
	connected := make(chan struct{}, 100)
	go func() {
		ended <- w.client.Tail(t.Context(), nil, func(Message) error { connected <- struct{}{}; return nil })
	}()
	<-connected
	if err := w.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("Tail = %v", err)
	}
}

func TestLogLevel(t *testing.T) {
	w := newWorld(t, "")
	if l, err := w.client.LogLevel(t.Context()); err != nil || l.Level != "info" {
		t.Fatalf("%v, %v", l, err)
	}
	if l, err := w.client.SetLogLevel(t.Context(), "debug"); err != nil || l.Level != "debug" {
		t.Fatalf("%v, %v", l, err)
	}
	_, err := w.client.SetLogLevel(t.Context(), "loud")
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Status != http.StatusUnprocessableEntity {
		t.Errorf("a level that is none: %v", err)
	}
	if l, err := w.client.LogLevel(t.Context()); err != nil || l.Level != "debug" {
		t.Errorf("%v, %v", l, err)
	}
}

func TestReload(t *testing.T) {
	w := newWorld(t, "")
	w.changed = []string{"sink kafka"}
	if r, err := w.client.Reload(t.Context()); err != nil || !slices.Equal(r.Changed, w.changed) {
		t.Errorf("%v, %v", r, err)
	}
	w.refusal = errors.New("server.listen: has changed, and takes a restart")
	_, err := w.client.Reload(t.Context())
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Status != http.StatusUnprocessableEntity || refused.Detail != w.refusal.Error() {
		t.Errorf("a reload that is refused: %v", err)
	}
}

func TestToken(t *testing.T) {
	w := newWorld(t, "a-long-secret")
	if _, err := w.client.Replays(t.Context()); err != nil {
		t.Errorf("with the token: %v", err)
	}
	for _, token := range []string{"", "wrong", "a-long-secre"} {
		c := *w.client
		c.Token = token
		_, err := c.Replays(t.Context())
		if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusUnauthorized {
			t.Errorf("with token %q: %v", token, err)
		}
	}
}

// TestBrowsersAreKeptOut: without a token, no web page may use the API.
func TestBrowsersAreKeptOut(t *testing.T) {
	w := newWorld(t, "")
	for name, change := range map[string]func(*http.Request){
		"another name for this address": func(r *http.Request) { r.Host = "evil.example.com:9090" },
		"another origin":                func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"another port":                  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"an old browser":                func(r *http.Request) { r.Header.Set("Origin", "https://evil.example.com") },
		"no origin to tell":             func(r *http.Request) { r.Header.Set("Origin", "null") },
	} {
		for method, path := range map[string]string{http.MethodPost: "/dlq-drop", http.MethodGet: "/events", http.MethodDelete: "/sinks/a"} {
			r := httptest.NewRequest(method, "http://127.0.0.1:9090"+BasePath+path, strings.NewReader("{}"))
			r.Header.Set("Content-Type", "application/json")
			change(r)
			answer := httptest.NewRecorder()
			w.server.ServeHTTP(answer, r)
			if answer.Code != http.StatusForbidden {
				t.Errorf("%s, %s %s: answered %d", name, method, path, answer.Code)
			}
		}
	}
	for name, change := range map[string]func(*http.Request){
		"our own page":     func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") },
		"a typed address":  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "none") },
		"no browser":       func(*http.Request) {},
		"our own old page": func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:9090") },
	} {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9090"+BasePath+"/status", http.NoBody)
		change(r)
		answer := httptest.NewRecorder()
		w.server.ServeHTTP(answer, r)
		if answer.Code != http.StatusOK {
			t.Errorf("%s: answered %d", name, answer.Code)
		}
	}
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{URL: "http://" + l.Addr().String(), HTTP: http.DefaultClient}
	_ = l.Close()
	if _, err := c.Replays(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), c.URL) {
		t.Errorf("nobody there: %v", err)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	c.URL = other.URL
	if _, err := c.Replays(t.Context()); err == nil || !strings.Contains(err.Error(), "is this the admin port") {
		t.Errorf("somebody else there: %v", err)
	}
}

func TestWhen(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[When]time.Time{
		"": {}, "2h": now.Add(-2 * time.Hour), "-90s": now.Add(-90 * time.Second), "2026-01-01T00:00:00+01:00": time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC),
	} {
		if got, err := text.Time(now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	if _, err := When("yesterday").Time(now); err == nil {
		t.Error("yesterday is a time")
	}
}

// Tails are bounded: each reads the journal and holds a connection.
func TestTailsAreBounded(t *testing.T) {
	w := newWorld(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	var open sync.WaitGroup
	connected := make(chan struct{}, maxTails)
	for range maxTails {
		open.Go(func() {
			told := false
			_ = w.client.Tail(ctx, nil, func(Message) error { // it ends with ctx
				if !told {
					told = true
					connected <- struct{}{}
				}
				return nil
			})
		})
	}
	for range maxTails {
		<-connected
	}
	err := w.client.Tail(t.Context(), nil, func(Message) error { return nil })
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusTooManyRequests {
		t.Errorf("one more: %v", err)
	}
	cancel()
	open.Wait()
	again, end := context.WithTimeout(t.Context(), 10*time.Second)
	defer end()
	for { // the server notices that a client is gone a moment later
		err := w.client.Tail(again, nil, func(Message) error { end(); return nil })
		if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusTooManyRequests {
			break
		}
	}
	if !errors.Is(again.Err(), context.Canceled) {
		t.Errorf("no tail opens after the others have ended: %v", again.Err())
	}
}

// Limits implements sinks.Sink.
func (*broker) Limits() sinks.Limits { return sinks.Limits{} }
