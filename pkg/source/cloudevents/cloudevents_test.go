package cloudevents

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/sourcetest"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

var received = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

func newSource(t testing.TB, c Config, rate source.Rate) source.Source {
	t.Helper()
	s, err := New(c, source.Env{Name: "events", Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wire is a source whose bodies are whole requests: header, an empty line, body.
type wire struct{ source.Source }

func (w wire) Normalize(r *source.Request) ([]event.Event, error) {
	h, body := parse(r.Body)
	return w.Source.Normalize(&source.Request{Header: h, Body: body, Received: r.Received})
}

func parse(text []byte) (http.Header, []byte) {
	head, body, _ := bytes.Cut(text, []byte("\n\n"))
	h := http.Header{}
	for line := range strings.SplitSeq(string(head), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Add(name, strings.TrimSpace(value))
		}
	}
	return h, body
}

type testcase struct {
	name string
	text []byte
}

func cases(t testing.TB) []testcase {
	t.Helper()
	files, err := filepath.Glob("testdata/*.http")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	var all []testcase
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, testcase{strings.TrimSuffix(filepath.Base(file), ".http"), text})
	}
	return all
}

func texts(t testing.TB) (all [][]byte) {
	t.Helper()
	for _, c := range cases(t) {
		all = append(all, c.text)
	}
	return all
}

// result is what becomes of a request: the events as structured mode has them.
type result struct {
	Malformed string            `json:"malformed,omitempty"`
	Events    []json.RawMessage `json:"events,omitempty"`
	Keys      []event.Key       `json:"keys,omitempty"`
}

func TestNormalize(t *testing.T) {
	src := newSource(t, Config{Auth: auth.Auth{None: true}}, source.Rate{})
	for _, tt := range cases(t) {
		t.Run(tt.name, func(t *testing.T) {
			h, body := parse(tt.text)
			events, err := src.Normalize(&source.Request{Header: h, Body: body, Received: received})
			var got result
			if malformed, ok := errors.AsType[*source.MalformedError](err); ok {
				got.Malformed = malformed.Error()
			} else if err != nil {
				t.Fatalf("Normalize = %v, not a MalformedError", err)
			}
			for _, e := range events {
				if strings.HasPrefix(tt.name, "binary_") && !bytes.Equal(e.CloudEvent.Data(), body) {
					t.Error("data is not the body byte for byte")
				}
				text, _, err := event.Structured(e)
				if err != nil {
					t.Fatal(err)
				}
				got.Events = append(got.Events, text)
				got.Keys = append(got.Keys, e.Keys...)
			}
			text, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, filepath.Join("testdata", tt.name+".golden.json"), string(text)+"\n")
		})
	}
}

