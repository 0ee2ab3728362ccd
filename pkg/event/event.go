// Package event holds what flows through the relay: an event and the keys by
// which a repeat of it is recognized. It is the ground floor; every step from
// ingress to sink builds on it and it knows none of them.
package event

import (
	"strconv"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2"
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
)

// Event is one thing that happened: a CloudEvent, and the keys by which a
// repeat of it is recognized. It is immutable once a source has returned it;
// the journal and every sink read the same value concurrently.
type Event struct {
	CloudEvent cloudevents.Event
	Keys       []Key // at least one; any shared key inside the window makes a duplicate
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
// extension, and whether the event has it. Names are lower case, as on the wire.
func (e Event) Attribute(name string) (string, bool) {
	ce := e.CloudEvent.Context
	if ce == nil {
		return "", false
	}
	var s string
	switch name {
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
		v, err := ce.GetExtension(name)
		if err != nil {
			return "", false
		}
		if s, err = types.Format(v); err != nil {
			return "", false
		}
	}
	return s, s != ""
}
