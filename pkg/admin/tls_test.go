package admin

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/selfsigned"
)

// secured serves the world's API over TLS.
func (w *world) secured(t *testing.T, files config.ServerTLS) (base string) {
	t.Helper()
	address, stop := w.serve(t, Options{Metrics: w.metrics(), TLS: files, MaxConnectionAge: time.Hour})
	t.Cleanup(stop)
	return "https://" + address
}

// fetched asks a path, with client certificates.
func fetched(t *testing.T, url string, certificates ...tls.Certificate) (*http.Response, string, error) {
	t.Helper()
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func TestTLS(t *testing.T) {
	w := newWorld(t, operatorToken)
	dir := t.TempDir()
	var files config.ServerTLS
	files.CertFile, files.KeyFile = selfsigned.Certificate(t, dir, "first")
	base := w.secured(t, files)
	resp, text, err := fetched(t, base+BasePath+"/session")
	if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
		t.Fatalf("answered %v %s, %v", resp, text, err)
	}
	certificate := resp.TLS.PeerCertificates[0]
	if got := testutil.ToFloat64(expiryOf(t, w)); int64(got) != certificate.NotAfter.Unix() {
		t.Errorf("the metric says that the certificate ends at %v", got)
	}
	// The cookie of a console over TLS is sent over nothing else.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	in, err := (&http.Client{Transport: transport}).Post(base+BasePath+"/session", "application/json", strings.NewReader(`{"token":"`+viewerToken+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Body.Close()
	if c := in.Cookies(); len(c) != 1 || !c[0].Secure || !c[0].HttpOnly {
		t.Errorf("the cookie is %v", c)
	}
	_, plain, err := fetched(t, strings.Replace(base, "https", "http", 1)+BasePath+"/session")
	if err != nil || !strings.Contains(plain, "HTTPS server") {
		t.Errorf("without TLS: %s, %v", plain, err)
	}
	c := &Client{URL: strings.Replace(base, "https", "http", 1), HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "use https://") {
		t.Errorf("the client without TLS: %v", err)
	}
	selfsigned.Certificate(t, dir, "second")
	eventually(t, "the new certificate is served", func() bool {
		resp, _, err := fetched(t, base+"/livez")
		return err == nil && resp.TLS.PeerCertificates[0].Subject.CommonName == "second"
	})
}

func expiryOf(t *testing.T, w *world) prometheus.Collector {
	t.Helper()
	return w.metrics().expiry
}

// With a client CA nothing is answered without a certificate but what a kubelet asks,
// which has none.
func TestClientCertificates(t *testing.T) {
	w := newWorld(t, operatorToken)
	var files config.ServerTLS
	files.CertFile, files.KeyFile = selfsigned.Certificate(t, t.TempDir(), "server")
	clientFile, clientKey := selfsigned.Certificate(t, t.TempDir(), "client")
	files.ClientCAFile = clientFile
	base := w.secured(t, files)
	client, err := tls.LoadX509KeyPair(clientFile, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	other, err := tls.LoadX509KeyPair(selfsigned.Certificate(t, t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{"/metrics", "/", "/console/", BasePath + "/openapi.json", BasePath + "/session", BasePath + "/status", "/api/asyncapi", "/livez/", "/livez/../metrics", "//livez", "/nowhere"}
	for _, path := range paths {
		if resp, text, err := fetched(t, base+path); err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(text, "client certificate") || !resp.Close {
			t.Errorf("%s without a certificate: %v %s, %v", path, resp, text, err)
		}
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if resp, _, err := fetched(t, base+path); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s without a certificate: %v, %v", path, resp, err)
		}
	}
	for _, path := range []string{"/metrics", BasePath + "/status", "/livez"} {
		if resp, text, err := fetched(t, base+path, client); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s with a certificate: %v %s, %v", path, resp, text, err)
		}
		if resp, _, err := fetched(t, base+path, other); path != "/livez" && err == nil && resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s with a certificate of another authority: %v", path, resp.Status)
		}
	}
}

func TestTLSFilesThatAreMissing(t *testing.T) {
	_, err := New(Options{Gatherer: prometheus.NewRegistry(), Log: zap.NewNop(), TLS: config.ServerTLS{CertFile: "no.crt", KeyFile: "no.key"}})
	if err == nil || !strings.Contains(err.Error(), "admin.tls") || !strings.Contains(err.Error(), "no.crt") {
		t.Errorf("New = %v", err)
	}
}
