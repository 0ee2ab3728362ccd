// Package event defines an event and its identity keys. Every step from ingress to sink
// uses this package; the package imports none of the steps.
package event

import (
	"strconv"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
)

// Extension attributes that Postwire sets besides the CloudEvents core attributes.
const (
	Platform      = "platform"      // social network, as in the payload
	MediaType     = "mediatype"     // video, photo or text
	Profile       = "profile"       // profile of the upload
	Outcome       = "outcome"       // success or failure; for an account its status
	PublishID     = "publishid"     // ID that the platform assigned
	PartitionKey  = "partitionkey"  // CloudEvents partitioning extension: order holds per key
	CorrelationID = "correlationid" // CloudEvents correlation extension: the sender's job
	DeliveryID    = "deliveryid"    // ID of the delivery, not of the event
	RecordedTime  = "recordedtime"  // CloudEvents recordedtime extension: acceptance by Postwire
	TraceParent   = "traceparent"   // CloudEvents distributed tracing extension
	Origin        = "origin"        // how the event was found without a webhook: history
)

// Extension attributes of the copy of a dead letter, which a sink with dead_letters.sink has
// appended for another sink.
const (
	DeadLetterID       = "deadletterid"       // ID in the dead-letter queue: sequence@sink
	DeadLetterSink     = "deadlettersink"     // sink that refused the event
	DeadLetterReason   = "deadletterreason"   // reason, from a closed set
	DeadLetterAttempts = "deadletterattempts" // attempts to deliver the event
	DeadLetterTime     = "deadlettertime"     // time of the last attempt
)

// DeadLetterAttributes returns the names of the extension attributes that the copy of a dead
// letter has besides the attributes of its event.
func DeadLetterAttributes() []string {
	return []string{DeadLetterID, DeadLetterSink, DeadLetterReason, DeadLetterAttempts, DeadLetterTime}
}

// SourceName is the name of the configured source in filters and templates.
const SourceName = "sourcename"

// ValidName reports whether a text is a valid attribute name: lower-case letters and digits
// (CloudEvents, section 3.1).
func ValidName(name string) bool {
	return name != "" && len(name) <= longestName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// longestName is the maximum length of an attribute name that a source passes on.
const longestName = 64

// Event is a CloudEvent with its identity keys. An event is immutable after a source has
// returned it: journal and sinks read one value concurrently.
type Event struct {
	CloudEvent cloudevents.Event

	// SourceName is the name of the configured source that accepted the event, available to
	// filters and templates. It is not a context attribute and is not sent. The journal
	// sets the name from the keys.
	SourceName string

	Keys []Key // at least one; any key in the dedupe window makes the event a duplicate

	// MessageID identifies the stored event to brokers that drop repeated messages. Every
	// attempt to deliver a stored event has the same MessageID, and no other stored event
	// has it, also if two events have equal source and id. The relay sets MessageID before
	// a delivery; it is visible ASCII.
	MessageID string
}

// Key is an identity key of an event, compared byte by byte.
type Key string

// NewKey builds a key from the name of a source and the parts that identify an event there.
// Parts have their length before them: ("a", "bc") and ("ab", "c") differ.
func NewKey(source string, parts ...string) Key {
	b := appendPart(make([]byte, 0, 128), source)
	for _, p := range parts {
		b = appendPart(b, p)
	}
	return Key(b)
}

// Parts returns the name of the source and the parts of a key of NewKey, for display; nil
// for another key.
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

// Source returns the name of the source of a key of NewKey; empty for another key.
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

// Attribute returns the canonical string of a context attribute or of SourceName, and
// whether the event has the attribute. Names are lower case.
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
		switch v := v1.Extensions[name].(type) { // GetExtension of the SDK allocates an error for an absent extension
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
