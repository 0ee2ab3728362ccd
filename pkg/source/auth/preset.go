package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postwire/postwire/pkg/source"
)

// Preset names the way in which a known sender signs. The zero Preset is none.
type Preset string

// The presets.
const (
	UploadPost       Preset = "upload-post"
	StandardWebhooks Preset = "standard-webhooks"
	GitHub           Preset = "github"
	Stripe           Preset = "stripe"
	Slack            Preset = "slack"
)

// Presets returns all presets.
func Presets() []Preset { return []Preset{UploadPost, StandardWebhooks, GitHub, Stripe, Slack} }

// scheme is a way to sign.
type scheme struct {
	algorithm, encoding string // as in Signature
	signed              string // as in Signature

	headers []headers // the first whose signature was sent counts

	// Before the signature in its header. Where there is a separator, the
	// header is a list, and entries with another beginning are not for us.
	prefix, separator string
	timestampPrefix   string // of the entry that is the timestamp, where that is in the list

	key       func(secret string) ([]byte, error) // nil takes the secret as it is
	minSecret int                                 // bytes of the shortest key that the sender makes; 0 is config.MinProof
}

// keyOf returns the key that a secret stands for.
func (s scheme) keyOf(secret string) ([]byte, error) {
	if s.key == nil {
		return []byte(secret), nil
	}
	return s.key(secret)
}

// headers are the names of the headers that one delivery has.
type headers struct{ signature, timestamp, id string }

// scheme returns how a preset signs; it is false where there is no such
// preset.
func (p Preset) scheme() (scheme, bool) {
	s := scheme{algorithm: sha256Name, encoding: hexName}
	switch p {
	case UploadPost: // the secret is used whole, whsec_ included
		s.headers = []headers{{signature: "X-Upload-Post-Signature", timestamp: "X-Upload-Post-Timestamp"}}
		s.prefix, s.signed = "sha256=", "{timestamp}.{body}"
	case StandardWebhooks: // standardwebhooks.com; svix-* are the names it had before
		s.headers = []headers{
			{signature: "Webhook-Signature", timestamp: "Webhook-Timestamp", id: "Webhook-Id"},
			{signature: "Svix-Signature", timestamp: "Svix-Timestamp", id: "Svix-Id"},
		}
		s.encoding, s.separator, s.prefix, s.signed = base64Name, " ", "v1,", "{id}.{timestamp}.{body}"
		s.key = standardKey
	case GitHub: // there is no timestamp; a replay is caught by its content alone
		s.headers = []headers{{signature: "X-Hub-Signature-256"}}
		s.prefix, s.signed = "sha256=", "{body}"
	case Stripe: // t=1492774577,v1=…,v1=…,v0=…
		s.headers = []headers{{signature: "Stripe-Signature"}}
		s.separator, s.prefix, s.timestampPrefix, s.signed = ",", "v1=", "t=", "{timestamp}.{body}"
	case Slack:
		s.headers = []headers{{signature: "X-Slack-Signature", timestamp: "X-Slack-Request-Timestamp"}}
		s.prefix, s.signed = "v0=", "v0:{timestamp}:{body}"
	default:
		return scheme{}, false
	}
	return s, true
}

// standardKey decodes a secret of Standard Webhooks: base64, after whsec_ or
// without it.
func standardKey(secret string) ([]byte, error) {
	text := strings.TrimRight(strings.TrimPrefix(secret, "whsec_"), "=")
	key, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(key) == 0 {
		return nil, errors.New("is not a secret of Standard Webhooks: whsec_ and base64")
	}
	return key, nil
}

// Sign sets the headers as a sender of this preset does that has the secret.
// The id is left out where the preset has none.
func (p Preset) Sign(h http.Header, secret, id string, at time.Time, body []byte) error {
	how, ok := p.scheme()
	if !ok {
		return fmt.Errorf("there is no preset %q", string(p))
	}
	s, err := how.compile([]string{secret})
	if err != nil {
		return err
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	m := newMAC(s.hash, s.keys[0])
	signature := s.prefix + s.encode(m.sum(s.template, &source.Request{Body: body}, timestamp, id))
	if s.timestampPrefix != "" {
		signature = s.timestampPrefix + timestamp + s.separator + signature
	}
	names := s.headers[0]
	for _, header := range []struct{ name, value string }{
		{names.signature, signature}, {names.timestamp, timestamp}, {names.id, id},
	} {
		if header.name != "" {
			h.Set(header.name, header.value)
		}
	}
	return nil
}
