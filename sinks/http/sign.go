package http

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postwire/postwire/config"
)

// key signs requests according to Standard Webhooks 1.0.0, with HMAC-SHA256.
type key []byte

// minKey is the minimum key length in the specification.
const minKey = 24

func parseKey(secret config.Secret) (key, error) {
	k, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Reveal(), "whsec_"))
	if err != nil {
		return nil, errors.New("is not base64 behind whsec_") // not wrapped: nothing of the secret is shown
	}
	if len(k) < minKey {
		return nil, fmt.Errorf("has %d bytes, which are too few", len(k))
	}
	return k, nil
}

// sign adds the signature of body to h.
func (k key) sign(h nethttp.Header, id string, at time.Time, body []byte) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, k)
	for _, part := range [][]byte{[]byte(id), []byte("."), []byte(timestamp), []byte("."), body} {
		mac.Write(part) // a hash takes everything
	}
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", timestamp)
	h.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// signer adds a signature to the headers of a request.
type signer interface {
	sign(h nethttp.Header, id string, at time.Time, body []byte)
}

// signer returns the signer of the settings, nil without a secret.
func (s Signing) signer() (signer, error) {
	switch {
	case s.Secret == "":
		return nil, nil //nolint:nilnil // nothing is signed
	case s.Header != "":
		return ownSignature{s, []byte(s.Secret.Reveal())}, nil
	}
	k, err := parseKey(s.Secret)
	if err != nil {
		return nil, err
	}
	return k, nil
}

const encodingHex = "hex"

// ownSignature signs requests in a format of the configuration.
type ownSignature struct {
	Signing
	key []byte
}

// sign adds the headers of the signature of body to h.
func (s ownSignature) sign(h nethttp.Header, id string, at time.Time, body []byte) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, s.key)
	if s.Signed == "" {
		mac.Write(body)
	} else {
		// One pass: a name in braces inside the body is not replaced.
		mac.Write([]byte(strings.NewReplacer("{body}", string(body), "{timestamp}", timestamp, "{id}", id).Replace(s.Signed)))
	}
	signature := hex.EncodeToString(mac.Sum(nil))
	if s.Encoding != encodingHex {
		signature = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	value := strings.NewReplacer("{signature}", signature, "{timestamp}", timestamp, "{id}", id).Replace(cmp.Or(s.Value, "{signature}"))
	h.Set(s.Header, value)
	if s.TimestampHeader != "" {
		h.Set(s.TimestampHeader, timestamp)
	}
	if s.IDHeader != "" {
		h.Set(s.IDHeader, id)
	}
}

// webhookID returns an ID that is equal for equal stored events, and unique to
// the request otherwise. The ID is a digest, because an ID must not contain a
// dot and a batch needs a single ID.
func webhookID(parts []part) string {
	digest := sha256.New()
	for _, p := range parts {
		fmt.Fprintln(digest, p.id)
	}
	return "msg_" + base64.RawURLEncoding.EncodeToString(digest.Sum(nil))
}
