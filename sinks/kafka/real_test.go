package kafka

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// oidc is an OIDC issuer: a token endpoint and the public key.
type oidc struct {
	*httptest.Server
	lifetime atomic.Int64 // of a token, in seconds
	issued   atomic.Int64
}

func startOIDC(t *testing.T, lifetime time.Duration) *oidc {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	o := &oidc{}
	o.lifetime.Store(int64(lifetime.Seconds()))
	encode := base64.RawURLEncoding.EncodeToString
	mux := http.NewServeMux()
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{{
			"kty": "RSA", "kid": "test", "use": "sig", "alg": "RS256", "n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if _, secret, _ := r.BasicAuth(); secret != "client-s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error": "invalid_client"}`))
			return
		}
		o.issued.Add(1)
		now, lifetime := time.Now(), o.lifetime.Load()
		claims, _ := json.Marshal(map[string]any{
			"iss": o.URL, "sub": "relay", "aud": r.PostFormValue("audience"), "scope": "kafka",
			"iat": now.Unix(), "exp": now.Unix() + lifetime,
		})
		text := encode([]byte(`{"alg":"RS256","typ":"JWT","kid":"test"}`)) + "." + encode(claims)
		sum := sha256.Sum256([]byte(text))
		signature, _ := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": text + "." + encode(signature), "token_type": "Bearer", "expires_in": lifetime})
	})
	o.Server = httptest.NewServer(mux)
	t.Cleanup(o.Close)
	return o
}

// realSecure is a real Kafka with a listener for each kind of security.
type realSecure struct {
	plaintext, sasl, tls, saslTLS, ca string
	dir                               string
	conns                             atomic.Int64 // to brokers, and to the issuer
}

func startRealSecure(t *testing.T, o *oidc) *realSecure {
	t.Helper()
	up, down := os.Getenv("POSTWIRE_TEST_KAFKA_UP"), os.Getenv("POSTWIRE_TEST_KAFKA_DOWN")
	if up == "" || down == "" {
		t.Skip("needs a real broker: POSTWIRE_TEST_KAFKA_UP and _DOWN name scripts that start and stop one")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	port = 12000 + port%8000 // below the ports of outgoing connections
	k := &realSecure{dir: filepath.Join(t.TempDir(), "kafka")}
	at := func(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+n)) }
	k.plaintext, k.sasl, k.tls, k.saslTLS, k.ca = at(0), at(2), at(3), at(4), filepath.Join(k.dir, "tls", "ca.pem")
	const on = "listener.name.sasl_plaintext."
	args := []string{"--secure"}
	for _, set := range []string{
		on + "sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256,OAUTHBEARER",
		on + "oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;",
		on + "oauthbearer.sasl.server.callback.handler.class=org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler",
		"sasl.oauthbearer.jwks.endpoint.url=" + o.URL + "/jwks",
		"sasl.oauthbearer.expected.audience=kafka",
		"sasl.oauthbearer.expected.issuer=" + o.URL,
		"connections.max.reauth.ms=15000",
	} {
		args = append(args, "--set", set)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, up, append(args, k.dir, strconv.Itoa(port))...)
	cmd.Env = append(os.Environ(), "KAFKA_OPTS=-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls="+o.URL+"/jwks")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("starting Kafka: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(down, "--purge", k.dir).CombinedOutput(); err != nil {
			t.Errorf("stopping Kafka: %v\n%s", err, out)
		}
	})
	return k
}

