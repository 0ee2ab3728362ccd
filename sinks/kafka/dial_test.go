package kafka

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
	"github.com/postwire/postwire/sinks/sinktest"
)

const scramBlock = "sasl: {mechanism: scram-sha-512, username: relay, password: s3cret}"

// load delivers until stop returns true, and fails at the first error. Without the pauses, the
// next request may be faster than the return of the connection to the client's pool, and the
// client opens another one.
func load(t *testing.T, s sinks.Sink, stop func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for i := 0; !stop(); i++ {
		if err := s.Deliver(t.Context(), []event.Event{numbered(fmt.Sprint(i), "k")}); err != nil {
			t.Fatalf("delivery %d: %v", i, err)
		}
		time.Sleep(2 * time.Millisecond)
		if time.Now().After(end) {
			t.Fatal("the condition did not come true")
		}
	}
}

// TestRenewal: under load, and with a lifetime that the broker changes, no
// request is sent after the lifetime of its connection, and no delivery fails.
func TestRenewal(t *testing.T) {
	i := startIssuer(t, time.Hour)
	for mechanism, block := range map[string]string{
		"PLAIN":       "{mechanism: plain, username: relay, password: s3cret}",
		"OAUTHBEARER": fmt.Sprintf("{mechanism: oauthbearer, oauth: {token_url: %q, client_id: relay, client_secret: client-s3cret}}", i.URL),
	} {
		t.Run(mechanism, func(t *testing.T) {
			b, name := startFake(t), topic()
			b.createTopic(t, name, 1)
			f := kafkatest.StartFront(t, b.Broker, &kafkatest.Front{
				Mechanisms: []string{mechanism}, Check: func(string, []byte) ([]byte, string) { return nil, "" },
			})
			f.SetLifetime(2 * time.Second)
			s, err := openThrough(t, f, b, fmt.Sprintf("topic: %s, sasl: %s", name, block))
			if err != nil {
				t.Fatal(err)
			}
			load(t, s, func() bool { return f.Counts().Renewed >= 1 })
			f.SetLifetime(time.Second)
			load(t, s, func() bool { return f.Counts().Renewed >= 3 })
			f.SetLifetime(0)
			load(t, s, func() bool { return f.Counts().Renewed >= 4 })
			before := f.Counts()
			if before.Expired != 0 {
				t.Errorf("%d requests came after the lifetime", before.Expired)
			}
			if before.Conns > 4 {
				t.Errorf("%d connections, although each was authenticated again", before.Conns)
			}
		})
	}
}

// TestRenewalWithSCRAM uses the broker's own SASL.
func TestRenewalWithSCRAM(t *testing.T) {
	b := startFake(t, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "relay", "s3cret"),
		kfake.BrokerConfigs(map[string]string{"connections.max.reauth.ms": "1000"}))
	var handshakes atomic.Int64
	b.Fake.ControlKey(int16(kmsg.SASLHandshake), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.Fake.KeepControl()
		handshakes.Add(1)
		return nil, nil, false //nolint:nilnil // kfake goes on as usual
	})
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, %s", topic(), scramBlock))
	deliver(t, s)
	before := handshakes.Load()
	load(t, s, func() bool { return handshakes.Load() >= before+2 })
}

// TestIdlePastLifetime: a connection that was idle past the lifetime is
// replaced, and the delivery does not fail.
func TestIdlePastLifetime(t *testing.T) {
	f, b, s := startPlain(t)
	f.SetLifetime(200 * time.Millisecond)
	refresh(t, s)
	_ = b
	deliver(t, s)
	time.Sleep(300 * time.Millisecond) // on the wall clock of the broker
	before := f.Counts()
	deliver(t, s)
	if after := f.Counts(); after.Expired != 0 || after.Conns <= before.Conns {
		t.Errorf("before %+v, after %+v, want another connection", before, after)
	}
}

// startPlain starts a broker with PLAIN and opens a sink.
func startPlain(t *testing.T) (*kafkatest.Front, *broker, sinks.Sink) {
	t.Helper()
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	f := kafkatest.StartFront(t, b.Broker, &kafkatest.Front{
		Mechanisms: []string{"PLAIN"}, Check: func(string, []byte) ([]byte, string) { return nil, "" },
	})
	s, err := openThrough(t, f, b, fmt.Sprintf("topic: %s, sasl: {mechanism: plain, username: relay, password: s3cret}", name))
	if err != nil {
		t.Fatal(err)
	}
	return f, b, s
}

// refresh makes the sink connect again.
func refresh(t *testing.T, s sinks.Sink) {
	t.Helper()
	own := s.(*Sink)
	own.acquire().broken.Store(true)
	own.release(own.session)
	if err := own.refresh(t.Context(), own.urgent); err != nil {
		t.Fatal(err)
	}
}

