package http

import (
	"fmt"
	nethttp "net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/sinks"
)

// batched is a content mode of HTTP only.
const batched = "batched"

// Config is the block of a sink of type http.
type Config struct {
	URL         config.URL  `yaml:"url" required:"true" doc:"URL of the receiver for all events: http or https, with a host. The path appears in logs and in the printed configuration, so write a token into headers." example:"https://functions.internal/events"`
	ContentMode string      `yaml:"content_mode" enum:"binary,structured,batched" doc:"binary: attributes in headers, the payload as the body. structured: the whole event as JSON. batched: several whole events as one JSON list, for receivers that accept batches."`
	MaxInFlight int         `yaml:"max_in_flight" doc:"Maximum number of concurrent requests, 1 to 1000. Events of one partition key are never in two concurrent requests."`
	BatchSize   int         `yaml:"batch_size" doc:"Maximum number of events per request, 1 to 10000; also limited by batch. Only used in mode batched."`
	BatchBytes  config.Size `yaml:"batch_bytes" doc:"Maximum size of a body with several events; a larger event is sent alone. Only used in mode batched."`

	Headers map[string]config.Secret `yaml:"headers" doc:"Headers of each request, by name. Headers set by the sink, and headers about the type, length or transfer of the body, are refused." example:"{X-Api-Key: \"${FUNCTIONS_KEY}\"}"`
	Basic   Basic                    `yaml:"basic" doc:"HTTP basic authentication."`
	Bearer  config.Secret            `yaml:"bearer" doc:"Token for the header Authorization: Bearer." example:"${FUNCTIONS_TOKEN}"`
	AWS     AWS                      `yaml:"aws" doc:"Signature Version 4, for a receiver in AWS with IAM authorization."`
	OAuth2  OAuth2                   `yaml:"oauth2" doc:"OAuth 2.0 client credentials: a token for the header Authorization, asked for at start, before the token expires, and once after the receiver has answered 401."`
	Signing Signing                  `yaml:"signing" doc:"Signatures that prove the origin of requests to the receiver, as in Standard Webhooks."`
	TLS     config.TLS               `yaml:"tls" doc:"TLS to the receiver. An https URL is always encrypted; enabled: true is needed for the other keys to take effect."`

	Proxy            config.URL    `yaml:"proxy" doc:"URL of an HTTP proxy, http only, with user name and password if the proxy asks for credentials. An https receiver is reached through CONNECT. The proxy is used for oauth2.token_url, too. Empty connects directly; HTTP_PROXY and similar environment variables are ignored." example:"http://relay:${PROXY_PASSWORD}@proxy.internal:3128"`
	MaxConnectionAge time.Duration `yaml:"max_connection_age" doc:"Age at which connections are replaced between two requests, so that a changed DNS record or a new receiver behind a load balancer gets requests. A request in flight completes. 0 keeps connections as long as they are used."`

	RefusePrivateAddresses bool `yaml:"refuse_private_addresses" doc:"Connect to public addresses only. Refuses addresses of this machine, private and link-local networks, cloud metadata services, and all other addresses outside the public internet. Each address is checked when a connection is opened, so that no DNS name can bypass the check. Set this if the URL comes from an untrusted person."`
}

// Basic is a name and a password.
type Basic struct {
	Username string        `yaml:"username" doc:"User name."`
	Password config.Secret `yaml:"password" doc:"Password." example:"${FUNCTIONS_PASSWORD}"`
}

