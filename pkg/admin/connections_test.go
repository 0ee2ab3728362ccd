package admin

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Strangers that hold every connection there may be, by saying nothing, by asking
// again and again or by not reading, shut out neither a probe nor an operator, and end
// no tail.
func TestStrangersHoldAllConnections(t *testing.T) {
	w := newWorld(t, operatorToken)
	address, stop := w.serve(t, Options{Metrics: w.metrics()})
	defer stop()
	operator := &Client{URL: "http://" + address, Token: operatorToken, HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}}
	base := w.client.URL
	w.client.URL = operator.URL
	ended := follow(t.Context(), t, w, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+bobToken) })
	w.client.URL = base
	for name, say := range map[string]string{
		"nothing":          "",
		"half a header":    "GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ",
		"a whole request":  "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
		"a request and on": "GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET",
	} {
		t.Run(name, func(t *testing.T) {
			for range maxConnections + 20 {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				if say == "" {
					continue
				}
				if _, err := conn.Write([]byte(say)); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(operator.URL + "/livez")
			if err != nil {
				t.Fatalf("a probe: %v", err)
			}
			_ = resp.Body.Close()
			if _, err := operator.Status(t.Context()); err != nil {
				t.Errorf("an operator: %v", err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("a probe and an operator waited %v", took)
			}
			select {
			case <-ended:
				t.Error("a tail was closed for strangers")
			default:
			}
		})
	}
	if testutil.ToFloat64(w.metrics().evicted) == 0 {
		t.Error("no connection that was closed is counted")
	}
}

// Among callers who have shown a token the one without progress for the longest
// makes room.
func TestConnectionsThatMakeRoom(t *testing.T) {
	evicted := 0
	c := newConnections(3, func() { evicted++ })
	open := func() *connection {
		here, there := net.Pipe()
		t.Cleanup(func() { _, _ = here.Close(), there.Close() })
		return c.enter(here)
	}
	first := open()
	second := open()
	third := open()
	for _, known := range []*connection{first, second, third} {
		known.prove()
	}
	c.progress(first, http.StateActive)
	if open(); evicted != 1 || second.in != nil || first.in == nil || third.in == nil {
		t.Errorf("%d made room, the wrong one", evicted)
	}
	second.prove() // it is on its way out
	if second.in != nil {
		t.Error("a connection that is closed is counted again")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if open(); evicted != 1 {
		t.Error("one makes room where there is some")
	}
}
