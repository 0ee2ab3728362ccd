package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// KindDoc describes a kind of source or sink for the schema and the reference
// page.
type KindDoc struct {
	Name    string // value of type
	Summary string // a single line
	Values  []any  // structs with the kind's keys and defaults
	Example string // YAML on the page; may be empty
}

// Field describes a key.
type Field struct {
	Key      string
	Type     string // for people: "duration", "list of text"
	Default  string // in YAML; "" for no default
	Doc      string
	Example  string
	Enum     []string
	Required bool
	Fields   []Field // keys of the mapping, or of each mapping in the list

	typ    reflect.Type
	commas bool // a list that may be a text with commas
}

// Describe describes the keys of structs, in order. The defaults are the values
// in the structs.
func Describe(values ...any) []Field {
	var all []Field
	for _, value := range values {
		all = append(all, describe(reflect.Indirect(reflect.ValueOf(value)), true)...)
	}
	return all
}

// describe describes the keys of a struct. Elements of lists and maps have no
// defaults: a zero in a new element is a missing value, not a default.
func describe(v reflect.Value, defaults bool) []Field {
	var all []Field
	for _, f := range fieldsOf(v.Type()) {
		value := v.FieldByIndex(f.index)
		d := Field{
			Key: f.name, Type: typeWords(f.typ), Doc: f.doc, Example: f.example,
			Enum: f.enum, Required: f.required, typ: f.typ, commas: f.commas,
		}
		if f.commas {
			d.Type += ", or text with commas"
		}
		if defaults && !f.required {
			d.Default = defaultText(value)
		}
		switch inner, repeated := innerStruct(f.typ); {
		case inner == nil:
		case !repeated && value.Kind() == reflect.Struct:
			d.Fields = describe(value, defaults)
		case !repeated && value.Kind() == reflect.Pointer && !value.IsNil():
			d.Fields = describe(value.Elem(), defaults)
		default:
			d.Fields = describe(reflect.New(inner).Elem(), false)
		}
		all = append(all, d)
	}
	return all
}

// innerStruct returns the struct whose keys are written for a type, or nil, and
// whether the struct may be repeated.
func innerStruct(t reflect.Type) (inner reflect.Type, repeated bool) {
	for {
		if syntax, ok := syntaxOf(t); ok {
			if !syntax.Fields {
				return nil, false
			}
			return t, repeated
		}
		switch {
		case isScalar(t) || t == reflect.TypeFor[Block]():
			return nil, false
		case t.Kind() == reflect.Pointer:
			t = t.Elem()
		case t.Kind() == reflect.Slice || t.Kind() == reflect.Map:
			t, repeated = t.Elem(), true
		case t.Kind() == reflect.Struct:
			return t, repeated
		default:
			return nil, false
		}
	}
}

// syntaxOf returns the Syntax of a Value type.
func syntaxOf(t reflect.Type) (Syntax, bool) {
	if v, ok := reflect.TypeAssert[Value](reflect.New(t)); ok {
		return v.DescribeConfig(), true
	}
	return Syntax{}, false
}

// isScalar reports whether a type is written as a scalar although its Go kind
// is not a scalar.
func isScalar(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[time.Duration](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[*time.Location](), reflect.TypeFor[Secret](), reflect.TypeFor[URL]():
		return true
	}
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// typeWords returns the name of a type on the reference page.
func typeWords(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Block]():
		return "mapping"
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[netip.Prefix]():
		return "network"
	case reflect.TypeFor[*time.Location]():
		return "time zone"
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[URL]():
		return "text"
	}
	if syntax, ok := syntaxOf(t); ok {
		return syntax.Type
	}
	if isScalar(t) {
		return "text"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeWords(t.Elem())
	case reflect.Slice:
		return "list of " + plural(typeWords(t.Elem()))
	case reflect.Map:
		return "mapping of names to " + plural(typeWords(t.Elem()))
	case reflect.Struct:
		return "mapping"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "number"
	}
	return "whole number"
}

func plural(word string) string {
	if word == "text" || strings.Contains(word, " or ") || strings.Contains(word, " of ") {
		return word
	}
	return word + "s"
}

