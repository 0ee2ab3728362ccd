package http

import (
	"fmt"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postwire/postwire/sinks"
)

// endpoint is a token endpoint that numbers its tokens.
type endpoint struct {
	*httptest.Server
	asked atomic.Int32
	fail  atomic.Bool
}

func startEndpoint(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{}
	e.Server = httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		n := e.asked.Add(1)
		id, secret, basic := r.BasicAuth()
		if e.fail.Load() || !basic || id != "relay" || secret != "s3cret-client" || r.FormValue("grant_type") != "client_credentials" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(nethttp.StatusUnauthorized)
			_, _ = fmt.Fprint(w, `{"error": "invalid_client", "error_description": "s3cret-answer"}`)
			return
		}
		if r.FormValue("audience") != "events" || r.FormValue("scope") != "a b" {
			t.Errorf("the request for a token is %v", r.Form)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token": "s3cret-token-%d", "token_type": "bearer", "expires_in": 3600}`, n)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) block() string {
	return "oauth2: {token_url: " + e.URL + "/s3cret-path, client_id: relay, client_secret: s3cret-client, scopes: [a, b], audience: events}\nmax_in_flight: 1\n"
}

func TestOAuth2(t *testing.T) {
	e := startEndpoint(t)
	var valid atomic.Value
	valid.Store("Bearer s3cret-token-1")
	r := start(t, func(_ nethttp.ResponseWriter, r request) int {
		if r.header.Get("Authorization") != valid.Load() {
			return nethttp.StatusUnauthorized
		}
		return nethttp.StatusNoContent
	})
	s := r.open(t, e.block())
	for range 3 {
		if err := deliver(t, s, numbered(1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := e.asked.Load(); n != 1 {
		t.Errorf("%d requests for a token, want one for all events", n)
	}
	valid.Store("Bearer s3cret-token-2") // the receiver takes the first token no longer
	if err := deliver(t, s, numbered(1)); err != nil || e.asked.Load() != 2 {
		t.Errorf("after 401: %v, %d requests for a token, want 2", err, e.asked.Load())
	}
	valid.Store("another") // the receiver takes no token: one new token, then no more
	for range 4 {
		if err := deliver(t, s, numbered(1)); err == nil || !strings.Contains(err.Error(), "check the credentials") {
			t.Errorf("deliver: %v", err)
		}
	}
	if n := e.asked.Load(); n != 3 {
		t.Errorf("%d requests for a token, want 3", n)
	}
	sink := s.(*Sink)
	sink.tokens.fetched = time.Now().Add(-refusedTokenAge)
	valid.Store("Bearer s3cret-token-4")
	if err := deliver(t, s, numbered(1)); err != nil {
		t.Errorf("a later token: %v", err)
	}
	sink.tokens.token.Expiry = time.Now()
	valid.Store("Bearer s3cret-token-5")
	if err := deliver(t, s, numbered(1)); err != nil {
		t.Errorf("after the expiry: %v", err)
	}
}

func TestOAuth2Fails(t *testing.T) {
	e := startEndpoint(t)
	r := start(t, func(nethttp.ResponseWriter, request) int { return nethttp.StatusNoContent })
	s := r.open(t, e.block())
	e.fail.Store(true)
	s.(*Sink).tokens.token = nil
	after := deliver(t, s, numbered(2))
	if _, each := after.(sinks.BatchError); each { //nolint:errorlint // not wrapped
		t.Errorf("%v is about single events, want the whole sink", after)
	}
	_, opening := tryOpen(t, "url: "+r.URL+"\n"+e.block(), sinks.Env{})
	for _, err := range []error{after, opening} {
		text := fmt.Sprint(err)
		if !strings.Contains(text, "oauth2.token_url") || !strings.Contains(text, "401 Unauthorized: invalid_client") {
			t.Errorf("the error is %q", text)
		}
		if strings.Contains(text, "s3cret") {
			t.Errorf("a secret is shown: %s", text)
		}
	}
	if len(r.all()) != 0 {
		t.Error("a request has no token")
	}
}

// proxy is an HTTP proxy with a password.
func startProxy(t *testing.T, password string) (url string, seen func() []string) {
	t.Helper()
	var mu sync.Mutex
	var lines []string
	server := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		mu.Lock()
		lines = append(lines, r.Method+" "+r.Host)
		mu.Unlock()
		sent := nethttp.Request{Header: nethttp.Header{"Authorization": r.Header["Proxy-Authorization"]}}
		if _, given, _ := sent.BasicAuth(); given != password {
			w.WriteHeader(nethttp.StatusProxyAuthRequired)
			return
		}
		if r.Method != nethttp.MethodConnect {
			w.WriteHeader(nethttp.StatusNoContent)
			return
		}
		to, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", r.Host)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = to.Close() }()
		w.WriteHeader(nethttp.StatusOK)
		from, _, err := nethttp.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = from.Close() }()
		var both sync.WaitGroup
		both.Go(func() { pipe(to, from) })
		both.Go(func() { pipe(from, to) })
		both.Wait()
	}))
	t.Cleanup(server.Close)
	return server.URL, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), lines...)
	}
}

