package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a served ingress on a real journal.
type world struct {
	url     string
	journal journal.Journal
	server  *Server
	logs    *observer.ObservedLogs
	metrics *Metrics

	registry *prometheus.Registry // of metrics
}

// broken is a journal that fails.
type broken struct{ err error }

func (b broken) Append(context.Context, ...event.Event) ([]journal.Receipt, error) {
	return nil, b.err
}

func (b broken) Quarantine(context.Context, journal.QuarantinedRequest) (string, error) {
	return "", b.err
}

// panicking is a source with a defect.
type panicking struct{ source.Source }

func (panicking) Verify(*source.Request) error { panic("user_email=secret@example.com") }

const secret = "whsec_of_the_tests"

func newSource(t testing.TB, a auth.Auth) source.Source {
	t.Helper()
	p, err := uploadpost.New(uploadpost.Config{Timezone: "UTC", Auth: a}, source.Env{Name: "upload-post"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func serve(t testing.TB, c config.Server, appender journal.Appender) *world {
	t.Helper()
	signed := auth.Auth{Signature: &auth.Signature{Secrets: []config.Secret{secret}}}
	local := auth.Auth{IPAllow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	return serveRoutes(t, Options{Config: c, Journal: appender, Routes: []Route{
		routeTo("signed", newSource(t, signed), source.Rate{}),
		routeTo("open", newSource(t, auth.Auth{None: true}), source.Rate{}),
		routeTo("listed", newSource(t, local), source.Rate{}),
		routeTo("slow", newSource(t, auth.Auth{None: true}), source.Rate{PerSecond: 0.1, Burst: 1}),
		routeTo("defect", panicking{newSource(t, auth.Auth{None: true})}, source.Rate{}),
	}})
}

// routeTo leads from /name to a source.
func routeTo(name string, s source.Source, r source.Rate) Route {
	return Route{Name: name, Source: s, Settings: source.Settings{Paths: []string{"/" + name}, Rate: r}}
}

// serveRoutes serves what opts say; without a journal, on one in memory.
func serveRoutes(t testing.TB, opts Options) *world {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	registry := prometheus.NewRegistry()
	w := &world{logs: logs, metrics: NewMetrics(registry), registry: registry}
	if opts.Journal == nil {
		j, err := local.Open(local.Options{Dir: "data", FS: vfs.NewMem(), Window: time.Hour, Retention: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		w.journal, opts.Journal = j, j
	}
	opts.Log, opts.Metrics = zap.New(core), w.metrics
	var err error
	if w.server, err = New(opts); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(l) }()
	t.Cleanup(func() {
		if err := w.server.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	w.url = "http://" + l.Addr().String()
	return w
}

// sign adds the sender's headers.
func sign(t *testing.T, h http.Header, secret string, body []byte) {
	t.Helper()
	if err := auth.UploadPost.Sign(h, secret, "", time.Now(), body); err != nil {
		t.Fatal(err)
	}
}

// do makes a request, signed where signWith is not empty.
func (w *world) do(t *testing.T, method, path, signWith string, body []byte, header ...string) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if signWith != "" {
		sign(t, req.Header, signWith, body)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var decoded map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&decoded); err != nil {
		t.Fatalf("the answer is not JSON: %v", err)
	}
	return resp, decoded
}

// TestAnswers is the table of answers of the contract.
func TestAnswers(t *testing.T) {
	c := config.Default().Server
	c.MaxBodyBytes = 4096
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	w := serve(t, c, nil)
	example := sample.Example()
	const id = "upload_completed/instagram/17987654321098765/success"
	for _, tt := range []struct {
		name, method, path, secret string
		body                       []byte
		header                     []string
		want                       int
		status, id                 string // of a 2xx
		wantHeader                 [2]string
	}{
		{name: "stored", path: "/signed", secret: secret, body: example, want: 202, status: "accepted", id: id},
		{name: "duplicate", path: "/signed", secret: secret, body: example, want: 200, status: "duplicate", id: id},
		{name: "authenticated, not JSON", path: "/signed", secret: secret, body: []byte("hello"), want: 202, status: "quarantined"},
		{name: "authenticated, no event", path: "/signed", secret: secret, body: []byte("{}"), want: 202, status: "quarantined"},
		{name: "authenticated, empty", path: "/signed", secret: secret, want: 202, status: "quarantined"},
		{name: "unauthenticated source, not JSON", path: "/open", body: []byte("hello"), want: 400},
		{name: "no signature", path: "/signed", body: example, want: 401, wantHeader: [2]string{"WWW-Authenticate", "Webhook"}},
		{name: "wrong signature", path: "/signed", secret: "whsec_of_another_one", body: example, want: 401},
		{name: "stale timestamp", path: "/signed", secret: secret, body: example, header: []string{uploadpost.TimestampHeader, "1000"}, want: 401},
		{name: "address not allowed", path: "/listed", body: example, want: 403},
		{name: "address allowed behind the proxy", path: "/listed", body: example, header: []string{"X-Forwarded-For", "198.51.100.7, 203.0.113.9"}, want: 200, status: "duplicate", id: id},
		{name: "address not allowed behind the proxy", path: "/listed", body: example, header: []string{"X-Forwarded-For", "203.0.113.9, 198.51.100.7"}, want: 403},
		{name: "unknown path", path: "/other", body: example, want: 404},
		{name: "path with a slash more", path: "/signed/", body: example, want: 404},
		{name: "wrong method", method: "GET", path: "/signed", want: 405, wantHeader: [2]string{"Allow", "POST"}},
		{name: "wrong method with a body", method: "PUT", path: "/signed", body: example, want: 405},
		{name: "too large", path: "/signed", secret: secret, body: make([]byte, 4097), want: 413},
		{name: "as large as may be", path: "/signed", secret: secret, body: bytes.Repeat([]byte(" "), 4096), want: 202, status: "quarantined"},
		{name: "within the rate", path: "/slow", body: example, want: 200, status: "duplicate", id: id},
		{name: "over the rate", path: "/slow", body: example, want: 429, wantHeader: [2]string{"Retry-After", "10"}},
		{name: "defect", path: "/defect", body: example, want: 500},
		{name: "after the defect", path: "/signed", secret: secret, body: example, want: 200, status: "duplicate", id: id},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = http.MethodPost
			}
			resp, body := w.do(t, tt.method, tt.path, tt.secret, tt.body, tt.header...)
			if resp.StatusCode != tt.want {
				t.Fatalf("answered %s %v, want %d", resp.Status, body, tt.want)
			}
			if tt.wantHeader[0] != "" && resp.Header.Get(tt.wantHeader[0]) != tt.wantHeader[1] {
				t.Errorf("header %s is %q, want %q", tt.wantHeader[0], resp.Header.Get(tt.wantHeader[0]), tt.wantHeader[1])
			}
			if resp.Header.Get("X-Request-Id") == "" {
				t.Error("the answer has no request id")
			}
			if tt.want < 300 {
				if resp.Header.Get("Content-Type") != "application/json" || body["status"] != tt.status || len(body) != 2 {
					t.Errorf("answered %s %v, want status %s", resp.Header.Get("Content-Type"), body, tt.status)
				}
				if body["id"] == "" || tt.id != "" && body["id"] != tt.id {
					t.Errorf("id is %q, want %q", body["id"], tt.id)
				}
				return
			}
			if resp.Header.Get("Content-Type") != "application/problem+json" || body["status"] != float64(tt.want) ||
				body["title"] != http.StatusText(tt.want) || body["type"] != "about:blank" || body["detail"] == "" {
				t.Errorf("answered %s %v, want a problem as in RFC 9457", resp.Header.Get("Content-Type"), body)
			}
		})
	}

	quarantined := 0
	for r, err := range w.journal.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		quarantined++
		if r.Header.Get(uploadpost.SignatureHeader) != "" || r.Header.Get(uploadpost.TimestampHeader) == "" {
			t.Errorf("the kept header is %v, want it less the signature", r.Header)
		}
		if r.Source != "signed" || r.Reason == "" {
			t.Errorf("quarantined: %+v", r)
		}
	}
	if quarantined != 4 {
		t.Errorf("%d requests are quarantined, want 4", quarantined)
	}
	for _, entry := range w.logs.All() {
		text := fmt.Sprint(entry.Message, entry.ContextMap())
		for _, personal := range []string{"example.com", "Awesome", "Check this out", secret} {
			if strings.Contains(text, personal) {
				t.Errorf("the log holds %q: %s", personal, text)
			}
		}
	}
	if n := testutil.ToFloat64(w.metrics.requests.WithLabelValues("signed", "accepted")); n != 1 {
		t.Errorf("%v requests are counted as accepted, want 1", n)
	}
	if n := testutil.ToFloat64(w.metrics.requests.WithLabelValues("signed", "quarantined")); n != 4 {
		t.Errorf("%v requests are counted as quarantined, want 4", n)
	}
}

func TestJournalFails(t *testing.T) {
	for _, err := range []error{journal.ErrFull, journal.ErrUnavailable, journal.ErrClosed, context.DeadlineExceeded} {
		w := serve(t, config.Default().Server, broken{err})
		for _, body := range [][]byte{sample.Example(), []byte("odd")} {
			resp, decoded := w.do(t, http.MethodPost, "/signed", secret, body)
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%v: answered %s %v, Retry-After %q", err, resp.Status, decoded, resp.Header.Get("Retry-After"))
			}
		}
	}
}

func TestTimeIsCounted(t *testing.T) {
	w := serve(t, config.Default().Server, nil)
	w.do(t, http.MethodPost, "/open", "", []byte(`{"event":"a","created_at":"never"}`))
	w.do(t, http.MethodPost, "/open", "", []byte(`{"event":"a","created_at":"2024-01-01T00:00:00"}`))
	if n := testutil.ToFloat64(w.metrics.timeless.WithLabelValues("open")); n != 1 {
		t.Errorf("%v events are counted as without time, want 1", n)
	}
}

func TestTwins(t *testing.T) {
	w := serve(t, config.Default().Server, nil)
	answers := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			_, body := w.do(t, http.MethodPost, "/signed", secret, sample.Example())
			mu.Lock()
			defer mu.Unlock()
			answers[fmt.Sprint(body["status"])]++
		})
	}
	wg.Wait()
	if answers["accepted"] != 1 || answers["duplicate"] != 99 {
		t.Errorf("answers: %v", answers)
	}
}

