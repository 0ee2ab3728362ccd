package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/compute/metadata"
	"github.com/aws/aws-msk-iam-sasl-signer-go/signer"
	"github.com/segmentio/kafka-go/sasl"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/oauth2/google"

	"github.com/postwire/postwire/config"
)

// Providers of tokens.
const (
	clientCredentials = "client-credentials"
	tokenFile         = "token-file"
	awsMSKIAM         = "aws-msk-iam"
	googleCloud       = "google"
)

const (
	// tokenTimeout limits a request to a token endpoint.
	tokenTimeout = 10 * time.Second
	// maxToken is the maximum size of a token in bytes.
	maxToken = 64 << 10
	// googleScope is the scope of tokens for Google's Managed Service for Apache
	// Kafka.
	googleScope = "https://www.googleapis.com/auth/cloud-platform"
	// assertionType is the type of a client assertion (RFC 7523).
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// OAuth is where the token of SASL mechanism OAUTHBEARER comes from.
type OAuth struct {
	Provider            string                   `yaml:"provider" enum:"client-credentials,token-file,aws-msk-iam,google" doc:"Where the token comes from. client-credentials: the token endpoint of an OIDC issuer, such as Keycloak, Okta or Microsoft Entra. token-file: a file that another program renews. aws-msk-iam: signed with the AWS credentials of the environment. google: the Application Default Credentials of Google Cloud."`
	TokenURL            string                   `yaml:"token_url" doc:"Token endpoint of the issuer." example:"https://login.example.com/oauth2/token"`
	ClientID            string                   `yaml:"client_id" doc:"Client ID at the issuer." example:"postwire"`
	ClientSecret        config.Secret            `yaml:"client_secret" doc:"Client secret at the issuer." example:"${KAFKA_CLIENT_SECRET}"`
	ClientAssertionFile string                   `yaml:"client_assertion_file" doc:"File with a signed JWT that authenticates the client instead of client_secret, such as the token of a Kubernetes service account (workload identity). Read again for each token." example:"/var/run/secrets/azure/tokens/azure-identity-token"`
	Scopes              []string                 `yaml:"scopes" list:"commas" doc:"Scopes of the token." example:"[kafka]"`
	Parameters          map[string]config.Secret `yaml:"parameters" doc:"Further parameters of the token request, by name, such as audience or resource." example:"{audience: kafka}"`
	CAFile              string                   `yaml:"ca_file" doc:"CA certificates to trust at the token endpoint, PEM. Empty trusts the CA certificates of the system." example:"/etc/postwire/issuer/ca.crt"`
	TokenFile           string                   `yaml:"token_file" doc:"File with the token, read again for each connection and each re-authentication." example:"/var/run/secrets/kafka/token"`
	Region              string                   `yaml:"region" doc:"AWS region of the cluster." example:"eu-west-1"`
	Extensions          map[string]string        `yaml:"extensions" doc:"SASL extensions, by name, such as logicalCluster and identityPoolId of Confluent Cloud." example:"{logicalCluster: lkc-1, identityPoolId: pool-1}"`
}

func (o OAuth) empty() bool {
	return (o.Provider == "" || o.Provider == clientCredentials) && o.TokenURL == "" && o.ClientID == "" && o.ClientSecret == "" &&
		o.ClientAssertionFile == "" && len(o.Scopes) == 0 && len(o.Parameters) == 0 && o.CAFile == "" && o.TokenFile == "" &&
		o.Region == "" && len(o.Extensions) == 0
}

// extensionName and extensionValue are the names and values that Apache Kafka
// accepts.
var (
	extensionName  = regexp.MustCompile(`^[A-Za-z]+$`)
	extensionValue = regexp.MustCompile(`^[\x21-\x7e \t\r\n]+$`)
)

func (o OAuth) validate() error {
	var p config.Invalids
	needs := func(key, provider string, set, required bool, hint string) {
		switch {
		case set && o.Provider != provider:
			p.Add(key, "has no effect with provider "+o.Provider, "set provider: "+provider+", or remove the key")
		case !set && required && o.Provider == provider:
			p.Add(key, "is missing", hint)
		}
	}
	needs("token_url", clientCredentials, o.TokenURL != "", true, "for example https://login.example.com/oauth2/token")
	needs("client_id", clientCredentials, o.ClientID != "", true, "name the client")
	needs("client_secret", clientCredentials, o.ClientSecret != "", o.ClientAssertionFile == "", "for example ${KAFKA_CLIENT_SECRET}; or set client_assertion_file")
	needs("client_assertion_file", clientCredentials, o.ClientAssertionFile != "", false, "")
	needs("scopes", clientCredentials, len(o.Scopes) > 0, false, "")
	needs("parameters", clientCredentials, len(o.Parameters) > 0, false, "")
	needs("ca_file", clientCredentials, o.CAFile != "", false, "")
	needs("token_file", tokenFile, o.TokenFile != "", true, "for example /var/run/secrets/kafka/token")
	needs("region", awsMSKIAM, o.Region != "", true, "for example eu-west-1")
	if o.ClientSecret != "" && o.ClientAssertionFile != "" {
		p.Add("client_assertion_file", "stands beside client_secret", "remove one of the two keys")
	}
	if o.TokenURL != "" {
		u, err := url.Parse(o.TokenURL)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			p.Add("token_url", "is not a URL of http or https", "for example https://login.example.com/oauth2/token")
		case u.User != nil:
			p.Add("token_url", "holds a user name or password", "use client_id and client_secret")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Parameters)) {
		if slices.Contains([]string{"scope", "client_id", "client_secret", "client_assertion", "client_assertion_type"}, name) {
			p.Add("parameters."+name, "has a key of its own", "use scopes, client_id, client_secret or client_assertion_file")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Extensions)) {
		switch {
		case name == "auth" || !extensionName.MatchString(name):
			p.Add("extensions."+name, "is not a name for an extension", "use ASCII letters; auth is taken by the token")
		case !extensionValue.MatchString(o.Extensions[name]):
			p.Add("extensions."+name, "is empty, or has a character that Kafka does not accept", "use printable ASCII characters")
		}
	}
	config.CheckFile(&p, "ca_file", o.CAFile, "name a PEM file that is readable by this process")
	config.CheckFile(&p, "token_file", o.TokenFile, "name a file that is readable by this process")
	config.CheckFile(&p, "client_assertion_file", o.ClientAssertionFile, "name a file that is readable by this process")
	return p.Err()
}

