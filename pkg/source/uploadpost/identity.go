package uploadpost

import (
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// The kinds of identity that have a name in the payload.
const (
	publishID = "publish_id"
	postID    = "post_id"
)

// SuccessKeys are the keys of an upload that succeeded, of which one ID is known
// and not which of the two it is: whichever a webhook has, it is the same event.
func SuccessKeys(source, platform, id string) []event.Key {
	return []event.Key{
		event.NewKey(source, publishID, uploadCompleted, platform, id, success),
		event.NewKey(source, postID, uploadCompleted, platform, id, success),
	}
}

// TypeOf is the CloudEvents type of an event of the payload.
func TypeOf(name string) string { return TypePrefix + name }

// identify says which event this is: its CloudEvents id, and the keys by which
// a repeat is recognized. Two deliveries are the same event if they agree on
// event, platform, publish_id and outcome; post_id is a second key of it; a
// payload with neither is known by the digest of its canonical JSON. Ids and keys are kept on disk and by consumers: they must come
// out the same in every later version.
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