// TestSlowBody: a body that stops arriving costs its own connection, in time.
func TestSlowBody(t *testing.T) {
	c := config.Default().Server
	c.ReadTimeout = 50 * time.Millisecond
	w := serve(t, c, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestTimeout || !resp.Close {
		t.Errorf("answered %s, close %v", resp.Status, resp.Close)
	}
}

func TestHeaderTooLarge(t *testing.T) {
	c := config.Default().Server
	c.MaxHeaderBytes = 1024
	w := serve(t, c, nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/open", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 10000))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestTLSIsReloaded(t *testing.T) {
	dir := t.TempDir()
	c := config.Default().Server
	c.TLS.CertFile, c.TLS.KeyFile = selfsigned.Certificate(t, dir, "first")
	w := serve(t, c, nil)
	addr := strings.TrimPrefix(w.url, "http://")
	served := func(certs ...tls.Certificate) (tls.ConnectionState, error) {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: certs, NextProtos: []string{"h2"}})
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		// In TLS 1.3 a refused client learns it when it reads.
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return tls.ConnectionState{}, err
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return tls.ConnectionState{}, err
		}
		return conn.ConnectionState(), nil
	}
	state, err := served()
	if err != nil {
		t.Fatal(err)
	}
	if name := state.PeerCertificates[0].Subject.CommonName; name != "first" || state.NegotiatedProtocol != "h2" {
		t.Errorf("served %q over %q", name, state.NegotiatedProtocol)
	}
	want := fmt.Sprintf("# HELP %[1]s Expiry of the TLS certificate of the webhook port, in Unix seconds: the earliest expiry in the chain. 0 without TLS.\n# TYPE %[1]s gauge\n%[1]s %[2]d\n",
		"postwire_tls_certificate_expiry_timestamp_seconds", state.PeerCertificates[0].NotAfter.Unix())
	if err := testutil.GatherAndCompare(w.registry, strings.NewReader(want), "postwire_tls_certificate_expiry_timestamp_seconds"); err != nil {
		t.Error(err)
	}
	// A broken file leaves the certificate in use; a good one replaces it.
	if err := os.WriteFile(c.TLS.CertFile, []byte("oops"), 0o600); err != nil {
		t.Fatal(err)
	}
	if state, err = served(); err != nil || state.PeerCertificates[0].Subject.CommonName != "first" {
		t.Errorf("with a broken file: %v", err)
	}
	selfsigned.Certificate(t, dir, "second")
	for end := time.Now().Add(10 * time.Second); ; {
		if state, err = served(); err == nil && state.PeerCertificates[0].Subject.CommonName == "second" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the new certificate is not served: %v", err)
		}
	}
}

