// Package source is the second step (ingress, source, journal, relay, sinks):
// it knows who sends webhooks. A source verifies a request and normalizes its
// body into CloudEvents with identity keys. Each kind of sender is a package
// below this one; this package holds what they have in common.
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
	// ErrUnauthenticated is wrapped by an error of Verify: credentials are
	// missing, wrong or stale.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrWrongSecret is wrapped beside ErrUnauthenticated where nothing is
	// wrong but the secret: it may be one that is not known here yet.
	ErrWrongSecret = errors.New("no secret fits the signature")
	// ErrForbidden is wrapped by an error of Verify: the address is not allowed.
	ErrForbidden = errors.New("forbidden")
)

// Request is a webhook as it arrived, already within the ingress's limits.
type Request struct {
	Method   string
	Path     string // one of the source's paths
	RawQuery string // what is behind the question mark, as it was sent
	Header   http.Header
	Body     []byte     // whole; shared, never modified
	Remote   netip.Addr // of the sender, behind trusted proxies
	Received time.Time  // UTC; the only clock a source may look at

	// Token is the segment behind Path, where the source's Proof asks for one.
	// It is a secret.
	Token string

	// Scheme and Host are those that the sender used, also where trusted
	// proxies stand between. Target is path and query as they were sent; the
	// token is in it, so it is as secret as Token.
	Scheme, Host, Target string

	// Client is the certificate of the sender, verified; nil without one.
	Client *x509.Certificate
}

// Proof is what a source asks of its senders, for the ingress to act on.
type Proof struct {
	// Required tells whether Verify asks for proof at all. What an unproven
	// sender sends and nobody understands is not kept.
	Required bool

	// SecretHeaders are the headers that are part of the proof, and are not
	// to be kept.
	SecretHeaders []string

	// HeaderSets are, where a sender signs under names of which there are
	// several, the headers of each delivery's names: that of the signature, then
	// those that are signed. The first set whose signature was sent is the one
	// that Verify looks at.
	HeaderSets [][]string

	// Signs tells what a signature covers; nil where there is none.
	Signs *Signs

	// PathToken tells whether one segment behind the path is part of the
	// proof.
	PathToken bool

	// ClientCertificate tells whether the sender's certificate is part of the
	// proof, so that the server must ask for one.
	ClientCertificate bool
}

// Signs is what a signature covers besides the body.
type Signs struct {
	Headers []string // in lower case
	URL     bool     // path and query
}

// Signed returns the values that are signed besides the body, so far as they are
// no secret: with the body, the same for a request that is sent again.
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

// Set returns the header set that Verify looks at.
func (p Proof) Set(h http.Header) []string {
	for _, set := range p.HeaderSets {
		if len(h[set[0]]) > 0 {
			return set
		}
	}
	return nil
}

// Public returns a copy of r less all that is secret, and less headers of a set
// that was not verified: what may be kept, and what events may be made of.
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
	// Proxies may tell in a header which URL they were asked for.
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

// Source understands one kind of sender. It is pure: a request in, events or
// a typed error out, no I/O. Its methods may be called concurrently.
type Source interface {
	// Verify returns nil if the request comes from whom it claims to, and
	// otherwise an error that wraps ErrUnauthenticated or ErrForbidden. It
	// looks at headers and raw bytes only, so that a stranger costs one hash
	// and no parsing. Its error may be logged: it quotes nothing secret.
	Verify(r *Request) error

	// Normalize turns a verified request into events, in the sender's order.
	// Equal bodies give equal CloudEvents ids and keys, today and after an
	// upgrade; where the configuration takes identity from elsewhere, equal
	// methods, paths, queries and headers do. It looks at nothing secret: a
	// request that was kept without its secrets gives the same. A body it
	// cannot read is a *MalformedError, without events; a question of the
	// sender that is no event is a *ChallengeError.
	Normalize(r *Request) ([]event.Event, error)

	// Proof tells what Verify asks for. It is always the same.
	Proof() Proof

	// Attributes returns the extension attributes that events of this source can
	// have besides those that every event has (event.Core). It is always the
	// same.
	Attributes() Attributes

	// Options answers a sender that asks with the method OPTIONS, before it
	// sends anything, whether it may. The request has no body, and none of
	// the credentials that go with one. It returns the headers by which the
	// sender is let, or false if it is not, or the source knows no such
	// question: the answer is then as if nobody did.
	Options(r *Request) (http.Header, bool)
}

// Attributes are the extension attributes that events of a source can have.
type Attributes struct {
	Names []string
	Any   bool // events can have extensions beyond Names: the sender names them
}

// MalformedError says which field of a body could not be understood, and why.
// It may be logged: it quotes nothing of the body.
type MalformedError struct {
	Field string // JSON pointer, RFC 6901, the name of a header, or the key that maps it; "" is the whole body
	Err   error
}

func (e *MalformedError) Error() string {
	if e.Field == "" {
		return "body: " + e.Err.Error()
	}
	return fmt.Sprintf("%s: %v", e.Field, e.Err)
}

func (e *MalformedError) Unwrap() error { return e.Err }

// ChallengeError says that a request is no event but a question: the sender
// wants to see that this end understands it, and is answered 200 with the text.
type ChallengeError struct {
	Answer string // of the sender's own making; not to be logged
}

func (e *ChallengeError) Error() string { return "the request is a challenge, and no event" }
