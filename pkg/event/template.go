package event

import (
	"fmt"
	"slices"
	"strings"
)

// None is what a template gives for an attribute that an event does not have.
const None = "none"

// attributes are the names a template may use.
var attributes = []string{
	"id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion",
	Platform, MediaType, Profile, Outcome, PublishID, PartitionKey, CorrelationID, DeliveryID, RecordedTime, TraceParent,
}

// Attributes returns the names of all attributes that a template may use,
// the CloudEvents core first.
func Attributes() []string { return slices.Clone(attributes) }

// Template is text with attributes in it: "events.{platform}.{outcome}". The
// zero Template is empty text. It is immutable.
type Template struct {
	text  string
	parts []part
}

// part is literal text, or the name of an attribute.
type part struct {
	text      string
	attribute bool
}

// TemplateError says where in a template something is wrong.
type TemplateError struct {
	Offset int    // bytes from the start of the template
	What   string // what was found there
	Hint   string // what would be right
}

func (e *TemplateError) Error() string {
	return fmt.Sprintf("at offset %d: %s; %s", e.Offset, e.What, e.Hint)
}

// ParseTemplate reads a template. Its error is a *TemplateError.
func ParseTemplate(text string) (Template, error) {
	t := Template{text: text}
	for at := 0; at < len(text); {
		open := strings.IndexAny(text[at:], "{}")
		if open < 0 {
			t.parts = append(t.parts, part{text: text[at:]})
			break
		}
		if open > 0 {
			t.parts = append(t.parts, part{text: text[at : at+open]})
		}
		at += open
		if text[at] == '}' {
			return Template{}, &TemplateError{at, "a } without its {", "write an attribute as {platform}"}
		}
		end := strings.IndexByte(text[at:], '}')
		if end < 0 {
			return Template{}, &TemplateError{at, "a { without its }", "write an attribute as {platform}"}
		}
		name := text[at+1 : at+end]
		if !slices.Contains(attributes, name) {
			what := fmt.Sprintf("{%s} names no attribute", name)
			return Template{}, &TemplateError{at, what, "the attributes are " + strings.Join(attributes, ", ")}
		}
		t.parts = append(t.parts, part{text: name, attribute: true})
		at += end + 1
	}
	return t, nil
}

// String returns the template as it was written.
func (t Template) String() string { return t.text }

// Static reports whether the template uses no attribute, so that it expands
// to the same text for every event.
func (t Template) Static() bool {
	return !slices.ContainsFunc(t.parts, func(p part) bool { return p.attribute })
}

// Expand replaces each attribute by its value as safe returns it, and by None
// where e does not have it. Safe makes any text harmless for the protocol; it
// is applied to values only, never to the template's own text.
func (t Template) Expand(e Event, safe func(string) string) string {
	if len(t.parts) == 1 && !t.parts[0].attribute {
		return t.parts[0].text
	}
	var b strings.Builder
	for _, p := range t.parts {
		if !p.attribute {
			b.WriteString(p.text)
			continue
		}
		v, ok := e.Attribute(p.text)
		if !ok {
			v = None
		}
		b.WriteString(safe(v))
	}
	return b.String()
}
