package auth

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postwire/postwire/pkg/source"
)

// field is a part of a request that can be signed.
type field string

const (
	fieldTimestamp field = "timestamp"
	fieldID        field = "id"
	fieldBody      field = "body"
	fieldURL       field = "url"
)

func fields() []field { return []field{fieldTimestamp, fieldID, fieldBody, fieldURL} }

// template is the signed text: literal texts and fields, such as {timestamp}.{body}.
type template []piece

// piece is a field, or a literal text if the field is empty.
type piece struct {
	text  string
	field field
}

// parseTemplate parses a template. Its error is an error message with a suggested fix.
func parseTemplate(text string) (template, error) {
	var t template
	for rest := text; rest != ""; {
		literal, after, found := strings.Cut(rest, "{")
		if strings.Contains(literal, "}") {
			return nil, fmt.Errorf("%q has a } without its {", text)
		}
		if literal != "" {
			t = append(t, piece{text: literal})
		}
		if !found {
			break
		}
		name, next, closed := strings.Cut(after, "}")
		if !closed {
			return nil, fmt.Errorf("%q has a { without its }", text)
		}
		if !slices.Contains(fields(), field(name)) {
			return nil, fmt.Errorf("%q has {%s}, which is no part of a request", text, name)
		}
		t, rest = append(t, piece{field: field(name)}), next
	}
	return t, nil
}

// has reports whether the template contains a field.
func (t template) has(f field) bool {
	return slices.ContainsFunc(t, func(p piece) bool { return p.field == f })
}

// fixedForm reports whether a field has one checked form, so that nothing can move between
// the field and its neighbors.
func (f field) fixedForm() bool { return f == fieldTimestamp || f == fieldURL }

// ambiguous returns two adjacent fields that may both contain the text between them: a
// stranger with one signed request could split its text in another way.
func (t template) ambiguous() (a, b field, found bool) {
	for _, p := range t {
		if p.field == "" {
			continue
		}
		if b = p.field; a != "" && !a.fixedForm() && !b.fixedForm() {
			return a, b, true
		}
		a = b
	}
	return "", "", false
}

// endOf returns the literal text after a field, or "".
func (t template) endOf(f field) string {
	for i, p := range t {
		if p.field == f && i+1 < len(t) {
			return t[i+1].text
		}
	}
	return ""
}

// write hashes the text that the sender of a request must have signed.
func (t template) write(m *mac, r *source.Request, timestamp, id string) {
	m.text = m.text[:0]
	for _, p := range t {
		switch p.field {
		case "":
			m.text = append(m.text, p.text...)
		case fieldTimestamp:
			m.text = append(m.text, timestamp...)
		case fieldID:
			m.text = append(m.text, id...)
		case fieldURL:
			m.text = append(append(append(append(m.text, r.Scheme...), "://"...), r.Host...), r.Target...)
		case fieldBody: // large; hash without a copy
			m.flush()
			m.hash.Write(r.Body)
		}
	}
	m.flush()
}
