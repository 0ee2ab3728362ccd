package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/forwarded"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

const pathToken = "tok3n-in-the-p~th"

// trace returns all that is left of the requests: logs, metrics, and what was
// set aside.
func (w *world) trace(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	for _, entry := range w.logs.All() {
		fmt.Fprintln(&text, entry.Message, entry.ContextMap(), entry.Stack)
	}
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		fmt.Fprintln(&text, family)
	}
	for r, err := range w.journal.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		kept, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s %s\n", kept, r.Body)
	}
	return text.String()
}

// raw posts to a target that no client would let pass.
func (w *world) raw(t *testing.T, target string, body []byte, header ...string) int {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: relay.example.com\r\nConnection: close\r\nContent-Length: %d\r\n", target, len(body))
	for i := 0; i+1 < len(header); i += 2 {
		text += header[i] + ": " + header[i+1] + "\r\n"
	}
	if _, err := conn.Write(append([]byte(text+"\r\n"), body...)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// TestPathToken: a token is one segment behind the path, and only that.
func TestPathToken(t *testing.T) {
	withToken := newSource(t, auth.Auth{PathToken: &auth.PathToken{Tokens: []config.Secret{"another-token-before", pathToken}}})
	beneath := routeTo("beneath", newSource(t, auth.Auth{None: true}), source.Rate{})
	beneath.Settings.Paths = []string{"/hook/a/beneath", "/hook/beneath"}
	w := serveRoutes(t, Options{Config: config.Default().Server, Routes: []Route{
		routeTo("hook", withToken, source.Rate{}), beneath,
		{Name: "root", Source: withToken, Settings: source.Settings{Paths: []string{"/"}}},
		routeTo("open", newSource(t, auth.Auth{None: true}), source.Rate{}),
	}})
	escaped := "%74" + pathToken[1:]
	for _, tt := range []struct {
		target string
		want   int
	}{
		{"/hook/" + pathToken, http.StatusAccepted},
		{"/hook/" + escaped, http.StatusAccepted},
		{"/hook/" + pathToken + "?a=b/c", http.StatusAccepted},
		{"http://relay.example.com/hook/" + pathToken, http.StatusAccepted},
		{"/" + pathToken, http.StatusAccepted},
		{"/hook/beneath", http.StatusAccepted}, // an exact path comes first
		{"/hook/a/beneath", http.StatusAccepted},

		{"/hook", http.StatusUnauthorized},
		{"/", http.StatusUnauthorized},
		{"/hook?" + pathToken, http.StatusUnauthorized},
		{"/hook/another-token", http.StatusUnauthorized},
		{"/hook/" + pathToken + "x", http.StatusUnauthorized},
		{"/hook/..", http.StatusUnauthorized},
		{"/hook/" + pathToken[1:], http.StatusUnauthorized},

		{"/hook/", http.StatusNotFound},
		{"/hook/" + pathToken + "/", http.StatusNotFound},
		{"/hook/" + pathToken + "/x", http.StatusNotFound},
		{"/hook//" + pathToken, http.StatusNotFound},
		{"/hook%2F" + pathToken, http.StatusNotFound},
		{"/hook%2f" + pathToken, http.StatusNotFound},
		{"/hook/" + pathToken + "%2F", http.StatusNotFound},
		{"/hook/x%2F..%2F" + pathToken, http.StatusNotFound},
		{"/hook/a%2Fbeneath", http.StatusNotFound},
		{"/x/../hook/" + pathToken, http.StatusNotFound},
		{"/open/" + pathToken, http.StatusNotFound},
		{"/hook/../open", http.StatusNotFound},
		{"%2Fopen", http.StatusBadRequest},
	} {
		body := fmt.Appendf(nil, `{"event":"e","target":%q}`, url.QueryEscape(strings.ReplaceAll(tt.target, pathToken, "")))
		if got := w.raw(t, tt.target, body); got != tt.want {
			t.Errorf("%s: answered %d, want %d", tt.target, got, tt.want)
		}
	}
	// Set aside, and proxies tell the URL in headers of their own.
	if got := w.raw(t, "/hook/"+escaped, []byte("not JSON"), "X-Original-Url", "/hook/"+escaped, "X-Forwarded-Uri", "/hook/"+pathToken, "X-Kept", "kept"); got != http.StatusAccepted {
		t.Errorf("what is not understood is answered %d", got)
	}
	if trace := w.trace(t); strings.Contains(trace, pathToken[1:]) || !strings.Contains(trace, "kept") || !strings.Contains(trace, "token behind the path is wrong") {
		t.Errorf("the token, or a part of it, is in what is left:\n%s", trace)
	}
}

// TestNothingSecretIsLeft: of every way, no secret and no proof is logged,
// measured or kept, whether the request was taken or refused.
func TestNothingSecretIsLeft(t *testing.T) {
	secret := config.Secret("c29tZXRoaW5nIHNlY3JldA")
	signature := func(preset auth.Preset) auth.Auth {
		return auth.Auth{Signature: &auth.Signature{Preset: preset, Secrets: []config.Secret{secret}}}
	}
	signed := func(preset auth.Preset) func(h http.Header, body []byte) error {
		return func(h http.Header, body []byte) error {
			return preset.Sign(h, secret.Reveal(), "msg_1", time.Now(), body)
		}
	}
	set := func(name, value string) func(h http.Header, body []byte) error {
		return func(h http.Header, _ []byte) error {
			h.Set(name, value)
			return nil
		}
	}
	for _, tt := range []struct {
		name  string
		auth  auth.Auth
		prove func(h http.Header, body []byte) error
	}{
		{"upload-post", signature(auth.UploadPost), signed(auth.UploadPost)},
		{"standard-webhooks", signature(auth.StandardWebhooks), signed(auth.StandardWebhooks)},
		{"github", signature(auth.GitHub), signed(auth.GitHub)},
		{"stripe", signature(auth.Stripe), signed(auth.Stripe)},
		{"slack", signature(auth.Slack), signed(auth.Slack)},
		{
			"basic",
			auth.Auth{Basic: &auth.Basic{Username: "hook", Passwords: []config.Secret{secret}}},
			set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("hook:"+secret.Reveal()))),
		},
		{"bearer", auth.Auth{Bearer: &auth.Bearer{Tokens: []config.Secret{secret}}}, set("Authorization", "Bearer "+secret.Reveal())},
		{"header", auth.Auth{Header: &auth.Header{Name: "x-token", Values: []config.Secret{secret}}}, set("X-Token", secret.Reveal())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := serveRoutes(t, Options{Config: config.Default().Server, Routes: []Route{routeTo("hook", newSource(t, tt.auth), source.Rate{})}})
			body := []byte("not JSON")
			h := http.Header{}
			if err := tt.prove(h, body); err != nil {
				t.Fatal(err)
			}
			var headers, proofs []string
			for name := range h {
				headers = append(headers, name, h.Get(name))
				if !strings.HasSuffix(name, "Timestamp") && !strings.HasSuffix(name, "Id") {
					proofs = append(proofs, h.Get(name))
				}
			}
			for _, sent := range []struct {
				body []byte
				want int
			}{{body, http.StatusAccepted}, {sample.Example(), map[bool]int{true: http.StatusUnauthorized, false: http.StatusAccepted}[tt.auth.Signature != nil]}} {
				if resp, answer := w.do(t, http.MethodPost, "/hook", "", sent.body, headers...); resp.StatusCode != sent.want {
					t.Errorf("answered %s %v, want %d", resp.Status, answer, sent.want)
				}
			}
			if resp, _ := w.do(t, http.MethodPost, "/hook", "", body); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("without proof: answered %s", resp.Status)
			}
			for i, value := range headers { // wrong, but nearly right
				if i%2 == 1 {
					headers[i] = value + "x"
				}
			}
			if resp, _ := w.do(t, http.MethodPost, "/hook", "", body, headers...); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("with wrong proof: answered %s", resp.Status)
			}
			trace := w.trace(t)
			if !strings.Contains(trace, "not JSON") || !strings.Contains(trace, "request refused") {
				t.Errorf("there is no trace of the requests:\n%s", trace)
			}
			for _, proof := range append(proofs, secret.Reveal()) {
				if strings.Contains(trace, proof) {
					t.Errorf("%s is in what is left:\n%s", proof, trace)
				}
			}
		})
	}
}