// TestRenewalWithoutIssuer: while the issuer hangs, the authentication is used
// until its end, and no delivery waits for the issuer.
func TestRenewalWithoutIssuer(t *testing.T) {
	i := startIssuer(t, time.Second) // each renewal needs another token
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	f := kafkatest.StartFront(t, b.Broker, &kafkatest.Front{
		Mechanisms: []string{"OAUTHBEARER"}, Check: func(string, []byte) ([]byte, string) { return nil, "" },
	})
	f.SetLifetime(4 * time.Second)
	s, err := openThrough(t, f, b, fmt.Sprintf("topic: %s, sasl: {mechanism: oauthbearer, oauth: {token_url: %q, client_id: relay, client_secret: client-s3cret}}", name, i.URL))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s)
	lost := func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }
	i.answer.Store(&lost)
	begin := time.Now()
	load(t, s, func() bool { return time.Since(begin) > 3500*time.Millisecond })
	i.answer.Store(nil)
	load(t, s, func() bool { return f.Counts().Renewed >= 1 })
	if n := f.Counts().Expired; n != 0 {
		t.Errorf("%d requests came after the lifetime", n)
	}
}

// TestExplanations: a wrong setting is named by the setting, not by EOF.
func TestExplanations(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	clientCert, clientKey := selfsigned.Certificate(t, t.TempDir(), "client")
	mutual := selfsigned.Mutual(t, cert, key, clientCert)
	secured := mutual.Clone()
	secured.ClientAuth = 0
	sasl := []kfake.Opt{kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "relay", "s3cret")}
	tlsBlock := fmt.Sprintf("tls: {enabled: true, ca_file: %q}", cert)
	for name, c := range map[string]struct {
		opts  []kfake.Opt
		block string
		want  string
	}{
		"no SASL on a SASL port":      {sasl, "acks: all", "the port expects SASL: ADDR offers PLAIN, SCRAM-SHA-256, SCRAM-SHA-512: set sasl.mechanism"},
		"no SASL on a SASL TLS port":  {append(sasl, kfake.TLS(secured)), tlsBlock, "the port expects SASL: ADDR offers PLAIN"},
		"no TLS on a TLS port":        {[]kfake.Opt{kfake.TLS(secured)}, "acks: all", "the port expects TLS: ADDR answers a TLS client"},
		"no TLS on a mutual TLS port": {[]kfake.Opt{kfake.TLS(mutual)}, "acks: all", "the port expects TLS"},
		"no TLS on a SASL TLS port":   {append(sasl, kfake.TLS(secured)), scramBlock, "the port expects TLS"},
		"TLS on a plain port":         {nil, tlsBlock, "the port expects no TLS: ADDR answers without TLS"},
		"TLS on a SASL port":          {sasl, tlsBlock + ", " + scramBlock, "the port expects no TLS"},
		"other mechanism":             {sasl, "sasl: {mechanism: oauthbearer, oauth: {provider: token-file, token_file: " + cert + "}}", "a token may not have"},
		"wrong password":              {sasl, strings.Replace(scramBlock, "s3cret", "wr0ng", 1), "check the credentials: [58] SASL Authentication Failed"},
		"no client certificate":       {[]kfake.Opt{kfake.TLS(mutual)}, tlsBlock, "certificate required"},
		"with a client certificate":   {[]kfake.Opt{kfake.TLS(mutual)}, strings.Replace(tlsBlock, "}", fmt.Sprintf(", cert_file: %q, key_file: %q}", clientCert, clientKey), 1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := startFake(t, c.opts...)
			_, err := b.opener(t, fmt.Sprintf("topic: %s, create: true, %s", topic(), c.block))
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if want := strings.ReplaceAll(c.want, "ADDR", b.Addr); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			if err != nil && (strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "wr0ng")) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestRefusedMechanisms: the broker says which mechanisms there are.
func TestRefusedMechanisms(t *testing.T) {
	f, b, s := startPlain(t)
	_ = s.Close()
	_, err := openThrough(t, f, b, "topic: t, "+scramBlock)
	if want := "does not support SASL mechanism SCRAM-SHA-512, but PLAIN: change sasl.mechanism"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	f.Check = func(string, []byte) ([]byte, string) { return nil, "Invalid username or password" }
	_, err = openThrough(t, f, b, "topic: t, sasl: {mechanism: plain, username: relay, password: wr0ng}")
	if want := "refuses the credentials (SASL PLAIN): [58] SASL Authentication Failed"; err == nil || !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), ": Invalid username or password") || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestListenerWithoutSASL answers like Apache Kafka; kfake accepts SASL on each
// listener.
func TestListenerWithoutSASL(t *testing.T) {
	b := startFake(t)
	b.Fake.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.Fake.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
		resp.ErrorCode = 34
		return resp, nil, true
	})
	_, err := b.opener(t, "topic: t, "+scramBlock)
	if want := "illegal SASL state: this listener has no SASL: remove sasl"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestCertificateIsReadAgain: a renewed client certificate is used by the next