// defaultText returns a default in YAML on a single line. A mapping, whose keys
// have defaults, and an unset value return "".
func defaultText(v reflect.Value) string {
	n := rendered(v)
	if isNull(n) || n.Kind == yaml.MappingNode {
		return ""
	}
	if n.Kind == yaml.SequenceNode {
		n.Style = yaml.FlowStyle
	}
	if n.Kind == yaml.ScalarNode && n.Value == "" {
		return `""`
	}
	out, err := encode(n)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// object is a JSON object with ordered members.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, part := range []any{m.name, m.value} {
			if j > 0 {
				b.WriteByte(':')
			}
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			if err := e.Encode(part); err != nil {
				return nil, err
			}
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// durationPattern matches the input of ParseDuration, for the schema.
const durationPattern = `^[-+]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h|d|w))+$`

// Schema returns the JSON Schema (draft 2020-12) of the configuration.
func Schema(sources, sinks []KindDoc) ([]byte, error) {
	defs := object{
		{"expansion", object{
			{"description", "Text with ${NAME}, ${NAME:-default} or ${file:/path}."},
			{"type", "string"},
			{"pattern", `\$\{`},
		}},
		{"duration", object{
			{"description", "Numbers with units: ms, s, m, h, d (24 hours) or w (7 days). 0 needs no unit."},
			{"anyOf", []any{object{{"type", "string"}, {"pattern", durationPattern}}, object{{"const", 0}}, expansionRef()}},
		}},
	}
	properties := object{}
	fields := Describe(Default())
	for _, f := range fields {
		switch f.Key {
		case "sources", "sinks":
			kinds := sources
			if f.Key == "sinks" {
				kinds = sinks
			}
			items, kindDefs, err := blockSchema(f.Key, kinds)
			if err != nil {
				return nil, err
			}
			defs = append(defs, kindDefs...)
			properties = append(properties, member{f.Key, object{{"description", f.Doc}, {"type", "array"}, {"items", items}}})
		default:
			s, err := f.schema()
			if err != nil {
				return nil, err
			}
			properties = append(properties, member{f.Key, s})
		}
	}
	data, err := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", "Postwire configuration"},
		{"type", "object"},
		{"properties", properties},
		{"additionalProperties", false},
		{"$defs", defs},
	}.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func expansionRef() object { return object{{"$ref", "#/$defs/expansion"}} }

// blockSchema returns the schema of the entries of a section. An entry's type
// selects a definition.
func blockSchema(section string, kinds []KindDoc) (items, defs object, err error) {
	names := make([]string, 0, len(kinds))
	var choices []any
	for _, k := range kinds {
		names = append(names, k.Name)
		def := section + "." + k.Name
		properties := object{{"name", true}, {"type", true}}
		fields, required, err := properties.schemas(Describe(k.Values...))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", def, err)
		}
		o := object{
			{"description", k.Summary},
			{"type", "object"},
			{"properties", fields},
			{"additionalProperties", false},
		}
		if len(required) > 0 {
			o = append(o, member{"required", required})
		}
		defs = append(defs, member{def, o})
		choices = append(choices, object{
			{"if", object{{"properties", object{{"type", object{{"const", k.Name}}}}}, {"required", []string{"type"}}}},
			{"then", object{{"$ref", "#/$defs/" + def}}},
		})
	}
	items = object{
		{"type", "object"},
		{"properties", object{
			{"name", object{
				{"description", nameDoc(section)},
				{"anyOf", []any{object{{"type", "string"}, {"pattern", blockName.String()}}, expansionRef()}},
			}},
			{"type", object{
				{"description", typeDoc},
				{"anyOf", []any{object{{"enum", names}}, expansionRef()}},
			}},
		}},
		{"required", []string{"name", "type"}},
	}
	if len(choices) > 0 {
		items = append(items, member{"allOf", choices})
	}
	return items, defs, nil
}

// typeDoc describes the key type of the entries of a section.
const typeDoc = "Kind of the entry. The other keys depend on the kind."

// nameDoc describes the key name of the entries of a section.
func nameDoc(section string) string {
	doc := "Name of the entry, unique among the " + section + ": lower-case letters, digits, dashes and underscores. "
	if section == "sinks" {
		return doc + "Identifies the sink in the journal and in metrics. Renaming a sink removes the sink and creates a new sink: events pending for the old name are not delivered."
	}
	return doc + "Identifies the source in the journal and in metrics. Dedupe keys contain the name: after renaming a source, repeats of earlier events count as new events."
}

// schemas appends the schemas of fields to properties, and lists the required
// keys.
func (o object) schemas(fields []Field) (properties object, required []string, err error) {
	properties = o
	for _, f := range fields {
		s, err := f.schema()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.Key, err)
		}
		properties = append(properties, member{f.Key, s})
		if f.Required {
			required = append(required, f.Key)
		}
	}
	return properties, required, nil
}

// schema returns the schema of a key.
func (f Field) schema() (object, error) {
	s := object{}
	if f.Doc != "" {
		s = append(s, member{"description", f.Doc})
	}
	body, err := typeSchema(f.typ, f)
	if err != nil {
		return nil, err
	}
	s = append(s, body...)
	if f.Default != "" {
		var value any
		if err := yaml.Unmarshal([]byte(f.Default), &value); err != nil {
			return nil, fmt.Errorf("default: %w", err)
		}
		s = append(s, member{"default", value})
	}
	if f.Example != "" {
		var value any = f.Example
		if f.typ.Kind() != reflect.String {
			if err := yaml.Unmarshal([]byte(f.Example), &value); err != nil {
				return nil, fmt.Errorf("example: %w", err)
			}
		}
		s = append(s, member{"examples", []any{value}})
	}
	return s, nil
}