// pipe copies until one end is closed, and closes the other end.
func pipe(to, from net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
}

func TestProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // ignored
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	at, seen := startProxy(t, "s3cret")
	with := func(password string) string {
		return "proxy: " + strings.Replace(at, "http://", "http://relay:"+password+"@", 1) + "\n"
	}
	plain := start(t, func(nethttp.ResponseWriter, request) int { return nethttp.StatusNoContent })
	if err := deliver(t, plain.open(t, with("s3cret")), numbered(1)); err != nil {
		t.Error(err)
	}
	if got := seen(); len(got) != 1 || !strings.HasPrefix(got[0], "POST ") || len(plain.all()) != 0 {
		t.Errorf("the proxy saw %v, the receiver %d requests", got, len(plain.all()))
	}
	if err := deliver(t, plain.open(t, with("s3cret-wrong")), numbered(1)); err == nil || !strings.Contains(err.Error(), "407") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("deliver: %v", err)
	}
	secure, ca := startTLS(t)
	secure.answer = func(nethttp.ResponseWriter, request) int { return nethttp.StatusNoContent }
	tls := "tls: {enabled: true, ca_file: " + ca + "}\n"
	if err := deliver(t, secure.open(t, with("s3cret")+tls), numbered(1)); err != nil || len(secure.kept()) != 1 {
		t.Errorf("through CONNECT: %v", err)
	}
	err := deliver(t, secure.open(t, with("s3cret-wrong")+tls), numbered(1))
	if err == nil || !strings.Contains(err.Error(), "the proxy answers 407 Proxy Authentication Required; write a user name") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("deliver: %v", err)
	}
}

// Connections are replaced at max_connection_age, between two requests.
func TestMaxConnectionAge(t *testing.T) {
	for _, protocol := range []string{"http1", "http2"} {
		t.Run(protocol, func(t *testing.T) {
			var mu sync.Mutex
			dials, closed := 0, 0
			watch := func(_ net.Conn, state nethttp.ConnState) {
				mu.Lock()
				defer mu.Unlock()
				switch state { //nolint:exhaustive // the others do not matter
				case nethttp.StateNew:
					dials++
				case nethttp.StateClosed:
					closed++
				}
			}
			r, ca := startTLS(t, func(s *httptest.Server) {
				s.Config.ConnState = watch
				s.EnableHTTP2 = protocol == "http2"
			})
			s := r.open(t, "max_in_flight: 1\ntls: {enabled: true, ca_file: "+ca+"}\n").(*Sink)
			send := func() int {
				if err := deliver(t, s, numbered(1)); err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				defer mu.Unlock()
				return dials
			}
			first := send()
			if again := send(); again != first {
				t.Errorf("%d connections for two requests, want %d", again, first)
			}
			s.made = time.Now().Add(-5 * time.Minute)
			if again := send(); again != first+1 {
				t.Errorf("%d connections after the greatest age, want %d", again, first+1)
			}
			if protocol == "http2" { // closed at once if no stream is open, otherwise after IdleConnTimeout
				return
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				mu.Lock()
				n := closed
				mu.Unlock()
				if n == first {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d connections are closed, want %d", n, first)
				}
			}
		})
	}
}