func TestClientCertificateIsRequired(t *testing.T) {
	dir := t.TempDir()
	c := config.Default().Server
	c.TLS.CertFile, c.TLS.KeyFile = selfsigned.Certificate(t, dir, "server")
	c.TLS.ClientCAFile = c.TLS.CertFile
	w := serve(t, c, nil)
	post := func(certs ...tls.Certificate) error {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}}}
		defer client.CloseIdleConnections()
		resp, err := client.Post("https"+strings.TrimPrefix(w.url, "http")+"/open", "application/json", bytes.NewReader(sample.Example()))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := post(); err == nil {
		t.Error("a client without a certificate was served")
	}
	pair, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := post(pair); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}
}

func TestShutdownFinishesWhatIsUnderWay(t *testing.T) {
	w := serve(t, config.Default().Server, nil)
	r, body := io.Pipe()
	got := make(chan int, 1)
	// The client holds the body back until the handler asks for it.
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/open", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Expect", "100-continue")
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			got <- 0
			return
		}
		defer resp.Body.Close()
		got <- resp.StatusCode
	}()
	example := sample.Example()
	if _, err := body.Write(example[:10]); err != nil {
		t.Fatal(err)
	}
	down := make(chan error, 1)
	go func() { down <- w.server.Shutdown(context.Background()) }()
	for !w.server.closing.Load() {
		time.Sleep(time.Millisecond)
	}
	if _, err := body.Write(example[10:]); err != nil {
		t.Fatal(err)
	}
	if err := body.Close(); err != nil {
		t.Fatal(err)
	}
	if status := <-got; status != http.StatusAccepted {
		t.Errorf("answered %d", status)
	}
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// A request with chunks may have had a length too, by which a proxy saw another
// end of it: nothing behind it is taken for a request.
func TestNothingIsSmuggled(t *testing.T) {
	w := serve(t, config.Default().Server, nil)
	for _, header := range []string{"Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5", "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "POST /open HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n0\r\n\r\nGET /open HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(all), "HTTP/1.1 "); n != 1 || !strings.Contains(string(all), "Connection: close") {
			t.Errorf("%s: %d answers:\n%s", header, n, all)
		}
	}
}

