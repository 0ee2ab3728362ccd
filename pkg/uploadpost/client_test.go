package uploadpost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const apiKey = "key-that-nobody-may-see"

// world is a service and a client of it, with one clock.
type world struct {
	service *simulator.Simulator
	client  *uploadpost.Client
	now     time.Time
	waits   []time.Duration
}

func start(t *testing.T, q simulator.Quirks) *world {
	t.Helper()
	w := &world{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	w.service = simulator.New(simulator.Options{
		APIKey: apiKey, Quirks: q, Random: rand.New(rand.NewPCG(1, 2)), Now: func() time.Time { return w.now },
	})
	server := httptest.NewServer(w.service.Handler())
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	w.client = newClient(t, uploadpost.Options{
		BaseURL: server.URL + "/api", APIKey: apiKey, Transport: transport, Now: func() time.Time { return w.now },
		Wait: func(_ context.Context, d time.Duration) error {
			w.waits = append(w.waits, d)
			return nil
		},
	})
	return w
}

func newClient(t *testing.T, o uploadpost.Options) *uploadpost.Client {
	t.Helper()
	c, err := uploadpost.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// quirks are those with which everything must work.
var quirks = map[string]simulator.Quirks{
	"as documented":                  {},
	"events as a list":               {EventsAsList: true},
	"settings under config":          {ConfigKey: true},
	"a list called uploads":          {HistoryKey: "uploads"},
	"a list called data":             {HistoryKey: "data"},
	"a list called items":            {HistoryKey: "items"},
	"post ids as lists":              {PostIDLists: true},
	"every second request limited":   {LimitEvery: 2},
	"every third request fails":      {FailEvery: 3},
	"limited, failing, and all that": {LimitEvery: 4, FailEvery: 7, EventsAsList: true, HistoryKey: "items", PostIDLists: true},
}

func TestNotifications(t *testing.T) {
	for name, q := range quirks {
		t.Run(name, func(t *testing.T) {
			w := start(t, q)
			ctx := t.Context()
			url, chat := "https://relay.example.com/webhooks/upload-post", "123"
			if err := w.client.SetNotifications(ctx, uploadpost.Change{
				Channels: uploadpost.Channels{"webhook": true}, WebhookURL: &url, TelegramChatID: &chat,
				WebhookEvents: uploadpost.Events{"upload_completed": true, "social_account_connected": false},
			}); err != nil {
				t.Fatal(err)
			}
			got, err := w.client.Notifications(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if got.WebhookURL != url || got.TelegramChatID != chat || !strings.HasPrefix(got.WebhookSecret.Reveal(), "whsec_") {
				t.Errorf("settings are %+v", got)
			}
			if diff := cmp.Diff(uploadpost.Channels{"webhook": true, "telegram": false}, got.Channels); diff != "" {
				t.Errorf("channels (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"upload_completed"}, got.WebhookEvents.Names()); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if err := w.client.DeleteNotifications(ctx); err != nil {
				t.Fatal(err)
			}
			if got, err = w.client.Notifications(ctx); err != nil || got.WebhookURL != "" || got.Channels["webhook"] {
				t.Errorf("afterwards: %+v, %v", got, err)
			}
		})
	}
}

func TestProfileWebhook(t *testing.T) {
	w := start(t, simulator.Quirks{EventsAsList: true})
	ctx := t.Context()
	if got, err := w.client.ProfileWebhook(ctx, "marta cooks"); err != nil || got.WebhookURL != "" {
		t.Errorf("without one: %+v, %v", got, err)
	}
	want := uploadpost.ProfileWebhook{Profile: "marta cooks", WebhookURL: "https://relay.example.com/x", WebhookEvents: uploadpost.Events{"upload_completed": true}}
	if err := w.client.SetProfileWebhook(ctx, want); err != nil {
		t.Fatal(err)
	}
	got, err := w.client.ProfileWebhook(ctx, "marta cooks")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for range 2 {
		if err := w.client.DeleteProfileWebhook(ctx, "marta cooks"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.client.ProfileWebhook(ctx, "marta cooks"); err != nil || got.WebhookURL != "" {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
}

func TestRotateSecret(t *testing.T) {
	w := start(t, simulator.Quirks{})
	w.service.SetWebhook("https://relay.example.com/x", "whsec_first")
	second, err := w.client.RotateSecret(t.Context())
	if err != nil || second == "" || second == "whsec_first" {
		t.Fatalf("rotated to %q, %v", second.Reveal(), err)
	}
	if got, err := w.client.Notifications(t.Context()); err != nil || got.WebhookSecret != second {
		t.Errorf("the settings have %q: %v", got.WebhookSecret.Reveal(), err)
	}
}

// TestHistory reads months of it, page by page.
func TestHistory(t *testing.T) {
	for name, q := range quirks {
		t.Run(name, func(t *testing.T) {
			w := start(t, q)
			first := w.now
			const uploads = 430
			for i := range uploads {
				if err := w.service.Upload(t.Context(), i%10 == 0); err != nil {
					t.Fatal(err)
				}
				w.now = w.now.Add(9 * time.Hour) // five months in all
			}
			var got []uploadpost.Upload
			seen := map[string]bool{}
			for u, err := range w.client.History(t.Context(), uploadpost.Query{From: first, To: w.now}) {
				if err != nil {
					t.Fatal(err)
				}
				if seen[u.RequestID] {
					t.Errorf("%s comes twice", u.RequestID)
				}
				seen[u.RequestID] = true
				got = append(got, u)
			}
			if len(got) != uploads {
				t.Fatalf("%d uploads, want %d", len(got), uploads)
			}
			failed := 0
			for i, u := range got {
				if at := first.Add(time.Duration(uploads-1-i) * 9 * time.Hour); !u.At.Equal(at) {
					t.Fatalf("upload %d is of %v, want %v", i, u.At, at)
				}
				if !u.Success {
					failed++
				}
				if u.Success != (len(u.PostIDs) == 1) || u.Success != (u.Error == "") || u.Platform == "" || u.Profile == "" || u.JobID == "" {
					t.Errorf("upload %d: %+v", i, u)
				}
			}
			if failed != uploads/10 {
				t.Errorf("%d failed", failed)
			}
			some := 0
			for u, err := range w.client.History(t.Context(), uploadpost.Query{From: first, To: w.now, Platform: "tiktok", Status: "failed"}) {
				if err != nil || u.Platform != "tiktok" || u.Success {
					t.Errorf("filtered: %+v, %v", u, err)
				}
				some++
			}
			if some == 0 || some >= failed {
				t.Errorf("%d are of tiktok and failed", some)
			}
		})
	}
}

// TestHistoryOfAnotherShape: the error says what is wrong with the answer.
func TestHistoryOfAnotherShape(t *testing.T) {
	for answer, says := range map[string]string{
		`{"success":true,"rows":[]}`:                "there is no list of uploads in it",
		`{"success":true,"history":{"total":0}}`:    "there is no list of uploads in it",
		`{"success":true,"history":[{"job_id":1}]}`: "job_id is of type number",
		`{"success":true,"history":`:                "it is not JSON",
		`7`:                                         "it is of type number",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(answer))
		}))
		transport := &http.Transport{}
		c := newClient(t, uploadpost.Options{BaseURL: server.URL, APIKey: apiKey, Transport: transport})
		for u, err := range c.History(t.Context(), uploadpost.Query{From: time.Unix(1e9, 0), To: time.Unix(1e9+60, 0)}) {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s gives %+v, %v", answer, u, err)
			}
		}
		transport.CloseIdleConnections()
		server.Close()
	}
}

// TestChannelsAsAList, as the service's Node client sends them.
func TestChannelsAsAList(t *testing.T) {
	var n uploadpost.Notifications
	if err := json.Unmarshal([]byte(`{"channels":["webhook"],"webhook_events":null}`), &n); err != nil || !n.Channels["webhook"] || n.WebhookEvents != nil {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestRetries: what the service asks to wait is waited, what it refuses is not
// asked again.
func TestRetries(t *testing.T) {
	type answer struct {
		status int
		header map[string]string
		body   string
	}
	const ok = `{"success":true,"notifications":{"webhook_url":"u"}}`
	for _, tt := range []struct {
		name    string
		answers []answer
		waits   []time.Duration // at least
		says    string          // of the error; empty is success
	}{
		{"at once", []answer{{200, nil, ok}}, nil, ""},
		{"seconds", []answer{{429, map[string]string{"Retry-After": "7"}, "{}"}, {200, nil, ok}}, []time.Duration{7 * time.Second}, ""},
		{"a date", []answer{{429, map[string]string{"Retry-After": "Fri, 01 May 2026 12:01:00 GMT"}, "{}"}, {200, nil, ok}}, []time.Duration{time.Minute}, ""},
		{"a time of reset", []answer{{429, map[string]string{"X-RateLimit-Reset": "1777636820"}, "{}"}, {200, nil, ok}}, []time.Duration{20 * time.Second}, ""},
		{"seconds to the reset", []answer{{429, map[string]string{"X-RateLimit-Reset": "30"}, "{}"}, {200, nil, ok}}, []time.Duration{30 * time.Second}, ""},
		{"too long", []answer{{429, map[string]string{"Retry-After": "3600"}, "{}"}}, nil, "come again in 1h0m0s"},
		{"their fault", []answer{{500, nil, "oops"}, {503, nil, "{}"}, {200, nil, ok}}, []time.Duration{0, 0}, ""},
		{"for ever", []answer{{500, nil, ""}, {500, nil, ""}, {500, nil, ""}, {500, nil, ""}, {500, nil, ""}}, []time.Duration{0, 0, 0, 0}, "answered 500"},
		{"a wrong key", []answer{{401, nil, `{"message":"Invalid API key"}`}}, nil, "is the API key right"},
		{"a refusal", []answer{{400, nil, `{"detail":"webhook_url must be https"}`}}, nil, "webhook_url must be https"},
		{"405", []answer{{405, nil, "Method Not Allowed"}}, nil, "as the documented host does at times"},
		{"a web page", []answer{{200, map[string]string{"Content-Type": "text/html"}, "<!DOCTYPE HTML><HTML>"}}, nil, "a web page in place of JSON"},
		{"a redirect", []answer{{302, map[string]string{"Location": "https://elsewhere.example"}, ""}}, nil, "not followed"},
		{"nothing that is JSON", []answer{{200, nil, "{"}}, nil, "not JSON"},
		{"another shape", []answer{{200, nil, `{"notifications":{"channels":"all"}}`}}, nil, "channels is of type string"},
		{"another list", []answer{{200, nil, `{"config":{"webhook_events":["a",1]}}`}}, nil, "webhook_events is of type number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			n := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if r.Header.Get("Authorization") != "Apikey "+apiKey {
					t.Errorf("the key is sent as %q", r.Header.Get("Authorization"))
				}
				if n >= len(tt.answers) {
					t.Error("it is asked again")
					return
				}
				a := tt.answers[n]
				n++
				w.Header().Set("Content-Type", "application/json")
				for name, value := range a.header {
					w.Header().Set(name, value)
				}
				w.WriteHeader(a.status)
				_, _ = w.Write([]byte(a.body))
			}))
			defer server.Close()
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			var waits []time.Duration
			c := newClient(t, uploadpost.Options{
				BaseURL: server.URL, APIKey: apiKey, Transport: transport,
				Now:  func() time.Time { return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC) },
				Wait: func(_ context.Context, d time.Duration) error { waits = append(waits, d); return nil },
			})
			got, err := c.Notifications(t.Context())
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %+v, %v", got, err)
			}
			if err == nil && got.WebhookURL != "u" {
				t.Errorf("got %+v", got)
			}
			if err != nil && strings.Contains(err.Error(), apiKey) {
				t.Errorf("the error shows the key: %v", err)
			}
			if n != len(tt.answers) || len(waits) != len(tt.waits) {
				t.Fatalf("%d requests, waits %v; want %d, %v", n, waits, len(tt.answers), tt.waits)
			}
			for i, least := range tt.waits {
				if waits[i] < least || waits[i] > least+time.Minute {
					t.Errorf("wait %d is %v, want %v", i, waits[i], least)
				}
			}
		})
	}
}

// TestRotationIsNotRepeated when nobody knows whether it took effect.
func TestRotationIsNotRepeated(t *testing.T) {
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n++
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer server.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := newClient(t, uploadpost.Options{BaseURL: server.URL, APIKey: apiKey, Transport: transport})
	_, err := c.RotateSecret(t.Context())
	if e, ok := errors.AsType[*uploadpost.Error](err); !ok || e.Status != http.StatusBadGateway || n != 1 {
		t.Errorf("%d requests: %v", n, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []uploadpost.Options{
		{}, {APIKey: " "}, {APIKey: "k", BaseURL: "api.upload-post.com"}, {APIKey: "k", BaseURL: "ftp://x"}, {APIKey: "k", BaseURL: "https://u:p@x"},
	} {
		if _, err := uploadpost.New(o); err == nil {
			t.Errorf("%v is taken", fmt.Sprint(o.BaseURL))
		}
	}
}