// TestAsTheSDKReads: what is taken means to the SDK's receiver what it means
// here, save for what it is known to read otherwise.
func TestAsTheSDKReads(t *testing.T) {
	otherwise := []string{
		// It leaves headers percent-encoded.
		"binary_percent_lower_case_and_needless", "binary_spec_percent", "binary_spec_quoted", "binary_source_encoded",
		"binary_time_lower_case", // it cannot read
		// It reads data_base64 without its quotes only where the type is before it.
		"structured_data_base64_null", "structured_data_base64_no_type", "structured_data_base64_newline", "structured_data_base64_escaped",
		"structured_data_json_suffix",  // is no JSON to it
		"structured_spec_implied_json", // it leaves implied
		"structured_data_first", "structured_null_data",
	}
	src := newSource(t, Config{Auth: auth.Auth{None: true}}, source.Rate{})
	compared := 0
	for _, tt := range cases(t) {
		t.Run(tt.name, func(t *testing.T) {
			h, body := parse(tt.text)
			events, err := src.Normalize(&source.Request{Header: h, Body: body, Received: received})
			if err != nil || slices.Contains(otherwise, tt.name) {
				return
			}
			compared++
			var read []cloudevents.Event
			if strings.HasPrefix(tt.name, "batched_") {
				if err := json.Unmarshal(body, &read); err != nil {
					t.Fatal(err)
				}
			} else {
				e, err := cehttp.NewEventFromHTTPRequest(&http.Request{Header: h, Body: http.NoBody})
				if len(body) > 0 {
					e, err = cehttp.NewEventFromHTTPRequest(&http.Request{Header: h, Body: readCloser{bytes.NewReader(body)}})
				}
				if err != nil {
					t.Fatal(err)
				}
				read = []cloudevents.Event{*e}
			}
			if len(read) != len(events) {
				t.Fatalf("the SDK reads %d events, not %d", len(read), len(events))
			}
			for i := range read {
				read[i].SetExtension(event.RecordedTime, received)
				if diff := sinktest.Diff(events[i], sinktest.FromSDK(&read[i]), event.IsJSON(events[i].CloudEvent.DataContentType()) && json.Valid(events[i].CloudEvent.Data())); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
	if compared < 20 {
		t.Errorf("only %d cases were compared", compared)
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

func TestConformance(t *testing.T) {
	for name, a := range map[string]auth.Auth{
		"open":   {None: true},
		"bearer": {Bearer: &auth.Bearer{Tokens: []config.Secret{"0123456789abcdef0123456789abcdef"}}},
	} {
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, wire{newSource(t, Config{Auth: a, AllowedOrigins: []string{"*"}}, source.Rate{})}, texts(t))
		})
	}
}

// FuzzNormalize takes whole requests. What is taken goes through the encoders of
// the sinks and comes out as it was.
func FuzzNormalize(f *testing.F) {
	src := newSource(f, Config{Auth: auth.Auth{None: true}}, source.Rate{})
	for _, b := range texts(f) {
		if len(b) < 4096 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		sourcetest.Check(t, wire{src}, text)
		h, body := parse(text)
		events, err := src.Normalize(&source.Request{Header: h, Body: body, Received: received})
		if err != nil {
			return
		}
		for _, e := range events {
			asJSON := event.IsJSON(e.CloudEvent.DataContentType()) && json.Valid(event.TrimBOM(e.CloudEvent.Data()))
			m, err := sinks.Env{}.Encode(e, sinks.Structured)
			if err != nil {
				t.Fatal(err)
			}
			again, err := src.Normalize(&source.Request{Header: http.Header{"Content-Type": {m.ContentType}}, Body: m.Body, Received: received})
			if err != nil {
				t.Fatalf("what structured mode makes of it is not understood: %v\n%s", err, m.Body)
			}
			if diff := sinktest.Diff(e, sinktest.FromSDK(&again[0].CloudEvent), asJSON); diff != "" {
				t.Errorf("structured mode changes it: %s", diff)
			}
			if m, err = (sinks.Env{}).Encode(e, sinks.Binary); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(strings.ToLower(m.ContentType), formats) {
				continue // the sink takes structured mode then
			}
			h := http.Header{}
			for _, a := range m.Attributes {
				h.Set("ce-"+a.Name, sinks.EscapeHeader(a.Value))
			}
			if m.ContentType != "" {
				h.Set("Content-Type", sinks.EscapeMediaType(m.ContentType))
			}
			if again, err = src.Normalize(&source.Request{Header: h, Body: m.Body, Received: received}); err != nil {
				t.Fatalf("what binary mode makes of it is not understood: %v\n%v", err, h)
			}
			if diff := sinktest.Diff(e, sinktest.FromSDK(&again[0].CloudEvent), false); diff != "" {
				t.Errorf("binary mode changes it: %s", diff)
			}
		}
	})
}

// TestIdentity says which pairs of events are one.
func TestIdentity(t *testing.T) {
	keys := func(name, from, id string) []event.Key {
		s, err := New(Config{Auth: auth.Auth{None: true}}, source.Env{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]string{"specversion": "1.0", "type": "t", "source": from, "id": id})
		if err != nil {
			t.Fatal(err)
		}
		events, err := s.Normalize(&source.Request{Header: http.Header{"Content-Type": {"application/cloudevents+json"}}, Body: body, Received: received})
		if err != nil {
			t.Fatal(err)
		}
		return events[0].Keys
	}
	first := keys("a", "s", "1")
	if diff := cmp.Diff(first, keys("a", "s", "1")); diff != "" {
		t.Errorf("equal events: %s", diff)
	}
	for _, other := range [][]event.Key{keys("a", "s", "2"), keys("a", "s2", "1"), keys("b", "s", "1")} {
		if slices.Contains(other, first[0]) {
			t.Errorf("other events share the key %q", first[0])
		}
	}
}

func TestOptions(t *testing.T) {
	const token = "0123456789abcdef0123456789abcdef"
	asks := func(origin ...string) *source.Request {
		return &source.Request{
			Method: http.MethodOptions, Remote: netip.MustParseAddr("192.0.2.1"), Token: token,
			Header: http.Header{"Webhook-Request-Origin": origin, "Webhook-Request-Rate": {"100000"}, "Webhook-Request-Callback": {"http://192.0.2.7/let"}},
		}
	}
	with := func(change func(r *source.Request)) *source.Request {
		r := asks("azure.example")
		change(r)
		return r
	}
	none := auth.Auth{None: true}
	inPath := auth.Auth{PathToken: &auth.PathToken{Tokens: []config.Secret{token}}}
	listed := auth.Auth{IPAllow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	bearer := auth.Auth{Bearer: &auth.Bearer{Tokens: []config.Secret{token}}}
	for _, tt := range []struct {
		name    string
		auth    auth.Auth
		origins []string
		rate    float64
		request *source.Request
		origin  string // "" is no consent
		allowed string
	}{
		{"nobody by default", none, nil, 0, asks("azure.example"), "", ""},
		{"a listed origin, without a rate", none, []string{"x.example", "azure.example"}, 0, asks("azure.example"), "azure.example", "*"},
		{"names have no case, and the sender's spelling comes back", none, []string{"azure.example"}, 2, asks("Azure.Example"), "Azure.Example", "120"},
		{"another origin", none, []string{"azure.example"}, 2, asks("x.azure.example"), "", ""},
		{"any origin", none, []string{"*"}, 0.001, asks("azure.example"), "*", "1"},
		{"an absurd rate", none, []string{"*"}, 1e300, asks("azure.example"), "*", "9007199254740992"},
		{"no question", none, []string{"*"}, 0, with(func(r *source.Request) { r.Header = http.Header{} }), "", ""},
		{"an empty question", none, []string{"*"}, 0, asks(""), "", ""},
		{"two questions", none, []string{"*"}, 0, asks("azure.example", "azure.example"), "", ""},
		{"credentials come later", bearer, []string{"*"}, 0, asks("azure.example"), "*", "*"},
		{"the token in the path", inPath, []string{"*"}, 0, asks("azure.example"), "*", "*"},
		{"a wrong token", inPath, []string{"*"}, 0, with(func(r *source.Request) { r.Token = token[1:] }), "", ""},
		{"no token", inPath, []string{"*"}, 0, with(func(r *source.Request) { r.Token = "" }), "", ""},
		{"an address that is not allowed", listed, []string{"*"}, 0, asks("azure.example"), "", ""},
		{"an address that is", listed, []string{"*"}, 0, with(func(r *source.Request) { r.Remote = netip.MustParseAddr("203.0.113.9") }), "*", "*"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, ok := newSource(t, Config{Auth: tt.auth, AllowedOrigins: tt.origins}, source.Rate{PerSecond: tt.rate}).Options(tt.request)
			var want http.Header
			if tt.origin != "" {
				want = http.Header{"Webhook-Allowed-Origin": {tt.origin}, "Webhook-Allowed-Rate": {tt.allowed}}
			}
			if diff := cmp.Diff(want, h); diff != "" || ok != (want != nil) {
				t.Errorf("ok %v: %s", ok, diff)
			}
		})
	}
}

func TestMaxBatch(t *testing.T) {
	src := newSource(t, Config{MaxBatch: 3, Auth: auth.Auth{None: true}}, source.Rate{})
	read := func(body string) (int, error) {
		events, err := src.Normalize(&source.Request{Header: http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, Body: []byte(body), Received: received})
		return len(events), err
	}
	const one = `{"specversion":"1.0","id":"1","source":"s","type":"t"}`
	if n, err := read("[" + one + "," + one + "," + one + "]"); n != 3 || err != nil {
		t.Errorf("three: %d, %v", n, err)
	}
	for _, body := range []string{"[" + strings.Repeat(one+",", 3) + one + "]", "[" + strings.Repeat("{},", 100) + "0]"} {
		if n, err := read(body); n != 0 || err == nil || !strings.Contains(err.Error(), "more than 3 events") {
			t.Errorf("more: %d, %v", n, err)
		}
	}
	if _, err := read("[" + strings.Repeat(one+",", 5)); err == nil || !strings.Contains(err.Error(), "not valid JSON") {
		t.Errorf("more, and broken: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		origins []string
		want    string
	}{
		{nil, ""},
		{[]string{"*"}, ""},
		{[]string{"eventgrid.azure.net", "localhost:8080"}, ""},
		{[]string{"*", "a.example"}, "allowed_origins[0]"},
		{[]string{"a.example", ""}, "allowed_origins[1]"},
		{[]string{"*.example"}, "allowed_origins[0]"},
		{[]string{"a b"}, "allowed_origins[0]"},
		{[]string{"a\r\nX: y"}, "allowed_origins[0]"},
	} {
		err := Config{MaxBatch: 1, AllowedOrigins: tt.origins, Auth: auth.Auth{None: true}}.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: %v, want %q", tt.origins, err, tt.want)
		}
	}
	for _, n := range []int{-1, 0, 10001} {
		if err := (Config{MaxBatch: n, Auth: auth.Auth{None: true}}).Validate(); err == nil || !strings.Contains(err.Error(), "max_batch") {
			t.Errorf("max_batch %d: %v", n, err)
		}
	}
	if err := (Config{MaxBatch: 1}).Validate(); err == nil || !strings.Contains(err.Error(), "auth") {
		t.Errorf("without auth: %v", err)
	}
}
