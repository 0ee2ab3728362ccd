package sinks

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
)

// The content modes of the CloudEvents bindings.
const (
	Binary     = "binary"     // attributes in headers, data as the body
	Structured = "structured" // the whole event as the body, in JSON
)

// Message is an event, encoded in the common form of all bindings. Each
// protocol only adds its own spelling of headers.
type Message struct {
	// Attributes are the context attributes of binary mode, in canonical string
	// form and unordered, without datacontenttype. Empty in structured mode.
	Attributes []Attribute
	// ContentType is datacontenttype in binary mode, and the media type of the
	// event format in structured mode. May be empty.
	ContentType string
	Body        []byte
}

// Structured reports whether the message is in structured mode.
func (m Message) Structured() bool { return len(m.Attributes) == 0 }

// Headers returns the attributes as headers: each name is prefix plus the name
// of the attribute. The names share one allocation.
func (m Message) Headers(prefix string) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		length := 0
		for _, a := range m.Attributes {
			length += len(prefix) + len(a.Name)
		}
		var b strings.Builder
		b.Grow(length)
		for _, a := range m.Attributes {
			b.WriteString(prefix)
			b.WriteString(a.Name)
		}
		names := b.String()
		for _, a := range m.Attributes {
			n := len(prefix) + len(a.Name)
			if !yield(names[:n], a.Value) {
				return
			}
			names = names[n:]
		}
	}
}

// Attribute is a context attribute in canonical string form.
type Attribute struct{ Name, Value string }

// eventFormats is the common prefix of the media types of all event formats.
// Readers recognise structured mode by this prefix.
const eventFormats = "application/cloudevents"

// Encode encodes e, a CloudEvents 1.0 event, in a content mode. Data in an
// event format is always encoded in structured mode, because in binary mode a
// reader would take the data for the event.
func (env Env) Encode(e event.Event, mode string) (Message, error) {
	ce, ok := e.CloudEvent.Context.(*ceevent.EventContextV1)
	if !ok {
		return Message{}, fmt.Errorf("encoding %s: it is not a CloudEvents 1.0 event", e.CloudEvent.ID())
	}
	if mode == Structured || strings.HasPrefix(strings.ToLower(ce.GetDataContentType()), eventFormats) {
		body, opaque, err := event.Structured(e)
		if err != nil {
			return Message{}, fmt.Errorf("encoding %s: %w", e.CloudEvent.ID(), err)
		}
		if opaque && env.Opaque != nil {
			env.Opaque()
		}
		return Message{ContentType: event.StructuredType, Body: body}, nil
	}
	attributes, err := attributesOf(ce)
	if err != nil {
		return Message{}, fmt.Errorf("encoding %s: %w", e.CloudEvent.ID(), err)
	}
	return Message{Attributes: attributes, ContentType: ce.GetDataContentType(), Body: e.CloudEvent.DataEncoded}, nil
}

// attributesOf returns the headers of binary mode. The SDK's bindings return
// equal headers, by reflection and through interfaces, at several times the
// cost, which was the largest part of a delivery.
func attributesOf(ce *ceevent.EventContextV1) ([]Attribute, error) {
	attributes := make([]Attribute, 0, 7+len(ce.Extensions))
	attributes = append(attributes, Attribute{"specversion", ceevent.CloudEventsVersionV1}, Attribute{"id", ce.ID}, Attribute{"source", ce.Source.String()}, Attribute{"type", ce.Type})
	if subject := ce.GetSubject(); subject != "" {
		attributes = append(attributes, Attribute{"subject", subject})
	}
	if schema := ce.GetDataSchema(); schema != "" {
		attributes = append(attributes, Attribute{"dataschema", schema})
	}
	if t := ce.GetTime(); !t.IsZero() {
		attributes = append(attributes, Attribute{"time", types.FormatTime(t)})
	}
	for name, value := range ce.Extensions {
		text, ok := value.(string) // the common case
		if !ok {
			var err error
			if text, err = types.Format(value); err != nil {
				return nil, fmt.Errorf("attribute %s: %w", name, err)
			}
		}
		attributes = append(attributes, Attribute{name, text})
	}
	return attributes, nil
}

// Lines groups the events of a batch by partition key, as indexes. Events of a
// line must keep their order; different lines are independent. An event without
// a key is a separate line.
func Lines(batch []event.Event) [][]int {
	lines, byKey := make([][]int, 0, len(batch)), make(map[string]int, len(batch))
	indexes := make([]int, len(batch)) // a single allocation for the lines of one event
	for i, e := range batch {
		key, ok := e.Attribute(event.PartitionKey)
		if line, known := byKey[key]; ok && known {
			lines[line] = append(lines[line], i)
			continue
		}
		if ok {
			byKey[key] = len(lines)
		}
		indexes[i] = i
		lines = append(lines, indexes[i:i+1:i+1])
	}
	return lines
}

// Outcome returns the error of a batch; errs[i] is the outcome of event i.
func Outcome(errs []error) error {
	if slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		return BatchError(errs)
	}
	return nil
}