// Signing is how requests are signed.
type Signing struct {
	Secret config.Secret `yaml:"secret" doc:"Secret shared with the receiver. Without header: whsec_ followed by 24 bytes or more in base64, and the signature of Standard Webhooks covers webhook-id, webhook-timestamp and the body. With header: the text is the key. The attributes are covered in the modes structured and batched; in mode binary the attributes are headers and not covered." example:"${FUNCTIONS_SIGNING_SECRET}"`

	Header          string `yaml:"header" doc:"Name of an own signature header, instead of the headers of Standard Webhooks. The signature is an HMAC-SHA256." example:"X-Hub-Signature-256"`
	Value           string `yaml:"value" doc:"Value of header, with {signature}, {timestamp} (seconds since 1970) and {id} (equal when an event is sent again). Empty is {signature}." example:"sha256={signature}"`
	Signed          string `yaml:"signed" doc:"Signed text, with {body}, {timestamp} and {id}. Empty is {body}." example:"{timestamp}.{body}"`
	Encoding        string `yaml:"encoding" enum:"hex,base64" doc:"Encoding of {signature}. Only with header."`
	TimestampHeader string `yaml:"timestamp_header" doc:"Name of a header with the timestamp. Only with header." example:"X-Timestamp"`
	IDHeader        string `yaml:"id_header" doc:"Name of a header with the ID. Only with header." example:"X-Request-Id"`
}

// check shows nothing of the secret.
func (s Signing) check(p *config.Invalids) {
	if s.Header == "" {
		for _, k := range []struct{ key, value string }{{"value", s.Value}, {"signed", s.Signed}, {"timestamp_header", s.TimestampHeader}, {"id_header", s.IDHeader}} {
			if k.value != "" {
				p.Add("signing."+k.key, "has no effect without header", "set header, or remove the key")
			}
		}
		if s.Secret != "" {
			if _, err := parseKey(s.Secret); err != nil {
				p.Add("signing.secret", err.Error(), "use whsec_ and base64 of 24 bytes or more, such as openssl rand -base64 32 makes")
			}
		}
		return
	}
	if s.Secret == "" {
		p.Add("signing.secret", "is missing beside header", "for example ${FUNCTIONS_SIGNING_SECRET}")
	}
	if s.Value != "" && !strings.Contains(s.Value, "{signature}") {
		p.Add("signing.value", "has no {signature}", "for example sha256={signature}")
	}
	if strings.ContainsFunc(s.Value, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
		p.Add("signing.value", "has a line break or another character that a header may not have", "use printable ASCII")
	}
	if s.Signed != "" && !strings.Contains(s.Signed, "{body}") {
		p.Add("signing.signed", "has no {body}, so that the signature would prove nothing about the event", "for example {timestamp}.{body}")
	}
	for _, part := range []struct{ name, header, key string }{{"{timestamp}", s.TimestampHeader, "timestamp_header"}, {"{id}", s.IDHeader, "id_header"}} {
		if strings.Contains(s.Signed, part.name) && !strings.Contains(s.Value, part.name) && part.header == "" {
			p.Add("signing.signed", "has "+part.name+", and no header tells the receiver the value", "set signing."+part.key+", or write "+part.name+" into value")
		}
	}
}

func defaults() Config {
	return Config{ContentMode: sinks.Binary, MaxInFlight: 16, BatchSize: 100, BatchBytes: 1 << 20, MaxConnectionAge: 5 * time.Minute, Signing: Signing{Encoding: encodingHex}}
}

// Validate implements config.Settings.
func (c Config) Validate() error {
	var p config.Invalids
	c.checkURL(&p)
	if c.MaxInFlight < 1 || c.MaxInFlight > 1000 {
		p.Add("max_in_flight", fmt.Sprintf("%d is out of range", c.MaxInFlight), "use 1 to 1000")
	}
	if c.BatchSize < 1 || c.BatchSize > 10000 {
		p.Add("batch_size", fmt.Sprintf("%d is out of range", c.BatchSize), "use 1 to 10000")
	}
	if c.BatchBytes < 1024 {
		p.Add("batch_bytes", fmt.Sprintf("%d is too small", int64(c.BatchBytes)), "use 1KiB or more")
	}
	c.checkHeaders(&p)
	c.checkLogin(&p)
	c.Signing.check(&p)
	c.checkSigningHeaders(&p)
	c.AWS.check(&p)
	if c.AWS.used() && (c.OAuth2.used() || c.Bearer != "" || c.Basic != (Basic{})) {
		p.Add("aws", "stands beside oauth2, bearer or basic, and each sets the header Authorization", "keep one of them")
	}
	c.TLS.Check("tls", &p)
	c.OAuth2.check(&p)
	c.checkProxy(&p)
	if c.MaxConnectionAge != 0 && c.MaxConnectionAge < time.Second {
		p.Add("max_connection_age", fmt.Sprintf("%v is too short", c.MaxConnectionAge), "use 1s or more, for example 5m, or 0 to keep connections")
	}
	return p.Err()
}