// bearer is SASL mechanism OAUTHBEARER (RFC 7628, KIP-255).
type bearer struct {
	tokens     *tokens
	extensions map[string]string
}

// Name implements sasl.Mechanism.
func (*bearer) Name() string { return "OAUTHBEARER" }

// Start implements sasl.Mechanism.
func (b *bearer) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	token, err := b.tokens.get(ctx)
	if err != nil {
		return nil, nil, err
	}
	fields := []string{"n,,", "auth=Bearer " + token}
	for _, name := range slices.Sorted(maps.Keys(b.extensions)) {
		fields = append(fields, name+"="+b.extensions[name])
	}
	return &bearerState{token: token, tokens: b.tokens}, []byte(strings.Join(fields, "\x01") + "\x01\x01"), nil
}

// bearerState is an authentication with OAUTHBEARER.
type bearerState struct {
	token     string
	tokens    *tokens
	challenge string // of the server, which refuses the token
}

// Next implements sasl.StateMachine. A server accepts with an empty challenge,
// and refuses with an error in JSON, which the client has to answer.
func (b *bearerState) Next(_ context.Context, challenge []byte) (done bool, response []byte, err error) {
	switch {
	case len(challenge) == 0 && b.challenge == "":
		return true, nil, nil
	case b.challenge != "":
		return false, nil, errors.New("the broker neither accepts nor refuses the token")
	}
	b.tokens.forget(b.token)
	b.challenge = string(challenge)
	return false, []byte{1}, nil
}

// hide removes the token from a text of the broker.
func (b *bearerState) hide(text string) string { return strings.ReplaceAll(text, b.token, "***") }

// token is an access token.
type token struct {
	text    string
	fetched time.Time
	expires time.Time // zero if unknown
}

// fresh reports whether the token has at least 20 % of its lifetime left.
func (t token) fresh(now time.Time) bool {
	return t.text != "" && (t.expires.IsZero() || now.Before(t.fetched.Add(t.expires.Sub(t.fetched)/5*4)))
}

// good reports whether the token is still accepted for a while.
func (t token) good(now time.Time) bool {
	return t.text != "" && (t.expires.IsZero() || now.Before(t.expires.Add(-5*time.Second)))
}

