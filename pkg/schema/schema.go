// Package schema holds the JSON Schemas (2020-12) of the data of known event types, and of
// the records of dead letters and quarantined requests. The attribute dataschema of an
// event names a schema by type and version.
//
// A version only grows: it may get optional properties of any type, and other descriptions.
// Any other change is a new version beside the old one. A test compares the schemas with
// the released schemas.
package schema

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/postwire/postwire/pkg/event"
)

// urn is the prefix of a schema's name if schemas.base_url is empty.
const urn = "urn:postwire:schema:"

//go:embed builtin
var builtin embed.FS

// Name identifies a schema.
type Name struct {
	Type    string // event type or record type
	Version string // whole number from 1
}

// String returns the name as a URL path.
func (n Name) String() string { return url.PathEscape(n.Type) + "/" + n.Version }

// ParseDataSchema returns the schema that a dataschema names, and false for a schema that
// is not of Postwire. Base is schemas.base_url.
func ParseDataSchema(dataschema, base string) (Name, bool) {
	rest, separator := "", ""
	if after, ok := strings.CutPrefix(dataschema, urn); ok {
		rest, separator = after, ":"
	} else if after, ok := strings.CutPrefix(dataschema, strings.TrimRight(base, "/")+"/"); ok && base != "" {
		rest, separator = after, "/"
	}
	at := strings.LastIndex(rest, separator)
	if separator == "" || at < 0 {
		return Name{}, false
	}
	typ, err := url.PathUnescape(rest[:at])
	n := Name{typ, rest[at+1:]}
	return n, err == nil && n.valid()
}

// Record reports whether the schema describes a record of Postwire, and not events.
func (n Name) Record() bool { return strings.HasPrefix(n.Type, "postwire.") }

func (n Name) valid() bool {
	return n.Type != "" && n.Version != "" && n.Version[0] != '0' && strings.Trim(n.Version, "0123456789") == ""
}

// document is a parsed schema.
type document struct {
	text     []byte
	compiled *jsonschema.Schema
}

// Library is a set of schemas. A Library is immutable.
type Library struct {
	documents map[Name]document
	names     []Name // sorted
}

// Open returns the built-in schemas and, if dir is not empty, the schemas in dir as
// <type>/<version>.json. Its error names the file.
func Open(dir string) (*Library, error) {
	l := &Library{documents: map[Name]document{}}
	own, err := fs.Sub(builtin, "builtin")
	if err != nil {
		return nil, err
	}
	if err := l.read(own, "built-in"); err != nil {
		return nil, err
	}
	if dir != "" {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("reading schemas: %w", err)
		}
		if err := l.read(os.DirFS(dir), dir); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(l.names, func(a, b Name) int { return strings.Compare(a.String(), b.String()) })
	return l, nil
}

func (l *Library) read(files fs.FS, where string) error {
	found, err := fs.Glob(files, "*/*.json")
	if err != nil {
		return err
	}
	for _, file := range found {
		n := Name{path.Dir(file), strings.TrimSuffix(path.Base(file), ".json")}
		at := filepath.Join(where, filepath.FromSlash(file))
		switch _, taken := l.documents[n]; {
		case !n.valid():
			return fmt.Errorf("schema %s: its name must be <type>/<version>.json, with a version of 1 or more", at)
		case taken:
			return fmt.Errorf("schema %s: there is one of this name already", at)
		}
		text, err := fs.ReadFile(files, file)
		if err != nil {
			return fmt.Errorf("schema %s: %w", at, err)
		}
		compiled, err := compile(n, text)
		if err != nil {
			return fmt.Errorf("schema %s: %w", at, err)
		}
		l.documents[n] = document{text, compiled}
		l.names = append(l.names, n)
	}
	return nil
}

// nothing refuses references to other schemas: a schema is self-contained.
type nothing struct{}

func (nothing) Load(string) (any, error) {
	return nil, errors.New("a schema may not refer to another file or address")
}

func compile(n Name, text []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(nothing{})
	id := urn + url.PathEscape(n.Type) + ":" + n.Version
	if err := c.AddResource(id, doc); err != nil {
		return nil, err
	}
	return c.Compile(id)
}

// Names returns the names of all schemas, sorted.
func (l *Library) Names() []Name { return slices.Clone(l.names) }

// Text returns the text of a schema, if the library has the schema.
func (l *Library) Text(n Name) ([]byte, bool) {
	d, ok := l.documents[n]
	return bytes.Clone(d.text), ok
}

// MismatchError says that data does not match its schema. The error may be logged: it
// quotes the schema and nothing of the data.
type MismatchError struct {
	Name  Name
	Where []string // JSON pointers into the schema to the failed keywords; none for data that is not JSON
}

func (m *MismatchError) Error() string {
	if len(m.Where) == 0 {
		return fmt.Sprintf("is not JSON, which schema %s asks for", m.Name)
	}
	return fmt.Sprintf("does not fit schema %s at %s", m.Name, strings.Join(m.Where, ", "))
}

// Check returns a *MismatchError if data of a media type does not match the schema,
// otherwise nil. Without such a schema Check returns nil.
func (l *Library) Check(n Name, contentType string, data []byte) error {
	d, ok := l.documents[n]
	if !ok {
		return nil
	}
	if !event.IsJSON(contentType) {
		return &MismatchError{Name: n}
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(event.TrimBOM(data)))
	if err != nil {
		return &MismatchError{Name: n}
	}
	err = d.compiled.Validate(value)
	if invalid, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		m := &MismatchError{Name: n}
		m.collect(invalid)
		return m
	}
	return err
}

// maxKeywords is the maximum number of failed keywords in a mismatch.
const maxKeywords = 5

func (m *MismatchError) collect(e *jsonschema.ValidationError) {
	for _, cause := range e.Causes {
		m.collect(cause)
	}
	if len(e.Causes) > 0 || len(m.Where) == maxKeywords {
		return
	}
	_, fragment, _ := strings.Cut(e.SchemaURL, "#")
	if place, err := url.PathUnescape(fragment); err == nil {
		fragment = place
	}
	where := strings.TrimSuffix(fragment, "/") + "/" + strings.Join(keywords(e), "/")
	if !slices.Contains(m.Where, where) {
		m.Where = append(m.Where, where)
	}
}

// keywords returns the path of the failed keyword in the schema.
func keywords(e *jsonschema.ValidationError) []string {
	p := e.ErrorKind.KeywordPath()
	return p[:min(len(p), 1)]
}
