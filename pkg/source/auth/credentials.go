package auth

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

const authorization = "Authorization"

// Basic is a user name and a password (RFC 7617).
type Basic struct {
	Username  string          `yaml:"username" required:"true" doc:"User name of the sender." example:"sender"`
	Passwords []config.Secret `yaml:"passwords" required:"true" doc:"Valid passwords. One match is enough." example:"[\"${WEBHOOK_PASSWORD}\"]"`
	AllowWeak bool            `yaml:"allow_weak" doc:"Accept passwords shorter than 16 bytes. An attacker who guesses a password can send webhooks."`
}

// Validate returns all errors.
func (b Basic) Validate() error {
	var p config.Invalids
	if strings.Contains(b.Username, ":") {
		p.Add("username", "holds a colon, which ends the name in HTTP Basic", "use a name without one")
	}
	checkSecrets(&p, "passwords", "password", "send", b.Passwords, false, b.AllowWeak, func(string) (what, hint string) { return "", "" })
	return p.Err()
}

func (b Basic) check() check {
	var known digests
	for _, password := range b.Passwords {
		known.add([]byte(b.Username + ":" + password.Reveal()))
	}
	return func(r *source.Request) error {
		encoded, err := credentials(r.Header, "Basic")
		if err != nil {
			return err
		}
		pair, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || !bytes.Contains(pair, []byte{':'}) {
			return errors.New("header Authorization holds no name and password in base64")
		}
		if !known.hold(pair) {
			return errors.New("name or password in header Authorization is wrong")
		}
		return nil
	}
}

// Bearer is a token (RFC 6750).
type Bearer struct {
	Tokens    []config.Secret `yaml:"tokens" required:"true" doc:"Valid tokens. One match is enough." example:"[\"${WEBHOOK_TOKEN}\"]"`
	AllowWeak bool            `yaml:"allow_weak" doc:"Accept tokens shorter than 16 bytes. An attacker who guesses a token can send webhooks."`
}

// Validate returns all errors.
func (b Bearer) Validate() error {
	var p config.Invalids
	checkSecrets(&p, "tokens", "token", "send", b.Tokens, false, b.AllowWeak, unfitForHeader)
	return p.Err()
}

func (b Bearer) check() check {
	known := digestsOf(b.Tokens)
	return func(r *source.Request) error {
		token, err := credentials(r.Header, "Bearer")
		if err != nil {
			return err
		}
		if !known.hold([]byte(token)) {
			return errors.New("token in header Authorization is wrong")
		}
		return nil
	}
}

// credentials returns the credentials after the scheme in the header Authorization.
func credentials(h http.Header, scheme string) (string, error) {
	value, err := one(h, authorization)
	if err != nil {
		return "", err
	}
	given, rest, _ := strings.Cut(value, " ")
	if !strings.EqualFold(given, scheme) {
		return "", fmt.Errorf("header %s is not of the scheme %s", authorization, scheme)
	}
	return strings.Trim(rest, " "), nil
}

// Header is a secret in a header of the sender.
type Header struct {
	Name      string          `yaml:"name" required:"true" doc:"Name of the header." example:"X-Webhook-Token"`
	Values    []config.Secret `yaml:"values" required:"true" doc:"Valid secrets. The header must equal one secret." example:"[\"${WEBHOOK_TOKEN}\"]"`
	AllowWeak bool            `yaml:"allow_weak" doc:"Accept secrets shorter than 16 bytes. An attacker who guesses a secret can send webhooks."`
}

// Validate returns all errors.
func (h Header) Validate() error {
	var p config.Invalids
	checkHeaderName(&p, "name", h.Name)
	checkSecrets(&p, "values", "value", "send", h.Values, false, h.AllowWeak, unfitForHeader)
	return p.Err()
}

func (h Header) check() check {
	name, known := http.CanonicalHeaderKey(h.Name), digestsOf(h.Values)
	return func(r *source.Request) error {
		value, err := one(r.Header, name)
		if err != nil {
			return err
		}
		if !known.hold([]byte(value)) {
			return fmt.Errorf("value of header %s is wrong", name)
		}
		return nil
	}
}

