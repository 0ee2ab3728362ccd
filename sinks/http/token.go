package http

import (
	"context"
	"errors"
	"fmt"
	nethttp "net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/postwire/postwire/config"
)

// OAuth2 gets tokens for the receiver by the client credentials grant (RFC 6749, 4.4).
type OAuth2 struct {
	TokenURL     config.URL    `yaml:"token_url" doc:"URL of the token endpoint: http or https, with a host." example:"https://login.internal/oauth2/token"`
	ClientID     string        `yaml:"client_id" doc:"Client ID."`
	ClientSecret config.Secret `yaml:"client_secret" doc:"Client secret." example:"${FUNCTIONS_CLIENT_SECRET}"`
	Scopes       []string      `yaml:"scopes" doc:"Scopes to ask for." example:"[events.write]"`
	Audience     string        `yaml:"audience" doc:"Value of the parameter audience, which some token endpoints require."`
	TLS          config.TLS    `yaml:"tls" doc:"TLS to the token endpoint. An https URL is always encrypted; enabled: true is needed for the other keys to take effect."`
}

func (o OAuth2) used() bool {
	return o.TokenURL != "" || o.ClientID != "" || o.ClientSecret != "" || len(o.Scopes) > 0 || o.Audience != ""
}

func (o OAuth2) check(p *config.Invalids) {
	if !o.used() {
		return
	}
	u, err := url.Parse(o.TokenURL.Reveal())
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		p.Add("oauth2.token_url", "is not a URL of http or https with a host", "for example https://login.internal/oauth2/token")
	case u.User != nil:
		p.Add("oauth2.token_url", "holds a user name or a password", "set client_id and client_secret instead")
	}
	if o.ClientID == "" {
		p.Add("oauth2.client_id", "is missing", "name the client")
	}
	if o.ClientSecret == "" {
		p.Add("oauth2.client_secret", "is missing", "for example ${FUNCTIONS_CLIENT_SECRET}")
	}
	o.TLS.Check("oauth2.tls", p)
}

const (
	// tokenTimeout limits a request for a token.
	tokenTimeout = 10 * time.Second
	// refusedTokenAge is the age at which a token that the receiver has never accepted is
	// dropped after a 401. A receiver that refuses every token must not make the sink ask
	// for a token with each request.
	refusedTokenAge = time.Minute
)

// tokens keeps the current token. The methods may be called concurrently.
type tokens struct {
	config clientcredentials.Config
	client *nethttp.Client

	busy     chan struct{} // holds a value while the fields below are in use
	token    *oauth2.Token
	fetched  time.Time
	accepted bool // the receiver has answered a request with the token by another status than 401
}

func newTokens(o OAuth2, transport *nethttp.Transport) *tokens {
	c := clientcredentials.Config{ClientID: o.ClientID, ClientSecret: o.ClientSecret.Reveal(), TokenURL: o.TokenURL.Reveal(), Scopes: o.Scopes}
	if o.Audience != "" {
		c.EndpointParams = url.Values{"audience": {o.Audience}}
	}
	return &tokens{
		config: c, busy: make(chan struct{}, 1),
		client: &nethttp.Client{Transport: transport, Timeout: tokenTimeout, CheckRedirect: func(*nethttp.Request, []*nethttp.Request) error {
			return nethttp.ErrUseLastResponse // the secret is for this endpoint only
		}},
	}
}

// get returns a valid token. One caller asks the endpoint, and the others wait.
func (t *tokens) get(ctx context.Context) (*oauth2.Token, error) {
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if t.token.Valid() {
		return t.token, nil
	}
	token, err := t.config.Token(context.WithValue(ctx, oauth2.HTTPClient, t.client))
	if err != nil {
		return nil, fmt.Errorf("getting a token from oauth2.token_url: %w", tokenCause(err))
	}
	t.token, t.fetched, t.accepted = token, time.Now(), false
	return token, nil
}

// judge records the status of an answer to a request with a token, and reports whether a
// request with another token may succeed.
func (t *tokens) judge(token *oauth2.Token, status int) (again bool) {
	t.busy <- struct{}{}
	defer func() { <-t.busy }()
	switch {
	case status != nethttp.StatusUnauthorized:
		t.accepted = t.accepted || token == t.token
		return false
	case token != t.token:
		return true // another request has dropped the token already
	case t.accepted || time.Since(t.fetched) >= refusedTokenAge:
		t.token = nil
		return true
	}
	return false
}

// tokenCause returns an error without the answer of the token endpoint, which may quote a
// secret.
func tokenCause(err error) error {
	answer, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return cause(err)
	}
	if answer.Response == nil || answer.Response.StatusCode < 300 {
		return errors.New("the answer has no access_token")
	}
	text := fmt.Sprintf("the token endpoint answers %d %s", answer.Response.StatusCode, nethttp.StatusText(answer.Response.StatusCode))
	known := []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}
	if slices.Contains(known, answer.ErrorCode) {
		text += ": " + answer.ErrorCode
	}
	return errors.New(text)
}
