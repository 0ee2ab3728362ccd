package uploadpost

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/sourcetest"
)

var received = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

func newSource(t testing.TB, c Config) source.Source {
	t.Helper()
	s, err := New(c, source.Env{Name: "upload-post"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func request(body []byte) *source.Request {
	return &source.Request{Header: http.Header{DeliveryHeader: {"d-1"}}, Body: body, Received: received}
}

// outcome is what a golden file holds.
type outcome struct {
	Malformed string          `json:"malformed,omitempty"`
	Keys      []string        `json:"keys,omitempty"`
	Event     json.RawMessage `json:"event,omitempty"`
}

func TestNormalize(t *testing.T) {
	src := newSource(t, Config{Timezone: "UTC", Auth: auth.Auth{None: true}})
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.json") {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			events, err := src.Normalize(request(body))
			var got outcome
			if malformed, ok := errors.AsType[*source.MalformedError](err); ok {
				got.Malformed = malformed.Error()
			} else if err != nil {
				t.Fatalf("Normalize = %v, not a MalformedError", err)
			} else {
				e := events[0].CloudEvent
				if err := e.Validate(); err != nil {
					t.Errorf("the SDK finds the event invalid: %v", err)
				}
				if string(e.Data()) != string(body) {
					t.Error("data is not the payload byte for byte")
				}
				for _, k := range events[0].Keys {
					got.Keys = append(got.Keys, string(k))
				}
				e.DataEncoded = nil // it is the input
				if got.Event, err = e.MarshalJSON(); err != nil {
					t.Fatal(err)
				}
			}
			text, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, '\n')
			golden.Check(t, strings.TrimSuffix(file, ".json")+".golden.json", string(text))
		})
	}
}

func TestConformance(t *testing.T) {
	for name, a := range map[string]auth.Auth{
		"open":   {None: true},
		"signed": {Signature: &auth.Signature{Secrets: []config.Secret{"whsec_new"}, AllowWeak: true}},
	} {
		t.Run(name, func(t *testing.T) { sourcetest.Run(t, newSource(t, Config{Timezone: "UTC", Auth: a}), bodies(t)) })
	}
}

func bodies(t testing.TB) [][]byte {
	t.Helper()
	var all [][]byte
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, body)
	}
	return all
}

func FuzzNormalize(f *testing.F) {
	src := newSource(f, Config{Timezone: "Europe/Berlin", Auth: auth.Auth{None: true}})
	for _, b := range bodies(f) {
		if len(b) < 4096 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) { sourcetest.Check(t, src, body) })
}

func TestTimezone(t *testing.T) {
	src := newSource(t, Config{Timezone: "America/New_York", Auth: auth.Auth{None: true}})
	for created, want := range map[string]string{
		"2024-03-15T14:30:00.000000":  "2024-03-15T18:30:00Z",
		"2024-01-15T14:30:00.000001":  "2024-01-15T19:30:00.000001Z",
		"2024-01-15T14:30:00Z":        "2024-01-15T14:30:00Z",
		"2024-01-15T14:30:00.25+0100": "2024-01-15T13:30:00.25Z",
	} {
		events, err := src.Normalize(request([]byte(`{"event":"ping","created_at":"` + created + `"}`)))
		if err != nil {
			t.Fatal(err)
		}
		if got := events[0].CloudEvent.Time().Format(time.RFC3339Nano); got != want {
			t.Errorf("created_at %s gives time %s, want %s", created, got, want)
		}
	}
}

