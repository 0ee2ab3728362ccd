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

// Preset is the signature format of a known sender. The zero Preset is none.
type Preset string

// Presets.
const (
	UploadPost       Preset = "upload-post"
	StandardWebhooks Preset = "standard-webhooks"
	GitHub           Preset = "github"
	Stripe           Preset = "stripe"
	Slack            Preset = "slack"
)

// Presets returns all presets.
func Presets() []Preset { return []Preset{UploadPost, StandardWebhooks, GitHub, Stripe, Slack} }

// scheme is a signature format.
type scheme struct {
	algorithm, encoding string // as in Signature
	signed              string // as in Signature

	headers []headers // the first set with a sent signature is used

	// Text before the signature in its header. With a separator the header is a list, and
	// entries with another prefix are ignored.
	prefix, separator string
	timestampPrefix   string // prefix of the timestamp entry in the list

	key       func(secret string) ([]byte, error) // nil uses the secret unchanged
	minSecret int                                 // minimum key length of the sender in bytes; 0 is config.MinProof
}

// keyOf returns the key of a secret.
func (s scheme) keyOf(secret string) ([]byte, error) {
	if s.key == nil {
		return []byte(secret), nil
	}
	return s.key(secret)
}

// headers are the header names of one delivery.
type headers struct{ signature, timestamp, id string }

// scheme returns the format of a preset, and false for an unknown preset.
func (p Preset) scheme() (scheme, bool) {
	s := scheme{algorithm: sha256Name, encoding: hexName}
	switch p {
	case UploadPost: // the whole secret with whsec_ is the key
		s.headers = []headers{{signature: "X-Upload-Post-Signature", timestamp: "X-Upload-Post-Timestamp"}}
		s.prefix, s.signed = "sha256=", "{timestamp}.{body}"
	case StandardWebhooks: // standardwebhooks.com; the svix-* names are older
		s.headers = []headers{
			{signature: "Webhook-Signature", timestamp: "Webhook-Timestamp", id: "Webhook-Id"},
			{signature: "Svix-Signature", timestamp: "Svix-Timestamp", id: "Svix-Id"},
		}
		s.encoding, s.separator, s.prefix, s.signed = base64Name, " ", "v1,", "{id}.{timestamp}.{body}"
		s.key = standardKey
	case GitHub: // without a timestamp only the dedupe window detects a replay
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

// standardKey decodes a secret of Standard Webhooks: base64, with or without whsec_.
func standardKey(secret string) ([]byte, error) {
	text := strings.TrimRight(strings.TrimPrefix(secret, "whsec_"), "=")
	key, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(key) == 0 {
		return nil, errors.New("is not a secret of Standard Webhooks: whsec_ and base64")
	}
	return key, nil
}

// Sign sets the headers of a delivery as a sender with this preset and secret does. A
// preset without an ID ignores id.
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