// typeSchema returns the schema of a type. The enum and the fields come from f.
func typeSchema(t reflect.Type, f Field) (object, error) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return object{{"$ref", "#/$defs/duration"}}, nil
	case reflect.TypeFor[Secret]():
		return object{{"type", "string"}, {"writeOnly", true}}, nil
	}
	if syntax, ok := syntaxOf(t); ok {
		return syntax.schema(f)
	}
	if isScalar(t) {
		return object{{"type", "string"}}, nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem(), f)
	case reflect.Struct:
		return structSchema(f)
	case reflect.Slice:
		items, err := typeSchema(t.Elem(), f)
		list := object{{"type", "array"}, {"items", items}}
		if f.commas {
			return object{{"anyOf", []any{list, items}}}, err
		}
		return list, err
	case reflect.Map:
		items, err := typeSchema(t.Elem(), f)
		return object{{"type", "object"}, {"additionalProperties", items}}, err
	case reflect.String:
		if len(f.Enum) > 0 {
			return object{{"anyOf", []any{object{{"enum", f.Enum}}, expansionRef()}}}, nil
		}
		return object{{"type", "string"}}, nil
	case reflect.Bool:
		return object{{"anyOf", []any{object{{"type", "boolean"}}, expansionRef()}}}, nil
	case reflect.Float32, reflect.Float64:
		return object{{"anyOf", []any{object{{"type", "number"}}, expansionRef()}}}, nil
	}
	return object{{"anyOf", []any{object{{"type", "integer"}}, expansionRef()}}}, nil
}

func structSchema(f Field) (object, error) {
	properties, required, err := object{}.schemas(f.Fields)
	if err != nil {
		return nil, err
	}
	o := object{{"type", "object"}, {"properties", properties}, {"additionalProperties", false}}
	if len(required) > 0 {
		o = append(o, member{"required", required})
	}
	return o, nil
}

// schema returns the schema of a Value of this syntax.
func (s Syntax) schema(f Field) (object, error) {
	var choices []any
	if len(s.Words) > 0 {
		choices = append(choices, object{{"enum", s.Words}})
	}
	if s.Pattern != "" {
		choices = append(choices, object{{"type", "string"}, {"pattern", s.Pattern}})
	}
	if s.Integer {
		choices = append(choices, object{{"type", "integer"}})
	}
	if len(choices) > 0 {
		choices = append(choices, expansionRef())
	}
	if s.Fields {
		fields, err := structSchema(f)
		if err != nil {
			return nil, err
		}
		choices = append(choices, fields)
	}
	return object{{"anyOf", choices}}, nil
}

const referenceIntro = `# Configuration

The configuration is one YAML file. Every key has a default unless the table says *required*; ` + "`postwire config print`" + ` shows the
configuration in effect. Unknown keys, repeated keys and invalid values are errors. ` + "`postwire config validate`" + ` reports all
errors at once, each with line, column and a suggested fix.

**Variables and files.** In any value, ` + "`${NAME}`" + ` is replaced by the environment variable NAME. ` + "`${NAME:-default}`" + ` uses the
default if the variable is unset or empty. ` + "`${file:/path}`" + ` is replaced by the content of a file without the final newline; a
relative path starts at the folder of the configuration file. ` + "`$${`" + ` is a literal ` + "`${`" + `. Replacement happens after the YAML is
parsed, so a value cannot add keys.

**Types.** A *duration* is a sum of numbers with units: ` + "`500ms`, `30s`, `1h30m`, `7d`, `2w`" + `; a day is 24 hours. A *size* is a
number of bytes, with or without a unit: ` + "`65536`, `64KiB`, `1MB`" + `. A *network* is an address with a prefix length: ` + "`10.0.0.0/8`" + `. A
*secret* is a text that logs, errors and printed configurations never show.

**Links.** Every key has an anchor: ` + "`#server-max-connections`" + ` is ` + "`server.max_connections`, `#sinks-kafka-topic`" + ` is ` + "`topic`" + ` of a
sink of type ` + "`kafka`" + `.

## Contents

`

// keyAnchor returns the anchor of a key on the reference page:
// server.max_connections is server-max-connections.
func keyAnchor(path string) string {
	return strings.NewReplacer("[]", "", ".", "-", "_", "-").Replace(path)
}

