package sinks

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
)

// The content modes of the CloudEvents bindings.
const (
	Binary     = "binary"     // attributes in headers, data as the body
	Structured = "structured" // the whole event as the body, in JSON
)

// Message is an event in the shape that every binding starts from. What is
// left to a protocol is how it spells its headers.
type Message struct {
	// Attributes are the context attributes of binary mode, in canonical
	// string form, sorted by name; without datacontenttype. It is empty in
	// structured mode.
	Attributes []Attribute
	// ContentType is datacontenttype in binary mode, and the media type of
	// the event format in structured mode. It may be empty.
	ContentType string
	Body        []byte
}

// Structured reports whether the message is in structured mode.
func (m Message) Structured() bool { return len(m.Attributes) == 0 }

// Attribute is a context attribute in canonical string form.
type Attribute struct{ Name, Value string }

// eventFormats is what the media types of all event formats begin with. By it
// a reader tells structured mode from binary.
const eventFormats = "application/cloudevents"

// Encode writes e in the given content mode, through the SDK's bindings. Data
// that is an event itself goes in structured mode always: in binary mode readers
// would take it for the event.
func Encode(ctx context.Context, e event.Event, mode string) (Message, error) {
	ctx = binding.WithForceBinary(ctx)
	if mode == Structured || strings.HasPrefix(strings.ToLower(e.CloudEvent.DataContentType()), eventFormats) {
		ctx = binding.WithForceStructured(ctx)
	}
	w := &writer{}
	if _, err := binding.Write(ctx, (*binding.EventMessage)(&e.CloudEvent), w, w); err != nil {
		return Message{}, fmt.Errorf("encoding %s: %w", e.CloudEvent.ID(), err)
	}
	return w.m, nil
}

// writer implements binding.StructuredWriter and binding.BinaryWriter.
type writer struct{ m Message }

var (
	_ binding.StructuredWriter = (*writer)(nil)
	_ binding.BinaryWriter     = (*writer)(nil)
)

func (w *writer) SetStructuredEvent(_ context.Context, f format.Format, event io.Reader) error {
	w.m.ContentType = f.MediaType()
	return w.SetData(event)
}

func (w *writer) Start(context.Context) error {
	w.m.Attributes = make([]Attribute, 0, 20)
	return nil
}

func (w *writer) SetAttribute(attribute spec.Attribute, value any) error {
	return w.set(attribute.Name(), value)
}

func (w *writer) SetExtension(name string, value any) error { return w.set(name, value) }

func (w *writer) set(name string, value any) error {
	if value == nil {
		w.m.Attributes = slices.DeleteFunc(w.m.Attributes, func(a Attribute) bool { return a.Name == name })
		return nil
	}
	text, err := types.Format(value)
	if err != nil {
		return fmt.Errorf("attribute %s: %w", name, err)
	}
	if name == "datacontenttype" {
		w.m.ContentType = text
		return nil
	}
	w.m.Attributes = append(w.m.Attributes, Attribute{name, text})
	return nil
}

func (w *writer) SetData(data io.Reader) error {
	if b, ok := data.(*bytes.Buffer); ok { // as the SDK gives it: no copy
		w.m.Body = b.Bytes()
		return nil
	}
	var err error
	w.m.Body, err = io.ReadAll(data)
	return err
}

func (w *writer) End(context.Context) error {
	slices.SortFunc(w.m.Attributes, func(a, b Attribute) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// Lines sorts the events of a batch into lines, by their indexes: events of
// one line must keep their order, events of different lines need not. Events
// of one partition key are a line; an event without one is a line of its own.
func Lines(batch []event.Event) [][]int {
	var lines [][]int
	byKey := map[string]int{}
	for i, e := range batch {
		key, ok := e.Attribute(event.PartitionKey)
		if line, known := byKey[key]; ok && known {
			lines[line] = append(lines[line], i)
			continue
		}
		if ok {
			byKey[key] = len(lines)
		}
		lines = append(lines, []int{i})
	}
	return lines
}

// Outcome is the error of a batch in which errs[i] became of event i.
func Outcome(errs []error) error {
	if slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		return BatchError(errs)
	}
	return nil
}
