package kafka

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
	"github.com/postwire/postwire/sinks/sinktest"
)

// issuer is the token endpoint of an OIDC issuer.
type issuer struct {
	*httptest.Server
	tokens atomic.Int64 // issued
	secret string
	answer atomic.Pointer[func(http.ResponseWriter)] // instead of a token

	mu   sync.Mutex
	last url.Values // form of the last request
}

func startIssuer(t *testing.T, lifetime time.Duration) *issuer {
	t.Helper()
	i := &issuer{secret: "client-s3cret"}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		i.mu.Lock()
		i.last = r.PostForm
		i.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		if answer := i.answer.Load(); answer != nil {
			(*answer)(w)
			return
		}
		_, secret, _ := r.BasicAuth()
		if secret != i.secret && r.PostForm.Get("client_secret") != i.secret && r.PostForm.Get("client_assertion") != "signed.jwt" {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": "invalid_client", "error_description": "unknown client or secret"})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"access_token": fmt.Sprintf("t0ken-%d", i.tokens.Add(1)), "token_type": "Bearer", "expires_in": int(lifetime.Seconds()),
		})
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) form() url.Values {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
}

// openThrough opens a sink that reaches the broker through a front.
func openThrough(t *testing.T, f *kafkatest.Front, b *broker, block string) (sinks.Sink, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], %s}", b.Addr, block))
	s, err := p.Open(ctx, sinks.Env{Name: "test", Log: zap.NewNop(), Dial: f.Dial, Now: time.Now})
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// startBearer starts a broker that accepts tokens.
func startBearer(t *testing.T, check func(message string) (challenge, reason string)) (*kafkatest.Front, *broker, string) {
	t.Helper()
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	f := kafkatest.StartFront(t, b.Broker, &kafkatest.Front{
		Mechanisms: []string{"OAUTHBEARER"},
		Check: func(_ string, message []byte) ([]byte, string) {
			challenge, reason := check(string(message))
			if challenge != "" {
				return []byte(challenge), ""
			}
			return nil, reason
		},
	})
	return f, b, name
}

func deliver(t *testing.T, s sinks.Sink) {
	t.Helper()
	if err := s.Deliver(t.Context(), []event.Event{numbered("1", "k")}); err != nil {
		t.Fatal(err)
	}
}

func TestClientCredentials(t *testing.T) {
	i := startIssuer(t, time.Hour)
	var message atomic.Value
	f, b, name := startBearer(t, func(m string) (string, string) {
		message.Store(m)
		return "", ""
	})
	s, err := openThrough(t, f, b, fmt.Sprintf(`topic: %s, sasl: {mechanism: oauthbearer, oauth: {token_url: %q, client_id: relay, client_secret: client-s3cret,
		scopes: [a, b], parameters: {audience: kafka}, extensions: {logicalCluster: lkc-1, identityPoolId: pool-2}}}`, name, i.URL))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s)
	if want := "n,,\x01auth=Bearer t0ken-1\x01identityPoolId=pool-2\x01logicalCluster=lkc-1\x01\x01"; message.Load() != want {
		t.Errorf("the message is %q, want %q", message.Load(), want)
	}
	if form := i.form(); form.Get("grant_type") != "client_credentials" || form.Get("scope") != "a b" || form.Get("audience") != "kafka" {
		t.Errorf("the token request is %v", form)
	}
	if n := i.tokens.Load(); n != 1 {
		t.Errorf("%d tokens for %d connections, want 1", n, f.Counts().Conns)
	}
}

