package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

// balancer leads new connections to one server, as a Service of Kubernetes does.
type balancer struct{ server atomic.Pointer[string] }

func (b *balancer) lead(w *world) {
	address := strings.TrimPrefix(w.url, "http://")
	b.server.Store(&address)
}

func (b *balancer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, *b.server.Load())
}

// client makes a client with connections of its own.
func (b *balancer) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: b.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1,
	}}
}

func post(ctx context.Context, c *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(sample.Example()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if strings.HasPrefix(url, "http:") {
		// net/http would repeat a request whose connection was cut, and other senders do
		// not. With HTTP/2, a GOAWAY says which requests the server has not seen, and
		// every client repeats such a request.
		req.GetBody = nil
	}
	resp, err := c.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	return resp, err
}

// Senders with kept connections lose no request when one server after the other drains for
// server.shutdown_delay and then shuts down.
func TestNoRequestIsCutByAShutdown(t *testing.T) {
	const (
		rounds  = 24
		senders = 4
		delay   = 400 * time.Millisecond
	)
	for name, secure := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config.Default().Server
			scheme := "http"
			if secure {
				scheme = "https"
				c.TLS.CertFile, c.TLS.KeyFile = selfsigned.Certificate(t, t.TempDir(), "hooks")
			}
			var b balancer
			current := serve(t, c, nil)
			b.lead(current)
			ctx, stop := context.WithCancel(t.Context())
			var sending sync.WaitGroup
			var sent, cut atomic.Int64
			shared := b.client() // of a sender with concurrent requests on one connection
			defer shared.CloseIdleConnections()
			for n := range senders {
				client := shared
				if !secure || n == 0 {
					client = b.client()
					defer client.CloseIdleConnections()
				}
				sending.Go(func() {
					for ctx.Err() == nil {
						resp, err := post(t.Context(), client, scheme+"://hooks/open")
						if sent.Add(1); err != nil {
							cut.Add(1)
							t.Errorf("a request was cut: %v", err)
						} else if resp.StatusCode >= 300 || secure != (resp.ProtoMajor == 2) {
							t.Errorf("a request by %s was answered %s", resp.Proto, resp.Status)
						}
						time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
					}
				})
			}
			for range rounds {
				next := serve(t, c, nil)
				time.Sleep(20 * time.Millisecond)
				current.server.Drain()
				time.Sleep(delay / 2) // the balancer notices late
				b.lead(next)
				time.Sleep(delay / 2)
				if err := current.server.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				current = next
			}
			stop()
			sending.Wait()
			if n := sent.Load(); n < rounds*senders {
				t.Errorf("only %d requests were sent", n)
			}
			if n := cut.Load(); n > 0 {
				t.Errorf("%d of %d requests were cut in %d shutdowns", n, sent.Load(), rounds)
			}
		})
	}
}

// While the server drains, an answer ends its connection, and a connection without a request
// stays open: a request may be on its way there.
func TestIdleConnectionsOutliveTheDrain(t *testing.T) {
	w := serve(t, config.Default().Server, nil)
	var b balancer
	b.lead(w)
	busy, idle := b.client(), b.client()
	defer busy.CloseIdleConnections()
	defer idle.CloseIdleConnections()
	for _, c := range []*http.Client{busy, idle} {
		if resp, err := post(t.Context(), c, "http://hooks/open"); err != nil || resp.Close {
			t.Fatalf("before the drain: %v, close: %v", err, resp != nil && resp.Close)
		}
	}
	w.server.Drain()
	for what, c := range map[string]*http.Client{"a request on a kept connection": busy, "a request on a new connection": busy, "a request on a connection that was idle since": idle} {
		resp, err := post(t.Context(), c, "http://hooks/open")
		if err != nil || resp.StatusCode != http.StatusOK || !resp.Close {
			t.Errorf("%s: %v, %+v", what, err, resp)
		}
	}
}