// TestReplay: a signed delivery that is repeated inside the tolerance is a
// duplicate by its content; outside it is refused.
func TestReplay(t *testing.T) {
	now := time.Now()
	signed := newSource(t, auth.Auth{Signature: &auth.Signature{Secrets: []config.Secret{secret}, Tolerance: time.Minute}})
	w := serveRoutes(t, Options{
		Config: config.Default().Server, Routes: []Route{routeTo("signed", signed, source.Rate{})},
		Now: func() time.Time { return now },
	})
	h := http.Header{}
	body := sample.Example()
	if err := auth.UploadPost.Sign(h, secret, "", now, body); err != nil {
		t.Fatal(err)
	}
	var headers []string
	for name := range h {
		headers = append(headers, name, h.Get(name))
	}
	for _, tt := range []struct {
		after  time.Duration
		want   int
		status any
	}{
		{0, http.StatusAccepted, "accepted"},
		{0, http.StatusOK, "duplicate"},
		{59 * time.Second, http.StatusOK, "duplicate"},
		{2 * time.Second, http.StatusUnauthorized, float64(http.StatusUnauthorized)},
	} {
		now = now.Add(tt.after)
		resp, answer := w.do(t, http.MethodPost, "/signed", "", body, headers...)
		if resp.StatusCode != tt.want || answer["status"] != tt.status {
			t.Errorf("%v later: answered %s %v, want %d %v", tt.after, resp.Status, answer, tt.want, tt.status)
		}
	}
}