func (k *realSecure) open(t *testing.T, addr, block string, log *zap.Logger) (sinks.Sink, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], topic: %s, create: true, %s}", addr, topic(), block))
	s, err := p.Open(ctx, sinks.Env{Name: "test", Log: log, Now: time.Now, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		k.conns.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}})
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// TestRealSecurity: a real Apache Kafka with each kind of listener and a local
// OIDC issuer.
func TestRealSecurity(t *testing.T) {
	o := startOIDC(t, 20*time.Second)
	k := startRealSecure(t, o)
	bearer := fmt.Sprintf("sasl: {mechanism: oauthbearer, oauth: {token_url: '%s/token', client_id: relay, client_secret: client-s3cret, parameters: {audience: AUDIENCE}}}", o.URL)
	good := strings.Replace(bearer, "AUDIENCE", "kafka", 1)
	const user = "sasl: {mechanism: scram-sha-512, username: relay, password: relay-secret}"
	tls := fmt.Sprintf("tls: {enabled: true, ca_file: %q}", k.ca)
	for name, c := range map[string]struct{ addr, block, want string }{
		"no SASL on SASL":       {k.sasl, "acks: all", "the port expects SASL: " + k.sasl + " offers "},
		"no TLS on TLS":         {k.tls, "acks: all", "the port expects TLS"},
		"nothing on SASL_SSL":   {k.saslTLS, "acks: all", "the port expects TLS"},
		"SASL on SASL_SSL":      {k.saslTLS, user, "the port expects TLS"},
		"TLS on SASL_SSL":       {k.saslTLS, tls, "the port expects SASL"},
		"TLS on PLAINTEXT":      {k.plaintext, tls, "the port expects no TLS"},
		"TLS on SASL":           {k.sasl, tls + ", " + user, "the port expects no TLS"},
		"SASL on PLAINTEXT":     {k.plaintext, user, "illegal SASL state: this listener has no SASL"},
		"SASL on TLS":           {k.tls, tls + ", " + user, "illegal SASL state: this listener has no SASL"},
		"unsupported mechanism": {k.saslTLS, tls + ", " + good, "does not support SASL mechanism OAUTHBEARER, but SCRAM-SHA-"},
		"wrong password":        {k.sasl, strings.Replace(user, "relay-secret", "wr0ng", 1), "refuses the credentials (SASL SCRAM-SHA-512): [58] SASL Authentication Failed"},
		"unknown authority":     {k.tls, "tls: {enabled: true}", "certificate signed by unknown authority"},
		"wrong audience":        {k.sasl, strings.Replace(bearer, "AUDIENCE", "other", 1), "refuses the credentials (SASL OAUTHBEARER): [58] SASL Authentication Failed"},
		"wrong client secret":   {k.sasl, strings.Replace(good, "client-s3cret", "wr0ng", 1), "the endpoint answers 401 Unauthorized: invalid_client"},
		"PLAINTEXT":             {k.plaintext, "acks: all", ""},
		"TLS":                   {k.tls, tls, ""},
		"SCRAM over TLS":        {k.saslTLS, tls + ", " + user, ""},
		"OAUTHBEARER":           {k.sasl, good, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := k.open(t, c.addr, c.block, zap.NewNop())
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want == "":
				deliver(t, s)
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("%v, want %q", err, c.want)
			case strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "wr0ng"):
				t.Error(err)
			default:
				t.Log(err)
			}
		})
	}
	if t.Failed() {
		return
	}
	t.Run("lifetime", func(t *testing.T) {
		core, seen := observer.New(zapcore.InfoLevel)
		oauth, err := k.open(t, k.sasl, good, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		scram, err := k.open(t, k.saslTLS, tls+", "+user, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		// The broker's value is 15 s. OAUTHBEARER has the smaller of 15 s and the rest of the token's
		// lifetime, which the issuer changes.
		deliver(t, oauth)
		deliver(t, scram)
		issued, conns, delivered := o.issued.Load(), k.conns.Load(), 0
		for _, lifetime := range []int64{20, 6, 3600} {
			o.lifetime.Store(lifetime)
			for begin := time.Now(); time.Since(begin) < 20*time.Second; delivered++ {
				deliver(t, oauth)
				deliver(t, scram)
			}
		}
		// A load of the metadata, each 30 s, makes two connections in each sink.
		if n := k.conns.Load() - conns - (o.issued.Load() - issued); n > 14 {
			t.Errorf("%d connections in 60 s: connections were replaced, not authenticated again", n)
		} else {
			t.Logf("%d connections in 60 s", n)
		}
		time.Sleep(17 * time.Second) // idle past the lifetime
		deliver(t, oauth)
		deliver(t, scram)
		if n := o.issued.Load() - issued; n < 4 {
			t.Errorf("%d tokens were issued in 60 s", n)
		}
		for _, entry := range seen.FilterLevelExact(zapcore.WarnLevel).All() {
			t.Errorf("warning: %s", entry.Message)
		}
		t.Logf("%d deliveries through each of two sinks, %d tokens", delivered, o.issued.Load()-issued)
	})
}
