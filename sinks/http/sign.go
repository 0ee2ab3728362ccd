package http

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
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