// TestRequest: what a source sees of a request, in front of it a proxy or not.
func TestRequest(t *testing.T) {
	c := config.Default().Server
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s, err := New(Options{
		Config: c, Log: zap.NewNop(), Metrics: serve(t, c, nil).metrics,
		Routes: []Route{routeTo("hook", newSource(t, auth.Auth{PathToken: &auth.PathToken{Tokens: []config.Secret{pathToken}}}), source.Rate{})},
	})
	if err != nil {
		t.Fatal(err)
	}
	said := http.Header{"X-Forwarded-Proto": {"http, HTTPS"}, "X-Forwarded-Host": {"evil.example.com", "hooks.example.com"}}
	for _, tt := range []struct {
		name, remote, target string
		tls                  *tls.ConnectionState
		header               http.Header
		want                 source.Request // as far as it is compared
	}{
		{
			"direct", "192.0.2.1:1", "/hook/" + pathToken + "?a=1", nil, nil,
			source.Request{Scheme: "http", Host: "relay:8080", Path: "/hook", Token: pathToken, RawQuery: "a=1", Target: "/hook/" + pathToken + "?a=1"},
		},
		{
			"direct over TLS", "192.0.2.1:1", "/hook?", &tls.ConnectionState{}, nil,
			source.Request{Scheme: "https", Host: "relay:8080", Path: "/hook", Target: "/hook?"},
		},
		{
			"a stranger who says that it is a proxy", "192.0.2.1:1", "/hook", nil, said,
			source.Request{Scheme: "http", Host: "relay:8080", Path: "/hook", Target: "/hook"},
		},
		{
			"a trusted proxy", "10.1.2.3:1", "/hook", nil, said,
			source.Request{Scheme: "https", Host: "hooks.example.com", Path: "/hook", Target: "/hook"},
		},
		{
			"a trusted proxy that says nothing", "10.1.2.3:1", "/hook", nil, nil,
			source.Request{Scheme: "http", Host: "relay:8080", Path: "/hook", Target: "/hook"},
		},
		{
			"a trusted proxy that says something odd", "10.1.2.3:1", "/hook", nil,
			http.Header{"X-Forwarded-Proto": {"gopher"}, "X-Forwarded-Host": {""}},
			source.Request{Scheme: "http", Host: "relay:8080", Path: "/hook", Target: "/hook"},
		},
		{
			"a whole URL", "192.0.2.1:1", "http://relay:8080/hook/%74oken?a=%20", nil, nil,
			source.Request{Scheme: "http", Host: "relay:8080", Path: "/hook", Token: "token", RawQuery: "a=%20", Target: "/hook/%74oken?a=%20"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.ParseRequestURI(tt.target)
			if err != nil {
				t.Fatal(err)
			}
			hr := &http.Request{Method: http.MethodPost, URL: u, RequestURI: tt.target, Host: "relay:8080", RemoteAddr: tt.remote, TLS: tt.tls, Header: tt.header}
			rt, token := s.find(u)
			if rt == nil {
				t.Fatal("it leads nowhere")
			}
			got := s.request(hr, token, s.proxies().Remote(forwarded.Peer(hr), hr), []byte("body"))
			if got.Scheme != tt.want.Scheme || got.Host != tt.want.Host || got.Path != tt.want.Path || got.Token != tt.want.Token ||
				got.RawQuery != tt.want.RawQuery || got.Target != tt.want.Target || got.Method != http.MethodPost || string(got.Body) != "body" || got.Client != nil {
				t.Errorf("request is %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestSignedURL: a signature over the URL holds behind a trusted proxy.
func TestSignedURL(t *testing.T) {
	c := config.Default().Server
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	over := auth.Auth{Signature: &auth.Signature{Header: "X-Signature", Encoding: "base64", Signed: "{url}{body}", Secrets: []config.Secret{"s3cret"}, AllowWeak: true}}
	w := serveRoutes(t, Options{Config: c, Routes: []Route{routeTo("in", newSource(t, over), source.Rate{})}})
	// Made with: printf 'https://hooks.example.com/in?x=1{"a":1}' | openssl dgst -sha256 -hmac s3cret -binary | base64
	signature := []string{"X-Signature", "vefLfz291u2ndpuqmk4CnI8MJ1YIsEFT3vY1L60uqqw="}
	for _, tt := range []struct {
		target string
		header []string
		want   int
	}{
		{"/in?x=1", []string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "hooks.example.com"}, http.StatusAccepted}, // set aside: it has no event
		{"/in?x=2", []string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "hooks.example.com"}, http.StatusUnauthorized},
		{"/in?x=1", []string{"X-Forwarded-Proto", "http", "X-Forwarded-Host", "hooks.example.com"}, http.StatusUnauthorized},
		{"/in?x=1", []string{"X-Forwarded-Proto", "https"}, http.StatusUnauthorized},
		{"/in?x=1", nil, http.StatusUnauthorized},
	} {
		if got := w.raw(t, tt.target, []byte(`{"a":1}`), append(tt.header, signature...)...); got != tt.want {
			t.Errorf("%s %v: answered %d, want %d", tt.target, tt.header, got, tt.want)
		}
	}
}

// TestClientCertificate: who has a certificate, but not one with a name that
// the source lists, is refused by that source only.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	c := config.Default().Server
	c.TLS.CertFile, c.TLS.KeyFile = selfsigned.Certificate(t, dir, "hooks")
	c.TLS.ClientCAFile = c.TLS.CertFile
	named := func(names auth.ClientCertificate) source.Source {
		return newSource(t, auth.Auth{ClientCertificate: &names})
	}
	w := serveRoutes(t, Options{Config: c, Routes: []Route{
		routeTo("subject", named(auth.ClientCertificate{Subjects: []string{"hooks"}}), source.Rate{}),
		routeTo("name", named(auth.ClientCertificate{SANs: []string{"localhost"}}), source.Rate{}),
		routeTo("other", named(auth.ClientCertificate{Subjects: []string{"localhost"}, SANs: []string{"hooks"}}), source.Rate{}),
		routeTo("open", newSource(t, auth.Auth{None: true}), source.Rate{}),
	}})
	pair, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{
		"/subject": http.StatusAccepted, "/name": http.StatusAccepted, "/open": http.StatusAccepted, "/other": http.StatusUnauthorized,
	} {
		resp, err := client.Post("https"+strings.TrimPrefix(w.url, "http")+path, "application/json", strings.NewReader(`{"event":"e","path":"`+path+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want {
			t.Errorf("%s: answered %s, want %d", path, resp.Status, want)
		}
	}
}

// FuzzFind: where a target leads, path and token put together are the target.
func FuzzFind(f *testing.F) {
	routeWith := func(p source.Proof) *route {
		rt := &route{}
		rt.current.Store(&sourceVersion{proof: p, replaced: make(chan struct{})})
		return rt
	}
	withToken, without := routeWith(source.Proof{PathToken: true}), routeWith(source.Proof{})
	s := &Server{opts: Options{Now: time.Now}}
	routes := map[string]*route{"/hook": withToken, "/": withToken, "/hook/b": without, "/open": without}
	s.routes.Store(&routes)
	for _, target := range []string{"/hook", "/hook/x", "/hook/b", "/hook%2Fx", "/hook/%2f", "//hook/x", "/", "/x", "/open/x", "/hook/a%20b?c/d", "*", "http://h/hook/x"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		rt, token := s.find(u)
		switch {
		case rt == nil:
			if routes[u.Path] != nil && u.RawPath == "" {
				t.Errorf("%q leads nowhere", target)
			}
		case token == "":
			if routes[u.Path] != rt {
				t.Errorf("%q leads elsewhere", target)
			}
		case strings.Contains(token, "/") || !rt.current.Load().proof.PathToken:
			t.Errorf("%q has the token %q", target, token)
		default:
			if got := s.request(&http.Request{URL: u, RequestURI: target}, token, netip.Addr{}, nil); routes[got.Path] != rt || strings.TrimSuffix(got.Path, "/")+"/"+token != u.Path && got.Path+"/"+token != u.Path {
				t.Errorf("%q has the path %q and the token %q", target, got.Path, token)
			}
		}
	})
}

// TestAnUnknownSecretIsHeld: a webhook that is signed with a secret which is not
// known yet waits for it, however many forged ones wait beside it; what is wrong
// otherwise does not wait.
func TestAnUnknownSecretIsHeld(t *testing.T) {
	signedWith := func(secrets ...config.Secret) source.Source {
		return newSource(t, auth.Auth{Default: auth.UploadPost, Signature: &auth.Signature{Secrets: secrets}})
	}
	const forgers, senders = 800, 20
	doubts := make(chan string, 2*(forgers+senders))
	w := serveRoutes(t, Options{
		Config: config.Default().Server, Routes: []Route{routeTo("hook", signedWith("whsec_of_an_old_one"), source.Rate{})},
		OnUnknownSecret: func(name string) time.Duration {
			doubts <- name
			return time.Minute
		},
	})
	if resp, _ := w.do(t, http.MethodPost, "/hook", "", []byte("{}")); resp.StatusCode != http.StatusUnauthorized || len(doubts) != 0 {
		t.Errorf("without a signature: %s, %d doubts", resp.Status, len(doubts))
	}
	forging, stop := context.WithCancel(t.Context())
	var forged, posts sync.WaitGroup
	forge := func() {
		req, err := http.NewRequestWithContext(forging, http.MethodPost, w.url+"/hook", bytes.NewReader(captioned(10)))
		if err != nil {
			t.Error(err)
			return
		}
		sign(t, req.Header, "whsec_of_a_forger", captioned(10))
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("a forger is answered %s", resp.Status)
		}
	}
	for range forgers {
		forged.Go(forge)
	}
	for range forgers {
		<-doubts
	}
	for range senders {
		posts.Go(func() {
			if resp, _ := w.do(t, http.MethodPost, "/hook", "whsec_of_a_new_one", captioned(10)); resp.StatusCode >= 300 {
				t.Errorf("one that waits is answered %s", resp.Status)
			}
		})
	}
	for range senders {
		if name := <-doubts; name != "hook" {
			t.Errorf("%s is in doubt", name)
		}
	}
	// Another secret that does not fit lets them wait on.
	for _, secret := range []config.Secret{"whsec_of_another_one", "whsec_of_a_new_one"} {
		if err := w.server.Replace("hook", signedWith("whsec_of_an_old_one", secret)); err != nil {
			t.Fatal(err)
		}
	}
	posts.Wait()
	stop()
	forged.Wait()
	if err := w.server.Replace("nobody", signedWith("whsec_of_nobody_at_all")); err == nil {
		t.Error("a source that is not there was replaced")
	}
}