// TestIdentity says which pairs of deliveries are one event.
func TestIdentity(t *testing.T) {
	src := newSource(t, Config{Timezone: "UTC", Auth: auth.Auth{None: true}})
	upload := func(result string) string {
		return `{"event":"upload_completed","platform":"tiktok","profile_username":"p","result":` + result + `}`
	}
	for _, tt := range []struct {
		name, a, b string
		same       bool
	}{
		{"same publish_id", upload(`{"success":true,"publish_id":"1"}`), upload(`{"success":true,"publish_id":"1","url":"u"}`), true},
		{"other publish_id", upload(`{"success":true,"publish_id":"1"}`), upload(`{"success":true,"publish_id":"2"}`), false},
		{"a success after a failure", upload(`{"success":false,"publish_id":"1"}`), upload(`{"success":true,"publish_id":"1"}`), false},
		{"known by post_id alone", upload(`{"success":true,"publish_id":"1","post_id":"9"}`), upload(`{"success":true,"post_id":"9"}`), true},
		{"one's publish_id is the other's post_id", upload(`{"success":true,"publish_id":"1"}`), upload(`{"success":true,"publish_id":"2","post_id":"1"}`), false},
		{"same failure", upload(`{"success":false,"error":"e"}`), upload(`{"success":false,"error":"e"}`), true},
		{"same failure, other spelling", upload(`{"success":false,"error":"é"}`), upload(`{ "error":"\u00e9" , "success":false}`), true},
		{"other failure", upload(`{"success":false,"error":"e"}`), upload(`{"success":false,"error":"f"}`), false},
		{"other event", `{"event":"a","result":{"publish_id":"1"}}`, `{"event":"b","result":{"publish_id":"1"}}`, false},
		{"other platform", `{"event":"a","platform":"x","result":{"publish_id":"1"}}`, `{"event":"a","platform":"y","result":{"publish_id":"1"}}`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err1 := src.Normalize(request([]byte(tt.a)))
			b, err2 := src.Normalize(request([]byte(tt.b)))
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			shared := false
			for _, ka := range a[0].Keys {
				for _, kb := range b[0].Keys {
					shared = shared || ka == kb
				}
			}
			if shared != tt.same {
				t.Errorf("shared key: %v, want %v\n%v\n%v", shared, tt.same, a[0].Keys, b[0].Keys)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	body := []byte(`{"event":"ping"}`)
	src := newSource(t, Config{Timezone: "UTC", Auth: auth.Auth{Signature: &auth.Signature{
		Secrets: []config.Secret{"whsec_old", "whsec_new"}, AllowWeak: true, Tolerance: 5 * time.Minute,
	}}})
	// Made with: printf '1767323045.{"event":"ping"}' | openssl dgst -sha256 -hmac whsec_new
	const known = "sha256=6b1e929cdbfb23666fbc6aa44ed11aa400c8ffae5e145b06eb2ded6183d00dc9"
	sign := func(secret string, at time.Time) http.Header {
		h := http.Header{}
		if err := auth.UploadPost.Sign(h, secret, "", at, body); err != nil {
			t.Fatal(err)
		}
		return h
	}
	with := func(h http.Header, name, value string) http.Header {
		h = h.Clone()
		h.Set(name, value)
		return h
	}
	good := sign("whsec_new", received)
	for _, tt := range []struct {
		name   string
		header http.Header
		body   string
		want   string // in the error
	}{
		{"the new secret", good, "", ""},
		{"the old secret", sign("whsec_old", received), "", ""},
		{"at the edge of the tolerance", sign("whsec_new", received.Add(-5*time.Minute)), "", ""},
		{"ahead at the edge", sign("whsec_new", received.Add(5*time.Minute)), "", ""},
		{"stale", sign("whsec_new", received.Add(-5*time.Minute-time.Second)), "", "timestamp is more than"},
		{"from the future", sign("whsec_new", received.Add(5*time.Minute+time.Second)), "", "timestamp is more than"},
		{"another secret", sign("whsec_other", received), "", "no secret fits"},
		{"another body", good, `{"event":"pong"}`, "no secret fits"},
		{"another timestamp", with(good, TimestampHeader, "1767323046"), "", "no secret fits"},
		{"an overflowing timestamp", with(good, TimestampHeader, "9223372036854775807"), "", "timestamp is more than"},
		{"a most negative timestamp", with(good, TimestampHeader, "-9223372036854775808"), "", "timestamp is more than"},
		{"a timestamp that is none", with(good, TimestampHeader, "now"), "", "not a number"},
		{"no timestamp", http.Header{SignatureHeader: good[SignatureHeader]}, "", "X-Upload-Post-Timestamp is missing"},
		{"no signature", http.Header{TimestampHeader: good[TimestampHeader]}, "", "X-Upload-Post-Signature is missing"},
		{"no prefix", with(good, SignatureHeader, strings.TrimPrefix(good.Get(SignatureHeader), "sha256=")), "", "64 hex digits"},
		{"too short", with(good, SignatureHeader, "sha256=00"), "", "64 hex digits"},
		{"not hex", with(good, SignatureHeader, "sha256="+strings.Repeat("z", 64)), "", "64 hex digits"},
		{"nothing", http.Header{}, "", "is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &source.Request{Header: tt.header, Body: body, Received: received}
			if tt.body != "" {
				r.Body = []byte(tt.body)
			}
			err := src.Verify(r)
			if tt.want == "" {
				if err != nil {
					t.Errorf("Verify = %v", err)
				}
				return
			}
			if !errors.Is(err, source.ErrUnauthenticated) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify = %v, want %q", err, tt.want)
			}
			for _, secret := range []string{"whsec_old", "whsec_new"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error shows a secret: %v", err)
				}
			}
		})
	}
	if got := good.Get(SignatureHeader); got != known {
		t.Errorf("signature = %s, openssl makes %s", got, known)
	}
}
