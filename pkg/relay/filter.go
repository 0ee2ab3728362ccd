package relay

import (
	"fmt"
	"strings"

	cesql "github.com/cloudevents/sdk-go/sql/v2"
	cesqlparser "github.com/cloudevents/sdk-go/sql/v2/parser"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	ceevent "github.com/cloudevents/sdk-go/v2/event"

	"github.com/postwire/postwire/pkg/event"
)

// Filter is a CESQL expression that says which events a sink takes. The zero
// Filter takes all. It may be used concurrently.
type Filter struct{ expression cesql.Expression }

// ParseFilter reads a CESQL expression, which must be boolean.
func ParseFilter(text string) (f Filter, err error) {
	if strings.TrimSpace(text) == "" {
		return Filter{}, nil
	}
	// The parser of the SDK panics on some texts it cannot read.
	defer func() {
		if recover() != nil {
			f, err = Filter{}, fmt.Errorf("%q is not a CESQL expression", text)
		}
	}()
	expression, err := cesqlparser.Parse(text)
	if err != nil {
		return Filter{}, fmt.Errorf("%q is not a CESQL expression: %w", text, err)
	}
	// An expression's type shows only when it is evaluated.
	value, err := expression.Evaluate(probe())
	if err != nil && value == nil {
		return Filter{}, fmt.Errorf("%q cannot be evaluated: %w", text, err)
	}
	if _, ok := value.(bool); !ok {
		return Filter{}, fmt.Errorf("%q gives a %T, not true or false", text, value)
	}
	return Filter{expression}, nil
}

// probe is an event that has every attribute.
func probe() cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetID("id")
	e.SetSource("https://example.com/")
	e.SetType("type")
	e.SetSubject("subject")
	e.SetDataContentType("application/json")
	e.SetDataSchema("urn:schema")
	for _, name := range event.Attributes() {
		switch name {
		case "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion":
		default:
			e.SetExtension(name, "value")
		}
	}
	return e
}

// Takes reports whether e passes. With an error it still does: CESQL gives a
// value, false unless the expression says otherwise, where part of an
// expression cannot be evaluated.
func (f Filter) Takes(e event.Event) (bool, error) {
	if f.expression == nil {
		return true, nil
	}
	ce := e.CloudEvent
	if v1, ok := ce.Context.(*ceevent.EventContextV1); ok {
		ce.Context = shared{v1}
	}
	value, err := f.expression.Evaluate(ce)
	taken, ok := value.(bool)
	if !ok && err == nil {
		err = fmt.Errorf("the filter gives a %T, not true or false", value)
	}
	return taken, err
}

// shared is a context whose extensions are looked at where they are. The SDK
// copies them for each attribute that an expression names.
type shared struct{ *ceevent.EventContextV1 }

// GetExtensions implements event.EventContextReader.
func (s shared) GetExtensions() map[string]any { return s.Extensions }
