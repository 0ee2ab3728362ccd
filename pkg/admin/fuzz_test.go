package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// FuzzParameters sends paths, queries and bodies to the API as an operator: the API
// answers each of them without an error of the server, and soon.
func FuzzParameters(f *testing.F) {
	const token = "operator-0123456789"
	w := newWorld(f, token)
	if _, err := w.journal.Quarantine(f.Context(), journal.QuarantinedRequest{Source: "in", Received: time.Now(), Method: http.MethodPost, Path: "/in", Body: []byte("{"), Reason: "no event"}); err != nil {
		f.Fatal(err)
	}
	for _, target := range []string{
		"/events?limit=1&filter=type%20%3D%3D%20%27x%27", "/events?limit=-1", "/events?seq=99999999999999999999&id=%00", "/events/1?data=maybe", "/events/1/send",
		"/events/tail?seq=1", "/dlq?limit=1&sink=out&after=%ff", "/dlq/retry", "/dlq/out/1", "/quarantine/%2e%2e", "/replays", "/replays/x",
		"/sinks/out/pause", "/sinks//adopt", "/sources", "/status", "/log-level", "/configuration", "/registration/in", "/session", "/metrics?x=%zz", "/openapi.json?x",
	} {
		for method := range uint8(4) {
			f.Add(method, target, []byte(`{"sink":"out","from":"1","limit":0,"level":"debug","token":"`+token+`"}`))
		}
	}
	methods := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete}
	f.Fuzz(func(t *testing.T, method uint8, target string, body []byte) {
		r, err := http.NewRequest(methods[int(method)%len(methods)], "http://127.0.0.1"+BasePath+target, strings.NewReader(string(body)))
		if err != nil {
			return
		}
		ctx, hangUp := context.WithTimeout(t.Context(), 20*time.Millisecond) // a tail has no end
		defer hangUp()
		r = r.WithContext(ctx)
		r.RequestURI, r.RemoteAddr = r.URL.RequestURI(), "127.0.0.1:1"
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		answer := httptest.NewRecorder()
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			w.server.ServeHTTP(answer, r)
		}()
		select {
		case <-answered:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s %s is not answered, though the caller has hung up", r.Method, target)
		}
		if answer.Code >= http.StatusInternalServerError && ctx.Err() == nil && answer.Code != http.StatusServiceUnavailable {
			t.Errorf("%s %s is answered %d: %s", r.Method, target, answer.Code, answer.Body)
		}
	})
}