// tokens keeps a token for several connections. One fetch runs at a time, and
// goes on without a waiting caller.
type tokens struct {
	life  context.Context // ends with the sink
	fetch func(ctx context.Context) (token, error)
	keep  bool // whether a token is used again

	mu     sync.Mutex
	latest token
	run    *fetch // nil without a fetch
}

// fetch is a running fetch of a token.
type fetch struct {
	done  chan struct{} // closed at the end
	token token
	err   error
}

// get returns a token. If a new token cannot be fetched, the kept token is used
// as long as the token is accepted.
func (t *tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	kept := t.latest
	if kept.fresh(time.Now()) {
		t.mu.Unlock()
		return kept.text, nil
	}
	run := t.run
	if run == nil {
		run = &fetch{done: make(chan struct{})}
		t.run = run
		go t.load(run) //nolint:contextcheck // for all callers
	}
	t.mu.Unlock()
	var err error
	select {
	case <-run.done:
		if err = run.err; err == nil {
			return run.token.text, nil
		}
	case <-ctx.Done():
		err = fmt.Errorf("waiting for a token: %w", ctx.Err())
	}
	if kept.good(time.Now()) {
		return kept.text, nil
	}
	return "", err
}

func (t *tokens) load(run *fetch) {
	ctx, cancel := context.WithTimeout(t.life, tokenTimeout)
	defer cancel()
	run.token, run.err = t.fetch(ctx)
	if run.err == nil {
		run.err = checkToken(run.token.text)
	}
	run.token.fetched = time.Now()
	t.mu.Lock()
	if t.run = nil; run.err == nil && t.keep {
		t.latest = run.token
	}
	t.mu.Unlock()
	close(run.done)
}

// forget drops a kept token that a broker refused.
func (t *tokens) forget(text string) {
	t.mu.Lock()
	if t.latest.text == text {
		t.latest = token{}
	}
	t.mu.Unlock()
}

// checkToken returns an error without the token.
func checkToken(text string) error {
	switch {
	case text == "":
		return errors.New("the token is empty")
	case len(text) > maxToken:
		return fmt.Errorf("the token has more than %v", config.Size(maxToken))
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return errors.New("the token holds a space, a line break or another character that a token may not have")
	}
	return nil
}

// newBearer returns mechanism OAUTHBEARER. Life ends with the sink; dial is the
// way to the token endpoint.
func (o OAuth) newBearer(life context.Context, dial dialFunc) (*bearer, error) {
	b := &bearer{extensions: o.Extensions}
	switch o.Provider {
	case tokenFile:
		b.tokens = &tokens{life: life, fetch: func(context.Context) (token, error) {
			text, err := readSmall(o.TokenFile)
			return token{text: text}, err
		}}
	case awsMSKIAM:
		b.tokens = &tokens{life: life, keep: true, fetch: o.signed}
	case googleCloud:
		b.tokens = &tokens{life: life, keep: true, fetch: googleToken}
	default:
		client, err := o.client(dial)
		if err != nil {
			return nil, err
		}
		b.tokens = &tokens{life: life, keep: true, fetch: func(ctx context.Context) (token, error) {
			return o.exchange(context.WithValue(ctx, oauth2.HTTPClient, client))
		}}
	}
	return b, nil
}

