package ingress_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/ingress"
)

// forwarding serves a forwarder, and returns the address.
func forwarding(t *testing.T, c config.Server, to string) string {
	t.Helper()
	f, err := ingress.NewForwarder(c, to, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		if err := f.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := f.Shutdown(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		served.Wait()
	})
	return l.Addr().String()
}

// A forwarder passes the request as it came, and the answer as it came.
func TestForwarder(t *testing.T) {
	founder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Host != "hooks.example.com" || r.URL.RequestURI() != "/hooks/a%2Fb?x=1;y" || r.Header.Get("X-Signature") != "abc" || string(body) != "{}" {
			t.Errorf("passed on: %s %s %v %q", r.Host, r.URL.RequestURI(), r.Header, body)
		}
		if from := r.Header.Values("X-Forwarded-For"); len(from) != 2 || from[0] != "192.0.2.1" || from[1] != "127.0.0.1" {
			t.Errorf("the sender is %v", from)
		}
		switch r.Header.Get("X-Case") {
		case "refused":
			w.WriteHeader(http.StatusUnauthorized)
		case "address":
			w.WriteHeader(http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusAccepted)
		}
		_, _ = io.WriteString(w, "answer")
	}))
	defer founder.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	c := config.Default().Server
	for _, row := range []struct {
		name, to, what string
		status         int
	}{
		{"stored", founder.URL, "", http.StatusAccepted},
		{"wrong signature", founder.URL, "refused", http.StatusUnauthorized},
		{"the address of the forwarder is refused", founder.URL, "address", http.StatusServiceUnavailable},
		{"the founder is away", gone.URL, "", http.StatusServiceUnavailable},
		{"the founder itself", "", "", http.StatusServiceUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			req, err := http.NewRequest(http.MethodPost, "http://"+forwarding(t, c, row.to)+"/hooks/a%2Fb?x=1;y", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "hooks.example.com"
			req.Header.Set("X-Signature", "abc")
			req.Header.Set("X-Case", row.what)
			req.Header.Set("X-Forwarded-For", "192.0.2.1")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != row.status {
				t.Errorf("answered %s: %s", resp.Status, body)
			}
			if own := resp.StatusCode == http.StatusServiceUnavailable; own != (resp.Header.Get("Retry-After") != "") || own == (string(body) == "answer") {
				t.Errorf("answered %v: %s", resp.Header, body)
			}
		})
	}
}

// Relays share a certificate, so a forwarder trusts this certificate alone.
func TestForwarderOverTLS(t *testing.T) {
	c := config.Default().Server
	c.TLS.CertFile, c.TLS.KeyFile = selfsigned.Certificate(t, t.TempDir(), "hooks.example.com")
	other := config.Default().Server
	other.TLS.CertFile, other.TLS.KeyFile = selfsigned.Certificate(t, t.TempDir(), "hooks.example.com")
	for name, row := range map[string]struct {
		founder config.Server
		status  int
	}{
		"the certificate of the relay": {c, http.StatusAccepted},
		"another certificate":          {other, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := tls.LoadX509KeyPair(row.founder.TLS.CertFile, row.founder.TLS.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			founder := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
			founder.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
			founder.StartTLS()
			defer founder.Close()
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
			resp, err := client.Post("https://"+forwarding(t, c, founder.URL)+"/hooks", "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != row.status {
				t.Errorf("answered %s", resp.Status)
			}
		})
	}
}
