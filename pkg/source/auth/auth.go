// Package auth authenticates webhooks. The configuration of a source lists the required
// proofs, and a request must pass all of them. Each proof accepts several secrets, for
// rotation. A check compares digests of one length with every secret in constant time, so
// that timing reveals nothing about secrets.
package auth

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

var _ config.Value = (*Auth)(nil)

// Auth is the key `auth` of a source: the word none, or the required proofs.
type Auth struct {
	None bool `yaml:"-"`

	// Default is the signature preset of the kind of source, set among the defaults of the
	// kind. Without a default, a signature must configure its format.
	Default Preset `yaml:"-"`

	Signature         *Signature         `yaml:"signature" doc:"Signature of each webhook with a shared secret (HMAC)."`
	Basic             *Basic             `yaml:"basic" doc:"User name and password (HTTP basic authentication)."`
	Bearer            *Bearer            `yaml:"bearer" doc:"Token in the header Authorization: Bearer."`
	Header            *Header            `yaml:"header" doc:"Secret in a custom header."`
	PathToken         *PathToken         `yaml:"path_token" doc:"Secret token as the last segment of the URL path, after one of paths: for senders that support nothing but a URL. The token is kept out of logs, metrics and the journal."`
	ClientCertificate *ClientCertificate `yaml:"client_certificate" doc:"Client certificate from an authority in server.tls.client_ca_file, with a subject or alternative name from these lists. One match is enough. TLS must end at Postwire, not at a proxy."`
	IPAllow           []netip.Prefix     `yaml:"ip_allow" doc:"Addresses allowed to send, as CIDRs; other addresses are answered 403. Behind a proxy, list the proxy in server.trusted_proxies." example:"[203.0.113.0/24]"`
}

// UnmarshalConfig implements config.Value.
func (a *Auth) UnmarshalConfig(n config.Node) error {
	if n.IsMapping() {
		if err := n.Decode(a); err != nil {
			return err
		}
		if a.Signature != nil { // print the values in effect
			a.Signature = new(a.signature())
		}
		return nil
	}
	if text, ok := n.Text(); !ok || text != none {
		return n.Want("the word none or a mapping", `for example {signature: {secrets: ["${WEBHOOK_SECRET}"]}}, or none to take webhooks from anybody`)
	}
	*a = Auth{None: true, Default: a.Default}
	return nil
}

// MarshalConfig implements config.Value.
func (a *Auth) MarshalConfig() any {
	if a.None {
		return none
	}
	return nil
}

// DescribeConfig implements config.Value.
func (a *Auth) DescribeConfig() config.Syntax {
	return config.Syntax{Type: "none or a mapping", Words: []string{none}, Fields: true}
}

const none = "none"

// signature returns the configured signature with the default preset for missing values.
func (a Auth) signature() Signature {
	s := *a.Signature
	if s.Preset == "" && len(s.spelledOut()) == 0 {
		s.Preset = a.Default
	}
	return s
}

// Following returns a with a preset for missing values of its signature, for kinds of
// sources whose other keys identify the sender. The zero Preset changes nothing.
func (a Auth) Following(p Preset) Auth {
	if p == "" {
		return a
	}
	a.Default = p
	if a.Signature != nil {
		a.Signature = new(a.signature())
	}
	return a
}

// Validate returns all errors, under the key auth.
func (a Auth) Validate() error {
	var p config.Invalids
	if !a.None && a.Signature == nil && a.Basic == nil && a.Bearer == nil && a.Header == nil &&
		a.PathToken == nil && a.ClientCertificate == nil && len(a.IPAllow) == 0 {
		p.Add("auth", "is missing", "say how the sender proves who it is, for example auth: {signature: {secrets: [\"${WEBHOOK_SECRET}\"]}}, or say auth: none")
	}
	if a.Signature != nil {
		p.Nest("auth.signature", a.signature().Validate())
		if a.Signature.FromAPI && a.Default != UploadPost {
			p.Add("auth.signature.from_api", "has no effect: only sources of type uploadpost know their sender's API", "remove it, and list secrets")
		}
	}
	if a.Basic != nil {
		p.Nest("auth.basic", a.Basic.Validate())
	}
	if a.Bearer != nil {
		p.Nest("auth.bearer", a.Bearer.Validate())
	}
	if a.Header != nil {
		p.Nest("auth.header", a.Header.Validate())
	}
	if a.PathToken != nil {
		p.Nest("auth.path_token", a.PathToken.Validate())
	}
	if a.ClientCertificate != nil {
		p.Nest("auth.client_certificate", a.ClientCertificate.Validate())
	}
	const clash = "and a request has one header Authorization"
	switch named := a.Header != nil && http.CanonicalHeaderKey(a.Header.Name) == authorization; {
	case a.Basic != nil && a.Bearer != nil:
		p.Add("auth.bearer", "uses the header Authorization like auth.basic, "+clash, "remove auth.basic or auth.bearer")
	case named && a.Basic != nil:
		p.Add("auth.header.name", "is the header of auth.basic, "+clash, "remove auth.basic or auth.header")
	case named && a.Bearer != nil:
		p.Add("auth.header.name", "is the header of auth.bearer, "+clash, "remove auth.bearer or auth.header")
	}
	return p.Err()
}