// client returns the HTTP client for the token endpoint. The client follows no
// redirects, which could lead the secret elsewhere.
func (o OAuth) client(dial dialFunc) (*http.Client, error) {
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("sasl: oauth: ca_file: %w", err)
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("sasl: oauth: ca_file: %s contains no certificate in PEM", o.CAFile)
		}
	}
	return &http.Client{
		Timeout: tokenTimeout,
		Transport: &http.Transport{
			DialContext: dial, TLSClientConfig: settings, TLSHandshakeTimeout: tokenTimeout, MaxResponseHeaderBytes: 64 << 10,
			DisableKeepAlives: true, // a token is fetched rarely
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// exchange gets a token for the client credentials.
func (o OAuth) exchange(ctx context.Context) (token, error) {
	c := clientcredentials.Config{
		ClientID: o.ClientID, ClientSecret: o.ClientSecret.Reveal(), TokenURL: o.TokenURL, Scopes: o.Scopes, EndpointParams: url.Values{},
	}
	secrets := []string{c.ClientSecret}
	for name, value := range o.Parameters {
		c.EndpointParams.Set(name, value.Reveal())
		secrets = append(secrets, value.Reveal())
	}
	if o.ClientAssertionFile != "" {
		assertion, err := readSmall(o.ClientAssertionFile)
		if err != nil {
			return token{}, err
		}
		secrets = append(secrets, assertion)
		c.AuthStyle = oauth2.AuthStyleInParams
		c.EndpointParams.Set("client_assertion_type", assertionType)
		c.EndpointParams.Set("client_assertion", assertion)
	}
	t, err := c.Token(ctx)
	if err != nil {
		return token{}, fmt.Errorf("getting a token from %s: %w", o.TokenURL, endpointError(err, secrets...))
	}
	return token{text: t.AccessToken, expires: t.Expiry}, nil
}

// endpointError shortens the error of a token endpoint, and hides what the
// endpoint repeats of the secrets in the request. The library quotes the body of
// the response, which may hold a token.
func endpointError(err error, secrets ...string) error {
	e, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		if _, ok := errors.AsType[*url.Error](err); ok {
			return err
		}
		return errors.New("the response is no token in JSON")
	}
	texts := []string{"the endpoint answers " + brief(e.Response.Status)}
	for _, each := range []string{e.ErrorCode, e.ErrorDescription} {
		for _, secret := range secrets {
			if secret != "" {
				each = strings.ReplaceAll(each, secret, "***")
			}
		}
		if each = brief(each); each != "" {
			texts = append(texts, each)
		}
	}
	return errors.New(strings.Join(texts, ": "))
}

// readSmall reads the token in a file.
func readSmall(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+2))
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if err := checkToken(text); err != nil {
		return "", fmt.Errorf("file %s: %w", path, err)
	}
	return text, nil
}

// signed signs a token for Amazon MSK with the AWS credentials of the
// environment: variables, shared files, web identity, container, instance.
func (o OAuth) signed(ctx context.Context) (token, error) {
	text, expires, err := signer.GenerateAuthToken(ctx, o.Region)
	if err != nil {
		return token{}, fmt.Errorf("signing a token for Amazon MSK: %w", err)
	}
	return token{text: text, expires: time.UnixMilli(expires)}, nil
}

// googleToken makes a token for Google's Managed Service for Apache Kafka: an
// access token behind a header and claims without a signature.
func googleToken(ctx context.Context) (token, error) {
	credentials, err := google.FindDefaultCredentials(ctx, googleScope)
	if err != nil {
		return token{}, fmt.Errorf("finding the Application Default Credentials: %w", err)
	}
	t, err := credentials.TokenSource.Token()
	if err != nil {
		return token{}, fmt.Errorf("getting a token from Google: %w", endpointError(err))
	}
	account, err := googleAccount(ctx, credentials.JSON)
	if err != nil {
		return token{}, err
	}
	claims, err := json.Marshal(map[string]any{
		"exp": t.Expiry.Unix(), "iat": time.Now().Unix(), "iss": "Google", "scope": "kafka", "sub": account,
	})
	if err != nil {
		return token{}, err
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"typ":"JWT","alg":"GOOG_OAUTH2_TOKEN"}`)) + "." + encode(claims) + "." + encode([]byte(t.AccessToken))
	return token{text: text, expires: t.Expiry}, nil
}

// impersonated finds the service account in the URL of an impersonation.
var impersonated = regexp.MustCompile(`/serviceAccounts/([^/:]+):`)

// googleAccount returns the e-mail address of the service account of
// credentials. Without a credentials file, the metadata server knows the address.
func googleAccount(ctx context.Context, file []byte) (string, error) {
	var c struct {
		Email string `json:"client_email"`
		URL   string `json:"service_account_impersonation_url"`
	}
	if len(file) > 0 {
		if err := json.Unmarshal(file, &c); err != nil {
			return "", errors.New("the Application Default Credentials are no JSON")
		}
		if found := impersonated.FindStringSubmatch(c.URL); c.Email == "" && found != nil {
			c.Email = found[1]
		}
		if c.Email == "" {
			return "", errors.New("the Application Default Credentials name no service account: use the credentials of a service account")
		}
		return c.Email, nil
	}
	email, err := metadata.EmailWithContext(ctx, "default")
	if err != nil {
		return "", fmt.Errorf("asking the metadata server for the service account: %w", err)
	}
	return email, nil
}
