package uploadpost

import (
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// Names of identities in the payload.
const (
	publishID = "publish_id"
	postID    = "post_id"
)

// SuccessKeys returns the identity keys of a successful upload with one known ID. A webhook
// may have the ID as publish_id or as post_id; both are keys of one event.
func SuccessKeys(source, platform, id string) []event.Key {
	return []event.Key{
		event.NewKey(source, publishID, uploadCompleted, platform, id, success),
		event.NewKey(source, postID, uploadCompleted, platform, id, success),
	}
}

// TypeOf returns the CloudEvents type of an event name.
func TypeOf(name string) string { return TypePrefix + name }

// identify returns the CloudEvents id and the identity keys of an event. Two deliveries are
// one event if event, platform, publish_id and outcome are equal; post_id is a second key.
// Without both IDs the identity is the digest of the canonical JSON. The journal and
// consumers store IDs and keys: they must be equal in every later version.
func identify(name string, f facts, body []byte) (id string, keys []event.Key) {
	key := func(kind, value string) event.Key {
		return event.NewKey(name, kind, f.event, f.platform, value, f.outcome)
	}
	keys = make([]event.Key, 0, 2)
	if f.publishID != "" {
		keys = append(keys, key(publishID, f.publishID))
	}
	if f.postID != "" {
		keys = append(keys, key(postID, f.postID))
	}
	if len(keys) > 0 {
		return join(f.event, f.platform, first(f.publishID, f.postID), f.outcome), keys
	}
	digest := jsonbody.Digest(body)
	return join(f.event, f.platform, digest), []event.Key{key("sha256", digest)}
}
