package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func server(t testing.TB, opts Options) *Server {
	t.Helper()
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestHealth(t *testing.T) {
	var journal error
	s := server(t, Options{
		Checks: []Check{
			{Name: "journal", Run: func() error { return journal }},
			{Name: "sources", Run: func() error { return nil }},
		},
		Gatherer: prometheus.NewRegistry(), Log: zap.NewNop(),
	})
	ready := func(status int, want health) {
		t.Helper()
		code, body := get(t, s, "/readyz")
		var got health
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" || code != status {
			t.Errorf("%d (-want +got):\n%s", code, diff)
		}
	}
	ready(200, health{"ok", map[string]string{"journal": "ok", "sources": "ok"}})
	journal = errors.New("no space left on device")
	ready(503, health{"failing", map[string]string{"journal": "no space left on device", "sources": "ok"}})
	if code, body := get(t, s, "/livez"); code != 200 || strings.TrimSpace(body) != `{"status":"ok"}` {
		t.Errorf("a process whose journal fails is alive: %d %s", code, body)
	}
	journal = nil
	ready(200, health{"ok", map[string]string{"journal": "ok", "sources": "ok"}})
	if code, _ := get(t, s, "/other"); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "postwire_test_total", Help: "Of the test."})
	r.MustRegister(c)
	c.Add(3)
	code, body := get(t, server(t, Options{Gatherer: r, Log: zap.NewNop()}), "/metrics")
	if code != 200 || !strings.Contains(body, "\npostwire_test_total 3\n") {
		t.Errorf("%d %s", code, body)
	}
}

func TestServeUntilShutdown(t *testing.T) {
	s := server(t, Options{Gatherer: prometheus.NewRegistry(), Log: zap.NewNop()})
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + l.Addr().String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if err := s.Serve(l); err != nil {
		t.Errorf("Serve on a server that was shut down: %v", err)
	}
}