// checkURL does not show the url, because the url may contain a password or a
// token.
func (c Config) checkURL(p *config.Invalids) {
	const example = "for example https://functions.internal/events"
	u, err := url.Parse(c.URL.Reveal())
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		p.Add("url", "is not a URL of http or https with a host", example)
		return
	}
	if u.User != nil {
		p.Add("url", "holds a user name or a password", "set basic: {username: …, password: …} instead")
	}
	if u.Fragment != "" {
		p.Add("url", "has a fragment, which is never sent", "remove the part behind #")
	}
	if strings.ContainsFunc(u.Host, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		p.Add("url", "has a host with characters that are not ASCII", "write the host as xn--…")
	}
	if u.Scheme == "http" && c.TLS.Enabled {
		p.Add("tls.enabled", "has no effect, because url begins with http://", "begin url with https://, or remove tls")
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil && c.RefusePrivateAddresses && !public(addr) {
		p.Add("url", fmt.Sprintf("leads to %s, which refuse_private_addresses forbids", addr), "use a public address, or set refuse_private_addresses: false")
	}
}

// checkProxy does not show the URL of the proxy, because the URL may contain a password.
func (c Config) checkProxy(p *config.Invalids) {
	if c.Proxy == "" {
		return
	}
	if u, err := url.Parse(c.Proxy.Reveal()); err != nil || u.Hostname() == "" || u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
		p.Add("proxy", "is not a URL of http with a host and without a path", "for example http://proxy.internal:3128")
	}
	if c.RefusePrivateAddresses {
		p.Add("proxy", "stands beside refuse_private_addresses: the proxy chooses the address, and the sink cannot check the address", "keep one of them")
	}
}

// checkHeaders checks the headers against the rules of the transport. Values
// are secrets and not shown.
func (c Config) checkHeaders(p *config.Invalids) {
	names := make([]string, 0, len(c.Headers))
	for name := range c.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	seen := map[string]string{}
	for _, name := range names {
		key := "headers." + name
		if !httpguts.ValidHeaderFieldName(name) {
			// Not shown: may be a whole header, including the secret.
			p.Add("headers", "holds a name that no header has", "use letters, digits and dashes, then a colon, and the value")
			continue
		}
		canonical := nethttp.CanonicalHeaderKey(name)
		if other, twice := seen[canonical]; twice {
			p.Add(key, "is the same header as "+other, "keep one of them")
		}
		seen[canonical] = name
		if why, hint := c.owned(canonical); why != "" {
			p.Add(key, why, hint)
		}
		if !validValue(c.Headers[name]) {
			p.Add(key, "has a line break or another character that a header may not have", "use printable ASCII")
		}
	}
}

// checkSigningHeaders checks the names of the headers of an own signature.
func (c Config) checkSigningHeaders(p *config.Invalids) {
	seen := map[string]bool{}
	for name := range c.Headers {
		seen[nethttp.CanonicalHeaderKey(name)] = true
	}
	for _, h := range []struct{ key, name string }{{"header", c.Signing.Header}, {"timestamp_header", c.Signing.TimestampHeader}, {"id_header", c.Signing.IDHeader}} {
		if h.name == "" {
			continue
		}
		canonical, key := nethttp.CanonicalHeaderKey(h.name), "signing."+h.key
		switch why, hint := c.owned(canonical); {
		case !httpguts.ValidHeaderFieldName(h.name):
			p.Add(key, "is not the name of a header", "use letters, digits and dashes, for example X-Signature")
		case seen[canonical]:
			p.Add(key, "is the name of another header of this sink", "give each header a name of its own")
		case why != "" && !strings.HasPrefix(canonical, "Webhook-"):
			p.Add(key, why, hint)
		}
		seen[canonical] = true
	}
}