// PathToken is a secret at the end of the URL path.
type PathToken struct {
	Tokens    []config.Secret `yaml:"tokens" required:"true" doc:"Valid tokens, such as openssl rand -hex 32 makes. One match is enough." example:"[\"${WEBHOOK_TOKEN}\"]"`
	AllowWeak bool            `yaml:"allow_weak" doc:"Accept tokens shorter than 16 bytes. An attacker who guesses a token can send webhooks."`
}

// Validate returns all errors.
func (t PathToken) Validate() error {
	var p config.Invalids
	checkSecrets(&p, "tokens", "token", "send", t.Tokens, false, t.AllowWeak, func(token string) (what, hint string) {
		if url.PathEscape(token) != token {
			return "has a character that is not plain in a URL", "use letters, digits, dashes and underscores, such as openssl rand -hex 32 makes"
		}
		return "", ""
	})
	return p.Err()
}

func (t PathToken) check() check {
	known := digestsOf(t.Tokens)
	return func(r *source.Request) error {
		if r.Token == "" {
			return errors.New("there is no token behind the path")
		}
		if !known.hold([]byte(r.Token)) {
			return errors.New("token behind the path is wrong")
		}
		return nil
	}
}

// digests are the SHA-256 digests of secrets, which have one length for a comparison in
// constant time.
type digests [][sha256.Size]byte

func digestsOf(secrets []config.Secret) (d digests) {
	for _, s := range secrets {
		d.add([]byte(s.Reveal()))
	}
	return d
}

func (d *digests) add(secret []byte) { *d = append(*d, sha256.Sum256(secret)) }

// hold reports whether given is one of the secrets, and compares all secrets.
func (d digests) hold(value []byte) bool {
	digest, match := sha256.Sum256(value), 0
	for i := range d {
		match |= subtle.ConstantTimeCompare(digest[:], d[i][:])
	}
	return match == 1
}

// checkSecrets reports an empty list, empty secrets, secrets for which fault returns a
// text, and weak secrets. No error shows a secret.
func checkSecrets(p *config.Invalids, key, noun, can string, secrets []config.Secret, others, weak bool, fault func(string) (what, hint string)) {
	if len(secrets) == 0 && !others {
		p.Add(key, "is empty", "list at least one "+noun)
	}
	for i, secret := range secrets {
		at := fmt.Sprintf("%s[%d]", key, i)
		if secret.Reveal() == "" {
			p.Add(at, fmt.Sprintf("is an empty %s, with which anybody can %s", noun, can), "set the variable or the file it comes from")
		} else if what, hint := fault(secret.Reveal()); what != "" {
			p.Add(at, what, hint)
		} else {
			config.CheckProof(p, at, len(secret.Reveal()), config.MinProof, weak)
		}
	}
}

// unfitForHeader returns why a secret cannot be a header value.
func unfitForHeader(secret string) (what, hint string) {
	switch {
	case !httpguts.ValidHeaderFieldValue(secret):
		return "has a character that no header can hold", "look for a line break in the file or variable it comes from"
	case strings.Trim(secret, " \t") != secret:
		return "begins or ends with white space, which HTTP takes away", "remove it"
	}
	return "", ""
}

// checkHeaderName reports an invalid header name.
func checkHeaderName(p *config.Invalids, key, name string) {
	switch {
	case name == "":
		p.Add(key, "is empty", "name the header, for example X-Webhook-Token")
	case !httpguts.ValidHeaderFieldName(name):
		p.Add(key, fmt.Sprintf("%q is not the name of a header", name), "use letters, digits and dashes, for example X-Webhook-Token")
	case http.CanonicalHeaderKey(name) == "Host":
		p.Add(key, "Host says where the webhook goes, and is not among the headers that are looked at", "name another header")
	}
}
