// Package source is the second step (ingress, source, journal, relay, sinks). A source
// authenticates the requests of one sender and normalizes their bodies into CloudEvents
// with identity keys. The packages below are the kinds of senders; this package has the
// common parts.
package source

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/postwire/postwire/pkg/event"
)

var (
	// ErrUnauthenticated is wrapped by an error of Verify: credentials are missing, wrong
	// or stale.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrWrongSecret is wrapped besides ErrUnauthenticated if only the secret does not
	// match: the sender may use a newer secret.
	ErrWrongSecret = errors.New("no secret fits the signature")
	// ErrForbidden is wrapped by an error of Verify: the address is not allowed.
	ErrForbidden = errors.New("forbidden")
)

// Request is a received webhook, within the limits of the ingress.
type Request struct {
	Method   string
	Path     string // a path of the source
	RawQuery string // text after the question mark, as sent
	Header   http.Header
	Body     []byte     // complete; shared, never modified
	Remote   netip.Addr // address of the sender, behind trusted proxies
	Received time.Time  // UTC; the only clock that a source may use

	// Token is the path segment after Path if Proof.PathToken is set. Token is a secret.
	Token string

	// Scheme and Host are those of the sender's URL, also behind trusted proxies. Target is
	// the sent path and query; it contains Token and is as secret.
	Scheme, Host, Target string

	// Client is the verified client certificate; nil without one.
	Client *x509.Certificate
}

// Proof describes the authentication of a source for the ingress.
type Proof struct {
	// Required is set if Verify authenticates senders. A malformed request of a source
	// without authentication is not quarantined.
	Required bool

	// SecretHeaders are the headers of the proof. They must not be stored.
	SecretHeaders []string

	// HeaderSets are the header names of a delivery, for a sender with several names of its
	// headers: the signature, then the signed headers. Verify uses the first set with a
	// sent signature.
	HeaderSets [][]string

	// Signs describes the signed parts; nil without a signature.
	Signs *Signs

	// PathToken is set if one path segment after the path is part of the proof.
	PathToken bool

	// ClientCertificate is set if the client certificate is part of the proof, so that the
	// server must request a certificate.
	ClientCertificate bool
}

// Signs describes the signed parts besides the body.
type Signs struct {
	Headers []string // lower case
	URL     bool     // path and query
}

// Signed returns the signed values besides the body that are not secret. With the body they
// are equal for a repeated request.
func (p Proof) Signed(r *Request) []string {
	var values []string
	for _, name := range p.Signs.Headers {
		values = append(values, r.Header.Get(name))
	}
	if p.Signs.URL {
		values = append(values, r.Path, r.RawQuery)
	}
	return values
}

// Set returns the header set that Verify uses.
func (p Proof) Set(h http.Header) []string {
	for _, set := range p.HeaderSets {
		if len(h[set[0]]) > 0 {
			return set
		}
	}
	return nil
}

// Public returns a copy of r without secrets and without headers of unverified sets: the
// part that may be stored, and of which a source may make events.
func (p Proof) Public(r *Request) *Request {
	public := *r
	public.Header = r.Header.Clone()
	public.Token, public.Target = "", ""
	if verified := p.Set(r.Header); verified != nil {
		for _, set := range p.HeaderSets {
			for _, name := range set {
				if !slices.Contains(verified, name) {
					public.Header.Del(name)
				}
			}
		}
	}
	for _, name := range append([]string{"Authorization", "Proxy-Authorization", "Cookie"}, p.SecretHeaders...) {
		public.Header.Del(name)
	}
	if r.Token == "" {
		return &public
	}
	// Proxies may add headers with the requested URL.
	target, _, _ := strings.Cut(r.Target, "?")
	written := target[strings.LastIndexByte(target, '/')+1:]
	tells := func(text string) bool {
		return strings.Contains(text, r.Token) || written != "" && strings.Contains(text, written)
	}
	for name, values := range public.Header {
		if slices.ContainsFunc(values, tells) {
			delete(public.Header, name)
		}
	}
	if tells(r.RawQuery) {
		public.RawQuery = ""
	}
	return &public
}

// Source understands one kind of sender. A source is pure: it turns a request into events
// or a typed error, without I/O. The methods may be called concurrently.
type Source interface {
	// Verify returns nil for an authentic request, and otherwise an error that wraps
	// ErrUnauthenticated or ErrForbidden. Verify uses headers and raw bytes only, so that a
	// stranger costs one hash and no parsing. The error quotes no secret and may be logged.
	Verify(r *Request) error

	// Normalize turns a verified request into events, in the order of the sender. Equal
	// bodies have equal CloudEvents ids and keys, also after an upgrade; if the
	// configuration takes the identity from elsewhere, equal methods, paths, queries and
	// headers do. Normalize uses no secrets: the Public part of a request has an equal
	// result. For a body that Normalize cannot understand the error is a *MalformedError;
	// for a challenge of the sender it is a *ChallengeError.
	Normalize(r *Request) ([]event.Event, error)

	// Proof returns the authentication of the source. The result is constant.
	Proof() Proof

	// Attributes returns the possible extension attributes of events besides those of every
	// event (event.Core). The result is constant.
	Attributes() Attributes

	// Options answers an OPTIONS handshake before the first webhook. The request has no
	// body and no credentials in headers or body. Options returns the response headers that
	// allow the sender, or false if the source does not allow the sender or has no
	// handshake: the ingress then answers as for any source without a handshake.
	Options(r *Request) (http.Header, bool)
}

// Attributes are the possible extension attributes of a source's events.
type Attributes struct {
	Names []string
	Any   bool // events can have extensions that the sender names
}

// MalformedError names the field of a body that a source could not understand, and the
// reason. The error quotes nothing of the body and may be logged.
type MalformedError struct {
	Field string // JSON pointer (RFC 6901), header name, or mapping key; "" is the whole body
	Err   error
}

func (e *MalformedError) Error() string {
	if e.Field == "" {
		return "body: " + e.Err.Error()
	}
	return fmt.Sprintf("%s: %v", e.Field, e.Err)
}

func (e *MalformedError) Unwrap() error { return e.Err }

// ChallengeError is a challenge of the sender that checks the endpoint. The answer is 200
// with the text.
type ChallengeError struct {
	Answer string // chosen by the sender; must not be logged
}

func (e *ChallengeError) Error() string { return "the request is a challenge, and no event" }
