// Package auth holds the ways in which a webhook proves where it comes from.
// A source's configuration lists them; all that are listed must pass.
package auth

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

var _ config.Value = (*Auth)(nil)

// Auth is the `auth` key of a source: the word none, or the ways that must
// all pass.
type Auth struct {
	None bool `yaml:"-"`

	Signature *Signature     `yaml:"signature" doc:"HMAC-SHA256 over the timestamp, a dot and the raw body, as the sender makes it with the shared secret."`
	IPAllow   []netip.Prefix `yaml:"ip_allow" doc:"Addresses that may send, as CIDRs; others are answered 403. Behind a proxy, list it in server.trusted_proxies." example:"[203.0.113.0/24]"`
}

// UnmarshalConfig implements config.Value.
func (a *Auth) UnmarshalConfig(n config.Node) error {
	if n.IsMapping() {
		if err := n.Decode(a); err != nil {
			return err
		}
		if a.Signature != nil { // what is printed is what is in effect
			a.Signature.Tolerance = a.Signature.tolerance()
		}
		return nil
	}
	if text, ok := n.Text(); !ok || text != none {
		return n.Want("the word none or a mapping", `for example {signature: {secrets: ["${WEBHOOK_SECRET}"]}}, or none to take webhooks from anybody`)
	}
	*a = Auth{None: true}
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
func (a *Auth) DescribeConfig() config.Shape {
	return config.Shape{Type: "none or a mapping", Words: []string{none}, Fields: true}
}

const none = "none"

// Signature is how the sender signs.
type Signature struct {
	Secrets   []config.Secret `yaml:"secrets" required:"true" doc:"Shared secrets; any one of them may have signed, so that a rotation loses nothing." example:"[\"${UPLOAD_POST_WEBHOOK_SECRET}\"]"`
	Tolerance time.Duration   `yaml:"tolerance" doc:"How far the signed timestamp may be from now, either way. Unset is 5m."`
}

// DefaultTolerance is what the sender asks its receivers to allow.
const DefaultTolerance = 5 * time.Minute

func (s *Signature) tolerance() time.Duration { return cmp.Or(s.Tolerance, DefaultTolerance) }

// Validate reports everything that is wrong, under the key auth.
func (a Auth) Validate() error {
	var p config.Invalids
	if !a.None && a.Signature == nil && len(a.IPAllow) == 0 {
		p.Add("auth", "is missing", "say how the sender proves who it is, for example auth: {signature: {secrets: [\"${WEBHOOK_SECRET}\"]}}, or say auth: none")
	}
	if s := a.Signature; s != nil {
		if len(s.Secrets) == 0 {
			p.Add("auth.signature.secrets", "is empty", "list at least one secret")
		}
		for i, secret := range s.Secrets {
			if secret.Reveal() == "" {
				p.Add(fmt.Sprintf("auth.signature.secrets[%d]", i), "is an empty secret, with which anybody can sign", "set the variable or the file it comes from")
			}
		}
		if s.Tolerance < 0 {
			p.Add("auth.signature.tolerance", "is negative", "for example 5m")
		}
	}
	return p.Err()
}

// Scheme says in which headers a sender puts its signature.
type Scheme struct {
	SignatureHeader string
	Prefix          string // before the hex digits
	TimestampHeader string // Unix seconds
}

// Verify returns nil if r passes all the ways that are listed.
func (a Auth) Verify(r *source.Request, scheme Scheme) error {
	if len(a.IPAllow) > 0 {
		addr := r.Remote.Unmap()
		if !slices.ContainsFunc(a.IPAllow, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return fmt.Errorf("address %s is not in auth.ip_allow: %w", addr, source.ErrForbidden)
		}
	}
	if a.Signature != nil {
		if err := a.Signature.verify(r, scheme); err != nil {
			return fmt.Errorf("%w: %w", source.ErrUnauthenticated, err)
		}
	}
	return nil
}

func (s *Signature) verify(r *source.Request, scheme Scheme) error {
	signature, stamp := r.Header.Get(scheme.SignatureHeader), r.Header.Get(scheme.TimestampHeader)
	if signature == "" {
		return fmt.Errorf("header %s is missing", scheme.SignatureHeader)
	}
	if stamp == "" {
		return fmt.Errorf("header %s is missing", scheme.TimestampHeader)
	}
	digits, ok := strings.CutPrefix(signature, scheme.Prefix)
	given, err := hex.DecodeString(digits)
	if !ok || err != nil || len(given) != sha256.Size {
		return fmt.Errorf("header %s is not %s and 64 hex digits", scheme.SignatureHeader, scheme.Prefix)
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return fmt.Errorf("header %s is not a number of seconds", scheme.TimestampHeader)
	}
	// In seconds, where no timestamp can overflow.
	tolerance := s.tolerance()
	if off := r.Received.Unix() - seconds; off > int64(tolerance/time.Second) || -off > int64(tolerance/time.Second) {
		return fmt.Errorf("the timestamp is more than %v from this machine's clock", tolerance)
	}
	// Every secret is tried, so that the time taken does not tell which one fits.
	match := false
	for _, secret := range s.Secrets {
		if hmac.Equal(given, sum(secret.Reveal(), stamp, r.Body)) {
			match = true
		}
	}
	if !match {
		return errors.New("no secret fits the signature")
	}
	return nil
}

// Sign returns the values of the two headers as a sender with this secret
// would set them at this time.
func (s Scheme) Sign(secret string, at time.Time, body []byte) (signature, timestamp string) {
	timestamp = strconv.FormatInt(at.Unix(), 10)
	return s.Prefix + hex.EncodeToString(sum(secret, timestamp, body)), timestamp
}

func sum(secret, stamp string, body []byte) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp))
	mac.Write([]byte{'.'})
	mac.Write(body)
	return mac.Sum(nil)
}