// TestClientAssertion: as Microsoft Entra asks a workload identity.
func TestClientAssertion(t *testing.T) {
	i := startIssuer(t, time.Hour)
	f, b, name := startBearer(t, func(string) (string, string) { return "", "" })
	path := filepath.Join(t.TempDir(), "assertion")
	if err := os.WriteFile(path, []byte("signed.jwt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openThrough(t, f, b, fmt.Sprintf(`topic: %s, sasl: {mechanism: oauthbearer, oauth: {token_url: "%s/tenant/oauth2/v2.0/token", client_id: app, client_assertion_file: %q,
		scopes: ["https://namespace.servicebus.windows.net/.default"]}}`, name, i.URL, path))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s)
	if form := i.form(); form.Get("client_assertion_type") != assertionType || form.Get("client_id") != "app" || form.Has("client_secret") {
		t.Errorf("the token request is %v", form)
	}
}

// TestTokenFileIsReadAgain: a renewed token is used by the next connection.
func TestTokenFileIsReadAgain(t *testing.T) {
	var valid atomic.Value
	valid.Store("one")
	f, b, name := startBearer(t, func(m string) (string, string) {
		if m != "n,,\x01auth=Bearer "+valid.Load().(string)+"\x01\x01" {
			return "", "Token has expired"
		}
		return "", ""
	})
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	block := fmt.Sprintf("topic: %s, sasl: {mechanism: oauthbearer, oauth: {provider: token-file, token_file: %q}}", name, path)
	s, err := openThrough(t, f, b, block)
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s)
	valid.Store("two")
	if _, err := openThrough(t, f, b, block); err == nil || !strings.Contains(err.Error(), "Token has expired") || strings.Contains(err.Error(), "Bearer") {
		t.Errorf("with the old token: %v", err)
	}
	write("two")
	if err := s.(*Sink).refresh(t.Context(), s.(*Sink).urgent); err != nil {
		t.Errorf("with the new token: %v", err)
	}
	write(strings.Repeat("x", maxToken+1))
	if _, err := openThrough(t, f, b, block); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("with a file too large: %v", err)
	}
	write("two\x01auth=x")
	if _, err := openThrough(t, f, b, block); err == nil || !strings.Contains(err.Error(), "a token may not have") {
		t.Errorf("with a control character: %v", err)
	}
}

// TestRefusals: the reasons of the broker and of the issuer are shown, without
// token and secret.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		challenge, reason string
		status            int
		body              string
		want              string
	}{
		"challenge":       {challenge: `{"status":"invalid_token","token":"t0ken-1"}`, want: `{"status":"invalid_token","token":"***"}`},
		"error":           {reason: "{\"status\":\"insufficient_scope\"} t0ken-1\n", want: `SASL Authentication Failed`},
		"long reason":     {reason: strings.Repeat("x", 10000), want: "xxx…"},
		"issuer refuses":  {status: 401, body: `{"error":"invalid_client","error_description":"wr0ng"}`, want: "the endpoint answers 401 Unauthorized: invalid_client: wr0ng"},
		"issuer repeats":  {status: 400, body: `{"error":"invalid_request","error_description":"client-s3cret, p4rameter"}`, want: "400 Bad Request: invalid_request: ***, ***"},
		"issuer is lost":  {status: 502, body: strings.Repeat("t0ken-1 ", 1000), want: "the endpoint answers 502 Bad Gateway"},
		"issuer redirect": {status: 302, body: "", want: "the endpoint answers 302 Found"},
		"no JSON":         {status: 200, body: "<html>t0ken-1", want: "the response is no token"},
		"no token":        {status: 200, body: "{}", want: "the response is no token"},
		"endless":         {status: 200, body: strings.Repeat(" ", 2<<20), want: "the response is no token"},
		"split token":     {status: 200, body: `{"access_token": "t0ken-1 \u0001", "token_type": "Bearer"}`, want: "a token may not have"},
	} {
		t.Run(name, func(t *testing.T) {
			i := startIssuer(t, time.Hour)
			if c.status != 0 {
				answer := func(w http.ResponseWriter) {
					w.WriteHeader(c.status)
					_, _ = w.Write([]byte(c.body))
				}
				i.answer.Store(&answer)
			}
			f, b, topic := startBearer(t, func(string) (string, string) { return c.challenge, c.reason })
			_, err := openThrough(t, f, b, fmt.Sprintf("topic: %s, sasl: {mechanism: oauthbearer, oauth: {token_url: %q, client_id: relay, client_secret: client-s3cret, parameters: {p: p4rameter}}}", topic, i.URL))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			for _, secret := range []string{"t0ken", "client-s3cret", "p4rameter"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%s is shown: %v", secret, err)
				}
			}
			if len(err.Error()) > 1500 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// TestRefusedTokenIsDropped: a token that a broker refuses is not used again.
func TestRefusedTokenIsDropped(t *testing.T) {
	i := startIssuer(t, time.Hour)
	f, b, name := startBearer(t, func(m string) (string, string) {
		if strings.Contains(m, "t0ken-1\x01") {
			return `{"status":"invalid_token"}`, ""
		}
		return "", ""
	})
	block := fmt.Sprintf("topic: %s, sasl: {mechanism: oauthbearer, oauth: {token_url: %q, client_id: relay, client_secret: client-s3cret}}", name, i.URL)
	p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], %s}", b.Addr, block))
	s := &Sink{config: p.Own.(Config), env: sinks.Env{Dial: f.Dial}, life: t.Context(), log: zap.NewNop()}
	d, err := s.newDialer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dial(t.Context(), "tcp", b.Addr); err == nil {
		t.Fatal("the first token was accepted")
	}
	c, err := d.Dial(t.Context(), "tcp", b.Addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// TestKeptToken: a token is renewed at 80 % of its lifetime, and used until its
// end if the issuer fails.
func TestKeptToken(t *testing.T) {
	var fetched int
	var fail error
	fetch := func(context.Context) (token, error) {
		fetched++
		return token{text: fmt.Sprint(fetched), expires: time.Now().Add(time.Hour)}, fail
	}
	tokens := &tokens{life: t.Context(), keep: true, fetch: fetch}
	get := func() string {
		text, err := tokens.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if a, b := get(), get(); a != "1" || b != "1" {
		t.Errorf("%s and %s, want one token", a, b)
	}
	tokens.latest.fetched = time.Now().Add(-50 * time.Minute)
	tokens.latest.expires = time.Now().Add(10 * time.Minute)
	fail = fmt.Errorf("the issuer is lost")
	if a := get(); a != "1" {
		t.Errorf("%s, want the kept token while the issuer fails", a)
	}
	fail = nil
	if a := get(); a != "3" {
		t.Errorf("%s, want a new token after 80 %% of the lifetime", a)
	}
	tokens.latest.expires = time.Now()
	fail = fmt.Errorf("the issuer is lost")
	if _, err := tokens.get(t.Context()); err == nil {
		t.Error("an expired token was used")
	}
}

// TestAmazonMSK: the official signer signs with the credentials that a stub of
// the container's endpoint gives.
func TestAmazonMSK(t *testing.T) {
	stub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"AccessKeyId": "AKIDSTUB", "SecretAccessKey": "aws-s3cret", "Token": "session", "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		})
	}))
	t.Cleanup(stub.Close)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	none := filepath.Join(t.TempDir(), "none")
	t.Setenv("AWS_CONFIG_FILE", none)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", none)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", stub.URL+"/credentials")
	var message atomic.Value
	f, b, name := startBearer(t, func(m string) (string, string) {
		message.Store(m)
		return "", ""
	})
	s, err := openThrough(t, f, b, fmt.Sprintf("topic: %s, sasl: {mechanism: oauthbearer, oauth: {provider: aws-msk-iam, region: eu-west-1}}", name))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s)
	text := strings.TrimSuffix(strings.TrimPrefix(message.Load().(string), "n,,\x01auth=Bearer "), "\x01\x01")
	signed, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(string(signed))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Host != "kafka.eu-west-1.amazonaws.com" || q.Get("Action") != "kafka-cluster:Connect" || !strings.HasPrefix(q.Get("X-Amz-Credential"), "AKIDSTUB/") || q.Get("X-Amz-Signature") == "" {
		t.Errorf("the token is %s", u.Redacted())
	}
	if strings.Contains(string(signed), "aws-s3cret") {
		t.Error("the secret is in the token")
	}
}

// TestGoogle: the token of a service account whose token endpoint is a stub.
func TestGoogle(t *testing.T) {
	stub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"access_token": "ya29.stub", "token_type": "Bearer", "expires_in": 3600}`))
	}))
	t.Cleanup(stub.Close)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	file, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "relay@project.iam.gserviceaccount.com", "private_key": string(block), "token_uri": stub.URL,
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
	var message atomic.Value
	f, b, name := startBearer(t, func(m string) (string, string) {
		message.Store(m)
		return "", ""
	})
	s, err := openThrough(t, f, b, fmt.Sprintf("topic: %s, sasl: {mechanism: oauthbearer, oauth: {provider: google}}", name))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s)
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(message.Load().(string), "n,,\x01auth=Bearer "), "\x01\x01"), ".")
	if len(parts) != 3 {
		t.Fatalf("the token has %d parts", len(parts))
	}
	var decoded [3]string
	for i, part := range parts {
		text, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		decoded[i] = string(text)
	}
	if decoded[0] != `{"typ":"JWT","alg":"GOOG_OAUTH2_TOKEN"}` || decoded[2] != "ya29.stub" ||
		!strings.Contains(decoded[1], `"sub":"relay@project.iam.gserviceaccount.com"`) || !strings.Contains(decoded[1], `"scope":"kafka"`) {
		t.Errorf("the token is %q", decoded)
	}
}

