// Package event holds what flows through the relay: an event and the keys by
// which a repeat of it is recognized. It is the ground floor; every step from
// ingress to sink builds on it and it knows none of them.
package event

import (
	"strconv"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
)

// The extension attributes that Postwire sets besides the CloudEvents core.
const (
	Platform      = "platform"      // social network, as in the payload
	MediaType     = "mediatype"     // video, photo, text
	Profile       = "profile"       // profile the upload belongs to
	Outcome       = "outcome"       // success or failure; an account's status
	PublishID     = "publishid"     // ID that the platform assigned
	PartitionKey  = "partitionkey"  // CloudEvents partitioning extension: order holds per key
	CorrelationID = "correlationid" // CloudEvents correlation extension: the sender's job
	DeliveryID    = "deliveryid"    // ID of the delivery, not of the event
	RecordedTime  = "recordedtime"  // CloudEvents recordedtime extension: when Postwire accepted it
	TraceParent   = "traceparent"   // CloudEvents distributed tracing extension
	Origin        = "origin"        // how the event was found, where no webhook told of it: history
)

// SourceName is the name by which filters and templates refer to the configured
// source of an event, as they do to an attribute.
const SourceName = "sourcename"

// ValidName reports whether a text can be the name of an attribute: lower-case
// letters and digits, as CloudEvents, section 3.1, has it.
func ValidName(name string) bool {
	return name != "" && len(name) <= longestName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// longestName is the length of the longest name that a source passes on.
const longestName = 64

// Event is one thing that happened: a CloudEvent, and the keys by which a
// repeat of it is recognized. It is immutable once a source has returned it;
// the journal and every sink read the same value concurrently.
type Event struct {
	CloudEvent cloudevents.Event

	// SourceName is the name of the configured source that accepted the event:
	// the attribute SourceName in filters and templates. It is no context
	// attribute and is not sent. The journal fills it in from the keys.
	SourceName string

	Keys []Key // at least one; any shared key inside the window makes a duplicate

	// MessageID identifies the stored event to brokers that drop repeated
	// messages: every attempt to deliver one stored event has one MessageID,
	// and no other stored event has it, also where two events share source and
	// id. The relay sets it before a delivery; it holds visible ASCII only. It
	// is empty before that.
	MessageID string
}

// Key is one identity of an event, compared byte by byte.
type Key string

// NewKey builds a key from the name of a source and the parts that identify
// an event there. Parts are length-prefixed: ("a", "bc") and ("ab", "c") differ.
func NewKey(source string, parts ...string) Key {
	b := appendPart(make([]byte, 0, 128), source)
	for _, p := range parts {
		b = appendPart(b, p)
	}
	return Key(b)
}

// Parts returns the name of the source and the parts that a key was built
// from, for people to read; nil if it was not built by NewKey.
func (k Key) Parts() []string {
	var parts []string
	for rest := string(k); rest != ""; {
		length, after, ok := strings.Cut(rest, ":")
		n, err := strconv.ParseUint(length, 10, 31)
		if !ok || err != nil || n > uint64(len(after)) {
			return nil
		}
		parts, rest = append(parts, after[:n]), after[n:]
	}
	return parts
}

// Source returns the name of the source that the key is of; nothing if it was
// not built by NewKey.
func (k Key) Source() string {
	length, after, ok := strings.Cut(string(k), ":")
	n, err := strconv.ParseUint(length, 10, 31)
	if !ok || err != nil || n > uint64(len(after)) {
		return ""
	}
	return after[:n]
}

func appendPart(b []byte, p string) []byte {
	b = strconv.AppendInt(b, int64(len(p)), 10)
	return append(append(b, ':'), p...)
}

// Attribute returns the canonical string form of a context attribute, core or
// extension, or of SourceName, and whether the event has it. Names are lower case, as on the wire.
func (e Event) Attribute(name string) (string, bool) {
	ce := e.CloudEvent.Context
	if ce == nil {
		return "", false
	}
	var s string
	switch name {
	case SourceName:
		s = e.SourceName
	case "specversion":
		s = ce.GetSpecVersion()
	case "id":
		s = ce.GetID()
	case "source":
		s = ce.GetSource()
	case "type":
		s = ce.GetType()
	case "subject":
		s = ce.GetSubject()
	case "datacontenttype":
		s = ce.GetDataContentType()
	case "dataschema":
		s = ce.GetDataSchema()
	case "time":
		if t := ce.GetTime(); !t.IsZero() {
			s = types.FormatTime(t)
		}
	default:
		v1, ok := ce.(*ceevent.EventContextV1)
		if !ok {
			return "", false
		}
		switch v := v1.Extensions[name].(type) { // the SDK's GetExtension makes an error of an absent one
		case nil:
			return "", false
		case string:
			s = v
		default:
			var err error
			if s, err = types.Format(v); err != nil {
				return "", false
			}
		}
	}
	return s, s != ""
}
