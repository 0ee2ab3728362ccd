package uploadpost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
)

// identify says which event this is: its CloudEvents id, and the keys by which
// a repeat is recognized. Two deliveries are the same event if they agree on
// event, platform, publish_id and outcome; post_id is a second key of it; a
// payload with neither is known by the digest of its canonical JSON
// (RFC 8785). Ids and keys are kept on disk and by consumers: they must come
// out the same in every later version.
func identify(name string, f facts, body []byte) (id string, keys []event.Key, err error) {
	key := func(kind, value string) event.Key {
		return event.NewKey(name, kind, f.event, f.platform, value, f.outcome)
	}
	if f.publishID != "" {
		keys = append(keys, key("publish_id", f.publishID))
	}
	if f.postID != "" {
		keys = append(keys, key("post_id", f.postID))
	}
	if len(keys) > 0 {
		return join(f.event, f.platform, first(f.publishID, f.postID), f.outcome), keys, nil
	}
	canonical := jsontext.Value(slices.Clone(body))
	if err := canonical.Canonicalize(); err != nil {
		return "", nil, malformed("", errors.New("has no canonical form (RFC 8785)"))
	}
	digest := sha256.Sum256(canonical)
	hexed := "sha256:" + hex.EncodeToString(digest[:])
	return join(f.event, f.platform, hexed), []event.Key{key("sha256", hexed)}, nil
}