// Verifier checks requests with a valid Auth. The methods may be called concurrently.
type Verifier struct {
	allow  []netip.Prefix
	token  check // also in checks; nil without a path token
	checks []check
	proof  source.Proof
}

// check is one kind of proof. Its errors quote nothing of the request.
type check func(r *source.Request) error

// Verifier returns a verifier. The error is the error of Validate, because an invalid Auth
// must accept no request.
func (a Auth) Verifier() (*Verifier, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	v := &Verifier{allow: a.IPAllow, proof: source.Proof{
		Required: !a.None, PathToken: a.PathToken != nil, ClientCertificate: a.ClientCertificate != nil,
	}}
	add := func(w check, secret ...string) {
		v.checks = append(v.checks, w)
		v.proof.SecretHeaders = append(v.proof.SecretHeaders, secret...)
	}
	// Cheap checks come first, because a stranger should cost little.
	if a.PathToken != nil {
		v.token = a.PathToken.check()
		add(v.token)
	}
	if a.ClientCertificate != nil {
		add(a.ClientCertificate.check())
	}
	if a.Basic != nil {
		add(a.Basic.check(), authorization)
	}
	if a.Bearer != nil {
		add(a.Bearer.check(), authorization)
	}
	if a.Header != nil {
		add(a.Header.check(), http.CanonicalHeaderKey(a.Header.Name))
	}
	if a.Signature != nil {
		s, err := newSigning(a.signature())
		if err != nil {
			return nil, fmt.Errorf("auth.signature: %w", err)
		}
		add(s.verify, s.secretHeaders()...)
		v.proof.HeaderSets, v.proof.Signs = s.headerSets(), s.signs()
	}
	return v, nil
}

// Verify returns nil if r passes all proofs. It implements source.Source.
func (v *Verifier) Verify(r *source.Request) error {
	if err := v.allows(r); err != nil {
		return err
	}
	for _, passes := range v.checks {
		if err := passes(r); err != nil {
			return fmt.Errorf("%w: %w", source.ErrUnauthenticated, err)
		}
	}
	return nil
}

// Reaches is Verify for a request before the first webhook, which has no credentials: it
// checks the sender's address and the path token. Nothing of such a request may be stored.
func (v *Verifier) Reaches(r *source.Request) error {
	if err := v.allows(r); err != nil {
		return err
	}
	if v.token == nil {
		return nil
	}
	if err := v.token(r); err != nil {
		return fmt.Errorf("%w: %w", source.ErrUnauthenticated, err)
	}
	return nil
}

func (v *Verifier) allows(r *source.Request) error {
	if len(v.allow) == 0 {
		return nil
	}
	addr := r.Remote.Unmap()
	if !addr.IsValid() {
		return fmt.Errorf("the sender's address is unknown, because a trusted proxy names none that can be read, and auth.ip_allow needs it: %w", source.ErrForbidden)
	}
	if !slices.ContainsFunc(v.allow, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return fmt.Errorf("address %s is not in auth.ip_allow: %w", addr, source.ErrForbidden)
	}
	return nil
}

// Proof returns the required proofs.
func (v *Verifier) Proof() source.Proof {
	p := v.proof
	p.SecretHeaders = slices.Clone(p.SecretHeaders)
	return p
}

// one returns the value of a header that must occur once: a proxy and Postwire could use
// different ones of two.
func one(h http.Header, name string) (string, error) {
	switch values := h[name]; {
	case len(values) > 1:
		return "", fmt.Errorf("header %s is sent more than once", name)
	case len(values) == 0 || values[0] == "":
		return "", fmt.Errorf("header %s is missing", name)
	default:
		return values[0], nil
	}
}