// Reference returns the reference page of the configuration, in Markdown.
func Reference(sources, sinks []KindDoc) ([]byte, error) {
	var contents, body strings.Builder
	for _, f := range Describe(Default()) {
		fmt.Fprintf(&contents, "- [`%s`](#%s)", f.Key, keyAnchor(f.Key))
		fmt.Fprintf(&body, "\n## `%s`\n\n%s\n", f.Key, f.Doc)
		switch f.Key {
		case "sources":
			referenceKinds(&contents, &body, f.Key, "Source", sources)
		case "sinks":
			referenceKinds(&contents, &body, f.Key, "Sink", sinks)
		default:
			referenceContents(&contents, ": ", f.Key, "", f.Fields)
			contents.WriteByte('\n')
			referenceTables(&body, "### ", f.Key, f.Key, f.Fields)
		}
	}
	return []byte(referenceIntro + contents.String() + body.String()), nil
}

// referenceKinds writes the table of the common keys of a section, and a
// subsection for each kind.
func referenceKinds(contents, body *strings.Builder, section, word string, kinds []KindDoc) {
	contents.WriteByte('\n')
	referenceTables(body, "### ", section, "", []Field{
		{Key: "name", Type: "text", Required: true, Doc: nameDoc(section)},
		{Key: "type", Type: "text", Required: true, Doc: typeDoc, Enum: names(kinds)},
	})
	for _, k := range kinds {
		title := fmt.Sprintf("%s of type `%s`", word, k.Name)
		anchor := section + "." + k.Name
		fmt.Fprintf(contents, "  - [%s](#%s)", title, strings.ToLower(word+"-of-type-"+k.Name))
		fmt.Fprintf(body, "\n### %s\n\n%s\n", title, k.Summary)
		if k.Example != "" {
			fmt.Fprintf(body, "\n```yaml\n%s\n```\n", strings.Trim(k.Example, "\n"))
		}
		fields := Describe(k.Values...)
		referenceContents(contents, ": ", anchor, "", fields)
		contents.WriteByte('\n')
		referenceTables(body, "#### "+k.Name+": ", anchor, "", fields)
	}
}

// referenceContents lists the sections of the structs inside of fields, in the
// order of the page.
func referenceContents(b *strings.Builder, separator, anchor, path string, fields []Field) {
	for _, f := range fields {
		if len(f.Fields) == 0 {
			continue
		}
		fmt.Fprintf(b, "%s[`%s`](#%s)", separator, join(path, f.Key), keyAnchor(join(anchor, f.Key)))
		separator = ", "
		referenceContents(b, separator, join(anchor, f.Key), join(path, f.Key), f.Fields)
	}
}

func names(kinds []KindDoc) []string {
	all := make([]string, len(kinds))
	for i, k := range kinds {
		all[i] = k.Name
	}
	return all
}

// referenceTables writes the table of a struct's keys, followed by a section
// for each inner struct. Heading is the start of each heading: the level and,
// for a kind, the name of the kind. Path is the struct's path in headings,
// anchor the path in anchors. A key has a single anchor: in the table, or at
// the section of the key.
func referenceTables(b *strings.Builder, heading, anchor, path string, fields []Field) {
	b.WriteString("\n| key | type | default | description |\n|---|---|---|---|\n")
	for _, f := range fields {
		value := ""
		switch {
		case f.Required:
			value = "*required*"
		case f.Default != "":
			value = cell(code(f.Default))
		}
		id := keyAnchor(join(anchor, f.Key))
		key := fmt.Sprintf("[`%s`](#%s)", f.Key, id)
		if len(f.Fields) == 0 {
			key = anchorTag(id) + key
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", key, f.Type, value, cell(f.sentence()))
	}
	for _, f := range fields {
		if len(f.Fields) == 0 {
			continue
		}
		inner := join(path, f.Key)
		if _, repeated := innerStruct(f.typ); repeated {
			inner += "[]"
		}
		fmt.Fprintf(b, "\n%s\n\n%s`%s`\n\n%s\n", anchorTag(keyAnchor(join(anchor, f.Key))), heading, inner, f.Doc)
		referenceTables(b, heading, join(anchor, f.Key), inner, f.Fields)
	}
}

// anchorTag returns the HTML of an anchor.
func anchorTag(id string) string { return `<a id="` + id + `"></a>` }

// sentence returns the description of a key, with allowed values and example.
func (f Field) sentence() string {
	parts := []string{f.Doc}
	if f.Doc == "" {
		parts = nil
	}
	if len(f.Enum) > 0 {
		words := make([]string, len(f.Enum))
		for i, word := range f.Enum {
			words[i] = code(word)
		}
		parts = append(parts, "One of "+strings.Join(words, ", ")+".")
	}
	if f.Example != "" {
		parts = append(parts, "Example: "+code(f.Example)+".")
	}
	return strings.Join(parts, " ")
}

// code sets text as code. A backtick inside needs a longer fence.
func code(text string) string {
	if strings.Contains(text, "`") {
		return "`` " + text + " ``"
	}
	return "`" + text + "`"
}

// cell makes text fit into a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(text)
}
