// Package schema holds the JSON Schemas (2020-12) of what Postwire passes on:
// the data of each type of event that it knows, and the records of what was set
// aside. The attribute dataschema of an event names one of them by type and
// version.
//
// Within a version a schema only grows: a property may be added that nobody has
// to send and that may be anything, and words may be changed. Whatever else
// changes is a new version, beside the old one, which stays. A test holds the
// schemas against those that were released.
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

// urn begins the name of a schema where schemas.base_url is empty.
const urn = "urn:postwire:schema:"

//go:embed builtin
var builtin embed.FS

// Name names a schema.
type Name struct {
	Type    string // of events, or of a record
	Version string // a whole number from 1
}

// String returns the name as in a URL's path.
func (n Name) String() string { return url.PathEscape(n.Type) + "/" + n.Version }

// ParseDataSchema returns the name that an event's dataschema holds; base is
// schemas.base_url. It is false where the attribute names no schema of ours.
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

// Record reports whether the schema is of a record of Postwire's own, and not of
// events.
func (n Name) Record() bool { return strings.HasPrefix(n.Type, "postwire.") }

func (n Name) valid() bool {
	return n.Type != "" && n.Version != "" && n.Version[0] != '0' && strings.Trim(n.Version, "0123456789") == ""
}

// document is a schema that has been read.
type document struct {
	text     []byte
	compiled *jsonschema.Schema
}

// Library is a set of schemas. It is immutable.
type Library struct {
	documents map[Name]document
	names     []Name // in order
}

// Open returns the built-in schemas, and beside them those that are in dir as
// <type>/<version>.json, where dir is not empty. Its error names the file.
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

// nothing refuses to load what a schema refers to elsewhere: a schema is whole.
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

// Names returns the names of all schemas, in order.
func (l *Library) Names() []Name { return slices.Clone(l.names) }

// Text returns a schema as it was written, and whether there is one.
func (l *Library) Text(n Name) ([]byte, bool) {
	d, ok := l.documents[n]
	return bytes.Clone(d.text), ok
}

// MismatchError says that data does not fit its schema. It may be logged: it quotes
// the schema and nothing of the data.
type MismatchError struct {
	Name  Name
	Where []string // JSON pointers into the schema: what does not hold; none where the data is no JSON
}

func (m *MismatchError) Error() string {
	if len(m.Where) == 0 {
		return fmt.Sprintf("is not JSON, which schema %s asks for", m.Name)
	}
	return fmt.Sprintf("does not fit schema %s at %s", m.Name, strings.Join(m.Where, ", "))
}

// Check returns nil where data of a media type fits the schema, or where there
// is no such schema, and a *MismatchError otherwise.
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

// most is how many places a mismatch names.
const most = 5

func (m *MismatchError) collect(e *jsonschema.ValidationError) {
	for _, cause := range e.Causes {
		m.collect(cause)
	}
	if len(e.Causes) > 0 || len(m.Where) == most {
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

// keywords is the path of the keyword that does not hold, as far as the schema
// itself spells it.
func keywords(e *jsonschema.ValidationError) []string {
	p := e.ErrorKind.KeywordPath()
	return p[:min(len(p), 1)]
}
