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

// template is what is signed: literal texts and fields by turns, such as
// {timestamp}.{body}.
type template []piece

// piece is a field, or where that is empty a literal text.
type piece struct {
	text  string
	field field
}

// parseTemplate reads a template. Its error says what is wrong, and is
// followed by what would be right.
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

// has reports whether a field is part of what is signed.
func (t template) has(f field) bool {
	return slices.ContainsFunc(t, func(p piece) bool { return p.field == f })
}

// fixedForm reports whether a field has one form, which is checked before it is
// used: nothing can be moved between it and what stands beside it.
func (f field) fixedForm() bool { return f == fieldTimestamp || f == fieldURL }

// ambiguous returns two fields that stand beside each other, each of which may hold
// what stands between them: whoever has one signed request could cut its text
// otherwise.
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

// endOf returns the literal text that ends a field, "" where there is none.
func (t template) endOf(f field) string {
	for i, p := range t {
		if p.field == f && i+1 < len(t) {
			return t[i+1].text
		}
	}
	return ""
}

// write makes the MAC of what a request's sender must have signed.
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
		case fieldBody: // it may be large, and is not copied
			m.flush()
			m.hash.Write(r.Body)
		}
	}
	m.flush()
}
