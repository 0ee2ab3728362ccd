package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postwire/postwire/internal/spelling"
)

// None replaces an absent attribute in a template.
const None = "none"

// Core returns the names of the CloudEvents 1.0 core attributes and of the attributes that
// the relay adds to every event. Filters and templates can use the names with any source.
func Core() []string {
	return []string{
		"id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion",
		RecordedTime, TraceParent, SourceName,
	}
}

// Extensions returns the names of the other extension attributes that Postwire documents.
// Sources may set further attributes.
func Extensions() []string {
	return []string{Platform, MediaType, Profile, Outcome, PublishID, PartitionKey, CorrelationID, DeliveryID, Origin}
}

// Attributes returns the names of all documented attributes.
func Attributes() []string { return append(Core(), Extensions()...) }

// Template is a text with attributes, such as "events.{platform}.{outcome}". The zero
// Template is empty. A Template is immutable.
type Template struct {
	text  string
	parts []part
}

// part is literal text or an attribute name.
type part struct {
	text      string
	attribute bool
}

// Literal returns a static template; braces in the text are literal.
func Literal(text string) Template { return Template{text: text, parts: []part{{text: text}}} }

// Names returns the distinct attributes of the template.
func (t Template) Names() []string {
	var names []string
	for _, p := range t.parts {
		if p.attribute && !slices.Contains(names, p.text) {
			names = append(names, p.text)
		}
	}
	return names
}

// TemplateError describes an error in a template.
type TemplateError struct {
	Offset int    // bytes from the start of the template
	What   string // what the template has at Offset
	Hint   string // suggested fix
}

func (e *TemplateError) Error() string {
	return fmt.Sprintf("at offset %d: %s; %s", e.Offset, e.What, e.Hint)
}

// ParseTemplate parses a template. Its error is a *TemplateError.
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
		if hint := misnamed(name); hint != "" {
			return Template{}, &TemplateError{at, fmt.Sprintf("{%s} names no attribute", name), hint}
		}
		t.parts = append(t.parts, part{text: name, attribute: true})
		at += end + 1
	}
	return t, nil
}

// misnamed returns a hint for an invalid attribute name, otherwise an empty text. The
// caller checks whether a source sets the attribute.
func misnamed(name string) string {
	if ValidName(name) {
		return ""
	}
	if near := spelling.Nearest(name, Attributes()); near != "" {
		return fmt.Sprintf("did you mean {%s}?", near)
	}
	return "the attributes are " + strings.Join(Attributes(), ", ") + ", and extensions that a source sets, in lower-case letters and digits"
}

// String returns the text of the template.
func (t Template) String() string { return t.text }

// Static reports whether the template has no attribute.
func (t Template) Static() bool {
	return !slices.ContainsFunc(t.parts, func(p part) bool { return p.attribute })
}

// Expand replaces each attribute by its value, passed through safe, and an absent attribute
// by None. Safe escapes a value for the protocol; it is not applied to the literal text.
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