func TestGoogleAccount(t *testing.T) {
	for file, want := range map[string]string{
		`{"client_email": "a@b"}`: "a@b",
		`{"service_account_impersonation_url": "https://iam.example.com/v1/projects/-/serviceAccounts/x@y.iam:generateAccessToken"}`: "x@y.iam",
		`{"type": "authorized_user"}`: "",
		`{`:                           "",
	} {
		if got, err := googleAccount(t.Context(), []byte(file)); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
}

func TestOAuthMistakes(t *testing.T) {
	const good = "token_url: 'https://i/t', client_id: c, client_secret: s3cret"
	for block, want := range map[string]string{
		"":                                      "sasl.oauth.token_url: is missing",
		"token_url: 'https://i/t'":              "client_id",
		"token_url: 'ftp://i/t'":                "is not a URL of http or https",
		"token_url: 'https://u:hunter2@i/t'":    "holds a user name or password",
		good + ", token_file: /x":               "token_file: has no effect with provider client-credentials",
		good + ", region: eu-west-1":            "region: has no effect",
		good + ", parameters: {scope: a}":       "parameters.scope: has a key of its own",
		good + ", extensions: {auth: a}":        "extensions.auth: is not a name",
		good + ", extensions: {a_b: a}":         "extensions.a_b: is not a name",
		good + `, extensions: {a: "\x01b"}`:     "extensions.a: is empty, or has a character",
		good + ", client_assertion_file: /none": "stands beside client_secret",
		"provider: aws-msk-iam":                 "region: is missing",
		"provider: token-file":                  "token_file: is missing",
		"provider: token-file, token_file: /no": "token_file: file *** does not exist",
		"provider: google, client_id: a":        "client_id: has no effect with provider google",
		"provider: azure":                       "provider",
	} {
		_, err := sinktest.TryConfigure(Kind(), "{brokers: [a:1], topic: t, sasl: {mechanism: oauthbearer, oauth: {"+block+"}}}")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s:\n%v, want %q", block, err, want)
		}
	}
	for block, want := range map[string]string{
		"mechanism: plain, username: u, password: p, oauth: {client_id: c}": "sasl.oauth: has no effect with mechanism plain",
		"mechanism: oauthbearer, username: u":                               "username: has no effect",
	} {
		if _, err := sinktest.TryConfigure(Kind(), "{brokers: [a:1], topic: t, sasl: {"+block+"}}"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, want %q", block, err, want)
		}
	}
}

// TestBearerInSubscription: consumers learn that they need a token.
func TestBearerInSubscription(t *testing.T) {
	c := defaults()
	c.SASL.Mechanism = bearerSASL
	if got := c.Subscription().Security; len(got) != 1 || got[0] != (sinks.Security{Type: "http", Name: "bearer"}) {
		t.Errorf("security is %v", got)
	}
}
