package ingress

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/cloudevents"
)

// TestConsent is the handshake of CloudEvents web hooks, and the events behind it.
func TestConsent(t *testing.T) {
	const token = "0123456789abcdef0123456789abcdef"
	events := func(a auth.Auth, rate source.Rate, origins ...string) source.Source {
		s, err := cloudevents.New(cloudevents.Config{Auth: a, AllowedOrigins: origins}, source.Env{Name: "events", Rate: rate})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	none := auth.Auth{None: true}
	inPath := auth.Auth{PathToken: &auth.PathToken{Tokens: []config.Secret{token}}}
	bearer := auth.Auth{Bearer: &auth.Bearer{Tokens: []config.Secret{token}}}
	slow := source.Rate{PerSecond: 0.1, Burst: 2}
	w := serveRoutes(t, Options{Config: config.Default().Server, Routes: []Route{
		routeTo("any", events(none, source.Rate{}, "*"), source.Rate{}),
		routeTo("azure", events(bearer, source.Rate{PerSecond: 2}, "azure.example"), source.Rate{PerSecond: 2}),
		routeTo("token", events(inPath, source.Rate{}, "*"), source.Rate{}),
		routeTo("slow", events(none, slow, "*"), slow),
		routeTo("closed", events(none, source.Rate{}), source.Rate{}),
		routeTo("uploads", newSource(t, none), source.Rate{}),
	}})
	for _, tt := range []struct {
		name, path, origin string
		want               int
		header             map[string]string // that the answer has; "" is not there
	}{
		{"any origin", "/any", "x.example", 200, map[string]string{"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "*", "Allow": "POST, OPTIONS"}},
		{"a listed one", "/azure", "azure.example", 200, map[string]string{"WebHook-Allowed-Origin": "azure.example", "WebHook-Allowed-Rate": "120", "Allow": "POST, OPTIONS"}},
		{"another one", "/azure", "x.example", 405, map[string]string{"WebHook-Allowed-Origin": "", "WebHook-Allowed-Rate": "", "Allow": "POST"}},
		{"no question", "/any", "", 405, map[string]string{"WebHook-Allowed-Origin": "", "Allow": "POST"}},
		{"nobody", "/closed", "x.example", 405, map[string]string{"WebHook-Allowed-Origin": "", "Allow": "POST"}},
		{"another kind of source", "/uploads", "x.example", 405, map[string]string{"WebHook-Allowed-Origin": "", "Allow": "POST"}},
		{"the token in the path", "/token/" + token, "x.example", 200, map[string]string{"WebHook-Allowed-Origin": "*"}},
		{"a wrong token in the path", "/token/" + token[1:], "x.example", 405, map[string]string{"WebHook-Allowed-Origin": ""}},
		{"no token in the path", "/token", "x.example", 405, map[string]string{"WebHook-Allowed-Origin": ""}},
		{"a token where none is asked for", "/any/" + token, "x.example", 404, map[string]string{"WebHook-Allowed-Origin": ""}},
		{"an unknown path", "/other", "x.example", 404, map[string]string{"WebHook-Allowed-Origin": ""}},
		{"within the rate", "/slow", "x.example", 200, map[string]string{"WebHook-Allowed-Rate": "6"}},
		{"within the burst", "/slow", "x.example", 200, nil},
		{"over the rate", "/slow", "x.example", 429, map[string]string{"Retry-After": "10", "WebHook-Allowed-Origin": ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, w.url+tt.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			if tt.origin != "" {
				req.Header.Set("WebHook-Request-Origin", tt.origin)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.want || tt.want == 200 && len(body) > 0 {
				t.Fatalf("answered %s %s, want %d", resp.Status, body, tt.want)
			}
			got := map[string]string{}
			for name := range tt.header {
				got[name] = resp.Header.Get(name)
			}
			if tt.header != nil {
				if diff := cmp.Diff(tt.header, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
	if n := testutil.ToFloat64(w.metrics.requests.WithLabelValues("any", "consented")); n != 1 {
		t.Errorf("%v requests are counted as consented, want 1", n)
	}
	// Who asks does not use up the share of who sends.
	const event = `{"specversion":"1.0","type":"t","source":"s","id":"%"}`
	one := strings.Replace(event, "%", "1", 1)
	for _, tt := range []struct {
		name, path, contentType, body string
		want                          int
		status, id                    string
	}{
		{"an event", "/slow", "application/cloudevents+json", one, 202, "accepted", "1"},
		{"its repeat", "/any", "application/cloudevents+json", one, 200, "duplicate", "1"},
		{"a batch with one that is new", "/any", "application/cloudevents-batch+json", "[" + one + "," + strings.Replace(event, "%", "2", 1) + "]", 202, "accepted", "2"},
		{"a batch of repeats", "/any", "application/cloudevents-batch+json", "[" + one + "," + strings.Replace(event, "%", "2", 1) + "]", 200, "duplicate", "1"},
		{"one twice in a batch", "/any", "application/cloudevents-batch+json", "[" + strings.Repeat(strings.Replace(event, "%", "3", 1)+",", 2) + one + "]", 202, "accepted", "3"},
		{"a batch of none", "/any", "application/cloudevents-batch+json", "[]", 202, "accepted", ""},
		{"a batch with one that makes no sense", "/any", "application/cloudevents-batch+json", "[" + strings.Replace(event, "%", "4", 1) + ",{}]", 400, "", ""},
		{"what was in it", "/any", "application/cloudevents+json", strings.Replace(event, "%", "4", 1), 202, "accepted", "4"},
		{"a version of long ago", "/any", "application/cloudevents+json", `{"specversion":"0.3","datacontentencoding":null}`, 400, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := w.do(t, http.MethodPost, tt.path, "", []byte(tt.body), "Content-Type", tt.contentType)
			if resp.StatusCode != tt.want || tt.want < 300 && (body["status"] != tt.status || body["id"] != tt.id) {
				t.Errorf("answered %s %v, want %d %s %s", resp.Status, body, tt.want, tt.status, tt.id)
			}
		})
	}
	resp, body := w.do(t, http.MethodPost, "/azure", "", []byte("[]"), "Content-Type", "application/cloudevents+json", "Authorization", "Bearer "+token)
	if resp.StatusCode != http.StatusAccepted || body["status"] != "quarantined" {
		t.Errorf("what is proven and makes no sense is answered %s %v", resp.Status, body)
	}
}