// Bodies of all sizes arrive whole, with their length told before and without.
func TestBodiesArriveWhole(t *testing.T) {
	c := config.Default().Server
	w := serve(t, c, nil)
	for i, size := range []int{0, 1, freeBytes - 1, freeBytes, freeBytes + 1, 3*freeBytes + 7, int(c.MaxBodyBytes) - 100} {
		for _, chunked := range []bool{false, true} {
			body := fmt.Appendf(nil, `{"event":"e%d %v","fill":"%s"}`, i, chunked, strings.Repeat("x", size))
			var r io.Reader = bytes.NewReader(body)
			if chunked {
				r = io.MultiReader(r)
			}
			resp, err := http.Post(w.url+"/open", "application/json", r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusAccepted {
				t.Fatalf("a body of %d bytes was answered %s", len(body), resp.Status)
			}
			records, err := w.journal.Read(t.Context(), w.journal.Last(), 1)
			if err != nil || len(records) != 1 {
				t.Fatalf("%d records, %v", len(records), err)
			}
			if !bytes.Equal(records[0].Event.CloudEvent.Data(), body) {
				t.Errorf("a body of %d bytes did not arrive whole", len(body))
			}
		}
	}
}

// asking is a source whose every webhook is a challenge.
type asking struct{ source.Source }

func (asking) Normalize(r *source.Request) ([]event.Event, error) {
	return nil, &source.ChallengeError{Answer: string(r.Body)}
}

// A challenge is answered with its own text, which is no page and is not stored.
func TestChallengeIsAnswered(t *testing.T) {
	signed := auth.Auth{Signature: &auth.Signature{Secrets: []config.Secret{secret}}}
	w := serveRoutes(t, Options{Config: config.Default().Server, Routes: []Route{routeTo("ask", asking{newSource(t, signed)}, source.Rate{})}})
	for _, tt := range []struct {
		secret, want string
		code         int
	}{
		{secret, "<b>3eZbrw1aBm2rZgRNFdxV</b>", http.StatusOK},
		{"another", "Credentials are missing or not valid.", http.StatusUnauthorized},
	} {
		body := []byte("<b>3eZbrw1aBm2rZgRNFdxV</b>")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/ask", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		sign(t, req.Header, tt.secret, body)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != tt.code || !strings.Contains(string(text), tt.want) {
			t.Errorf("the answer is %s %s, %v", resp.Status, text, err)
		}
		if kind := resp.Header.Get("Content-Type"); tt.code == http.StatusOK &&
			(string(text) != tt.want || kind != "text/plain; charset=utf-8" || resp.Header.Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("it is sent as %v", resp.Header)
		}
	}
	if n := testutil.ToFloat64(w.metrics.requests.WithLabelValues("ask", "challenge")); n != 1 || w.journal.Last() != 0 {
		t.Errorf("%v challenges are counted, %d events are stored", n, w.journal.Last())
	}
	for _, entry := range w.logs.All() {
		if strings.Contains(fmt.Sprint(entry.Message, entry.ContextMap()), "3eZbrw1aBm2rZgRNFdxV") {
			t.Errorf("it is logged: %v", entry)
		}
	}
}

// What is set aside can be read again: method, path and query are with it, and
// nothing secret is.
func TestWhatIsSetAsideIsWhole(t *testing.T) {
	const token = "confidential-0123456789"
	w := serveRoutes(t, Options{Config: config.Default().Server, Routes: []Route{
		routeTo("in", newSource(t, auth.Auth{PathToken: &auth.PathToken{Tokens: []config.Secret{token}}}), source.Rate{}),
	}})
	for _, query := range []string{"a=b&a=c", "again=" + token} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/in/"+token+"?"+query, strings.NewReader("{"+query[:2]))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Original-Url", "/in/"+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatal(resp.Status)
		}
	}
	var got []string
	for r, err := range w.journal.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Method+" "+r.Path+" "+r.RawQuery)
		if kept := fmt.Sprintf("%+v", r); strings.Contains(kept, token) {
			t.Errorf("the token is kept: %s", kept)
		}
	}
	if want := []string{"POST /in a=b&a=c", "POST /in "}; !slices.Equal(got, want) {
		t.Errorf("kept are %q, want %q", got, want)
	}
}
