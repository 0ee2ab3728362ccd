package httpserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestNoRequestIsCut sends requests all the time over connections that grow old: each
// request is answered, and connections are replaced.
func TestNoRequestIsCut(t *testing.T) {
	for name, major := range map[string]int{"HTTP/1.1": 1, "HTTP/2": 2} {
		t.Run(name, func(t *testing.T) {
			var connections atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != major {
					t.Errorf("a request came by %s", r.Proto)
				}
				if _, ok := Expiry(r.Context()); !ok {
					t.Error("the request's context does not tell the connection's expiry")
				}
				_, _ = io.Copy(w, r.Body)
			}))
			srv.EnableHTTP2 = major == 2
			srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
				connections.Add(1)
				return ctx
			}
			LimitAge(srv.Config, 20*time.Millisecond)
			srv.StartTLS()
			defer srv.Close()
			var senders sync.WaitGroup
			for range 4 {
				senders.Go(func() {
					for range 150 {
						resp, err := srv.Client().Post(srv.URL, "text/plain", strings.NewReader("ping"))
						if err != nil {
							t.Errorf("a request was cut: %v", err)
							return
						}
						body, err := io.ReadAll(resp.Body)
						_ = resp.Body.Close()
						if err != nil || string(body) != "ping" {
							t.Errorf("answered %q, %v", body, err)
						}
					}
				})
			}
			senders.Wait()
			if n := connections.Load(); n < 3 {
				t.Errorf("%d connections were made, none was replaced", n)
			}
		})
	}
}