// owned says why a header is not the operator's to set.
func (c Config) owned(canonical string) (why, hint string) {
	const remove = "remove it"
	switch name := strings.ToLower(canonical); {
	case strings.HasPrefix(name, "ce-"):
		return "begins with ce-, as attributes of the event do", "use another name"
	case strings.HasPrefix(name, "content-"):
		return "says what the body is, which the sink does", remove
	case strings.HasPrefix(name, "proxy-"):
		return "is for a proxy", "write the credentials into proxy"
	case strings.HasSuffix(name, "idempotency-key"):
		return "would be the same for all events, so that a receiver takes only the first", "let the receiver compare ce-source and ce-id, or webhook-id"
	case name == "webhook-id", name == "webhook-timestamp", name == "webhook-signature":
		return "is part of the signature", "set signing instead"
	case name == "authorization" && (c.Basic.Username != "" || c.Bearer != "" || c.OAuth2.used() || c.AWS.used()):
		return "is also made of basic, bearer, oauth2 or aws", "keep one of them"
	case strings.HasPrefix(name, "x-amz-") && c.AWS.used():
		return "is part of the signature of aws", remove
	}
	switch canonical {
	case "Host", "Transfer-Encoding", "Connection", "Keep-Alive", "Te", "Trailer", "Upgrade", "Expect", "Http2-Settings":
		return "is the transport's own", remove
	}
	return "", ""
}

func (c Config) checkLogin(p *config.Invalids) {
	if c.Bearer != "" && c.Basic != (Basic{}) {
		p.Add("bearer", "stands beside basic", "keep one of them")
	}
	if c.OAuth2.used() && (c.Bearer != "" || c.Basic != (Basic{})) {
		p.Add("oauth2", "stands beside bearer or basic", "keep one of them")
	}
	if !validValue(c.Bearer) || strings.Contains(c.Bearer.Reveal(), " ") {
		p.Add("bearer", "has a space, a line break or another character that a token may not have", "write the token alone, without Bearer")
	}
	switch {
	case c.Basic.Username == "" && c.Basic.Password != "":
		p.Add("basic.username", "is missing beside password", "name the user")
	case c.Basic.Username != "" && c.Basic.Password == "":
		p.Add("basic.password", "is missing beside username", "for example ${FUNCTIONS_PASSWORD}")
	case strings.Contains(c.Basic.Username, ":"):
		p.Add("basic.username", "has a colon, which would end it", "use a name without one")
	}
}

// validValue reports whether a header may have this value, in printable ASCII.
func validValue(s config.Secret) bool {
	return !strings.ContainsFunc(s.Reveal(), func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// header returns the constant headers of each request.
func (c Config) header() nethttp.Header {
	h := nethttp.Header{"User-Agent": {"Postwire"}}
	for name, value := range c.Headers {
		h.Set(name, value.Reveal())
	}
	switch {
	case c.Basic.Username != "":
		r := nethttp.Request{Header: h}
		r.SetBasicAuth(c.Basic.Username, c.Basic.Password.Reveal())
	case c.Bearer != "":
		h.Set("Authorization", "Bearer "+c.Bearer.Reveal())
	}
	// A header without a value is not sent. The header tells the transport that
	// a request may be repeated if a reused connection turns out to be closed.
	// An event has an id and may always be repeated.
	h["Idempotency-Key"] = []string{}
	return h
}
