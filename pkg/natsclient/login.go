// Package natsclient holds the configuration of a NATS client, shared by the sink nats and
// the journal engine jetstream.
package natsclient

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/postwire/postwire/config"
)

// Login is the authentication of a client. At most one method is set.
type Login struct {
	CredentialsFile string // file with the JWT and key of a user
	NKeyFile        string // file with the NKey seed of a user
	User            string
	Password        config.Secret // password of User
	Token           config.Secret
	TLS             config.TLS
	HandshakeFirst  bool // the TLS handshake comes before the first line of the server
}

// Check returns the errors of a login; their keys begin with prefix.
func (l Login) Check(prefix string, p *config.Invalids) {
	ways := 0
	for _, set := range []bool{l.CredentialsFile != "", l.NKeyFile != "", l.User != "", l.Token != ""} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		p.Add(strings.TrimSuffix(prefix, "."), "has several ways to log in", "keep one of credentials_file, nkey_file, user with password, token")
	}
	if l.Password != "" && l.User == "" {
		p.Add(prefix+"user", "is missing beside password", "name the user")
	}
	for _, f := range []struct{ key, path string }{{"credentials_file", l.CredentialsFile}, {"nkey_file", l.NKeyFile}} {
		if f.path == "" {
			continue
		}
		text, err := os.ReadFile(f.path)
		if err != nil {
			p.Add(prefix+f.key, "cannot be read: "+err.Error(), "name a file that this process may read")
			continue
		}
		if what := checkUser(text, f.key == "credentials_file"); what != "" {
			p.Add(prefix+f.key, what, "make the file again with nsc")
		}
	}
	l.TLS.Check(prefix+"tls", p)
	if l.HandshakeFirst && !l.TLS.Enabled {
		p.Add(prefix+"tls.handshake_first", "has no effect, because enabled is false", "add enabled: true beside it, or remove it")
	}
}

// checkUser checks a file with the seed of a user and, for credentials, the JWT. Its errors
// quote nothing of the file.
func checkUser(text []byte, credentials bool) string {
	pair, err := nkeys.ParseDecoratedNKey(text)
	if err != nil {
		return "holds no NKey seed of a user"
	}
	defer pair.Wipe()
	public, err := pair.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return "holds the NKey seed of an account or an operator, and a user's is needed"
	}
	if !credentials {
		return ""
	}
	token, err := nkeys.ParseDecoratedJWT(text)
	if err != nil {
		return "holds no JWT of a user"
	}
	claims, err := jwt.DecodeUserClaims(token)
	switch {
	case err != nil:
		return "holds no JWT of a user that can be read"
	case claims.Subject != public:
		return "holds the JWT of one user and the seed of another"
	}
	return ""
}

// Options returns the client options of every connection: it reconnects for ever, and a
// failed publish never looks like a success.
func (l Login) Options() ([]nats.Option, error) {
	opts := []nats.Option{
		nats.ReconnectBufSize(-1),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // the servers may get rotated credentials later
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 500*time.Millisecond),
	}
	switch {
	case l.CredentialsFile != "":
		opts = append(opts, nats.UserCredentials(l.CredentialsFile))
	case l.NKeyFile != "":
		nkey, err := nats.NkeyOptionFromSeed(l.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading nkey_file: %w", err)
		}
		opts = append(opts, nkey)
	case l.User != "":
		opts = append(opts, nats.UserInfo(l.User, l.Password.Reveal()))
	case l.Token != "":
		opts = append(opts, nats.Token(l.Token.Reveal()))
	}
	if l.TLS.Enabled {
		t, err := l.TLS.Config()
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.Secure(t))
		if l.HandshakeFirst {
			opts = append(opts, nats.TLSHandshakeFirst())
		}
	}
	return opts, nil
}

// ValidURLs reports whether a text is a comma-separated list of server URLs.
func ValidURLs(list config.URL) bool {
	for text := range strings.SplitSeq(list.Reveal(), ",") {
		text = strings.TrimSpace(text)
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			return false
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return false
		}
	}
	return true
}

// Bare removes the URL, which may contain a password, from an error.
func Bare(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
