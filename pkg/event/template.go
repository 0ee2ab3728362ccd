package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postwire/postwire/internal/spelling"
)

// None is what a template gives for an attribute that an event does not have.
const None = "none"

// Core returns the names of the context attributes of CloudEvents 1.0, less its
// extensions, and of what the relay itself adds to every event: names that a
// filter or a template can use whatever the source is.
func Core() []string {
	return []string{
		"id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion",
		RecordedTime, TraceParent, SourceName,
	}
}

// Extensions returns the names of the extension attributes that Postwire
// documents, less those of Core. Sources may set others.
func Extensions() []string {
	return []string{Platform, MediaType, Profile, Outcome, PublishID, PartitionKey, CorrelationID, DeliveryID, Origin}
}

// Attributes returns the names of all attributes that Postwire documents.
func Attributes() []string { return append(Core(), Extensions()...) }

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

// Literal returns a static template: braces in the text stand for themselves.
func Literal(text string) Template { return Template{text: text, parts: []part{{text: text}}} }

// Names returns the attributes that the template uses, each once.
func (t Template) Names() []string {
	var names []string
	for _, p := range t.parts {
		if p.attribute && !slices.Contains(names, p.text) {
			names = append(names, p.text)
		}
	}
	return names
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
		if hint := misnamed(name); hint != "" {
			return Template{}, &TemplateError{at, fmt.Sprintf("{%s} names no attribute", name), hint}
		}
		t.parts = append(t.parts, part{text: name, attribute: true})
		at += end + 1
	}
	return t, nil
}

// misnamed returns a hint for a text that cannot be the name of an attribute, and
// otherwise nothing: which names sources set, the assembly of a configuration
// knows.
func misnamed(name string) string {
	if ValidName(name) {
		return ""
	}
	if near := spelling.Nearest(name, Attributes()); near != "" {
		return fmt.Sprintf("did you mean {%s}?", near)
	}
	return "the attributes are " + strings.Join(Attributes(), ", ") + ", and extensions that a source sets, in lower-case letters and digits"
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