// connection, and an unreadable certificate leaves the old certificate in use.
func TestCertificateIsReadAgain(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	dir := t.TempDir()
	clientCert, clientKey := selfsigned.Certificate(t, dir, "first")
	server := selfsigned.Mutual(t, cert, key, clientCert)
	var presented atomic.Value
	server.ClientAuth, server.ClientCAs = tls.RequireAnyClientCert, nil
	server.VerifyConnection = func(c tls.ConnectionState) error {
		presented.Store(c.PeerCertificates[0].Subject.CommonName)
		return nil
	}
	b := startFake(t, kfake.TLS(server))
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, tls: {enabled: true, ca_file: %q, cert_file: %q, key_file: %q}", topic(), cert, clientCert, clientKey))
	presents := func(want string) {
		t.Helper()
		if got := presented.Load(); got != want {
			t.Errorf("the client presents %v, want %s", got, want)
		}
	}
	presents("first")
	selfsigned.Certificate(t, dir, "second")
	refresh(t, s)
	deliver(t, s)
	presents("second")
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	presented.Store("")
	refresh(t, s)
	deliver(t, s)
	presents("second")
}

// TestProxy: the proxy sees the name of the broker, and the sink reaches no
// broker without the proxy.
func TestProxy(t *testing.T) {
	for scheme, start := range map[string]func(t *testing.T, to string) *testProxy{"socks5": startSOCKS, "http": startConnect} {
		t.Run(scheme, func(t *testing.T) {
			b, name := startFake(t), topic()
			b.createTopic(t, name, 1)
			x := start(t, b.Addr)
			open := func(block string) (sinks.Sink, error) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: ['kafka.behind.invalid:9092'], topic: %s, proxy: {url: '%s://%s', %s}}", name, scheme, x.addr, block))
				s, err := p.Open(ctx, sinks.Env{Name: "test", Log: zap.NewNop(), Now: time.Now, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					if addr != x.addr {
						return nil, fmt.Errorf("connects to %s without the proxy", addr)
					}
					return (&net.Dialer{}).DialContext(ctx, network, addr)
				}})
				if err == nil {
					t.Cleanup(func() { _ = s.Close() })
				}
				return s, err
			}
			s, err := open("username: relay, password: pr0xy-s3cret")
			if err != nil {
				t.Fatal(err)
			}
			deliver(t, s)
			if !x.asked("kafka.behind.invalid:9092") {
				t.Errorf("the proxy was asked for %v", x.names)
			}
			if _, err := open("username: relay, password: wr0ng"); err == nil || strings.Contains(err.Error(), "wr0ng") || !strings.Contains(err.Error(), x.addr) {
				t.Errorf("with a wrong password: %v", err)
			}
		})
	}
}

// testProxy is a proxy that leads to one broker.
type testProxy struct {
	addr  string
	mu    sync.Mutex
	names []string
}

func (x *testProxy) ask(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.names = append(x.names, name)
}

func (x *testProxy) asked(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.names) > 0 && x.names[0] == name
}

// tunnel copies in both directions until one side closes.
func tunnel(client io.ReadWriteCloser, from io.Reader, to string) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(server, from)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
}

func startConnect(t *testing.T, to string) *testProxy {
	t.Helper()
	x := &testProxy{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
		if _, password, _ := r.BasicAuth(); password != "pr0xy-s3cret" || r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		x.ask(r.Host)
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
		tunnel(conn, rw, to)
	}))
	t.Cleanup(server.Close)
	x.addr = server.Listener.Addr().String()
	return x
}

func startSOCKS(t *testing.T, to string) *testProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &testProxy{addr: l.Addr().String()}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if err := x.socks(c, to); err != nil {
					_ = c.Close()
				}
			}()
		}
	})
	return x
}

// socks serves a connection of SOCKS5 (RFC 1928 and RFC 1929).
func (x *testProxy) socks(c net.Conn, to string) error {
	r := bufio.NewReader(c)
	read := func(n int) []byte {
		p := make([]byte, n)
		_, _ = io.ReadFull(r, p)
		return p
	}
	read(int(read(2)[1]))
	_, _ = c.Write([]byte{5, 2})
	user := read(int(read(2)[1]))
	password := read(int(read(1)[0]))
	if string(user) != "relay" || string(password) != "pr0xy-s3cret" {
		_, _ = c.Write([]byte{1, 1})
		return errors.New("wrong password")
	}
	_, _ = c.Write([]byte{1, 0})
	var host string
	switch read(4)[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	x.ask(net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(read(2)))))
	_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	tunnel(c, r, to)
	return nil
}

func TestProxyMistakes(t *testing.T) {
	for block, want := range map[string]string{
		"username: u":                          "url: is missing",
		"url: 'socks5://u:hunter2@p:1080'":     "use username and password",
		"url: 'socks4://p:1080'":               "no supported kind",
		"url: 'http://p'":                      "not a kind, a host and a port",
		"url: 'http://p:1/x'":                  "not a kind, a host and a port",
		"url: 'http://p:1', password: hunter2": "username: is missing",
		"url: 'socks5://p:1', username: " + strings.Repeat("u", 256): "255 bytes",
	} {
		_, err := sinktest.TryConfigure(Kind(), "{brokers: [a:1], topic: t, proxy: {"+block+"}}")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s:\n%v, want %q", block, err, want)
		}
	}
}
