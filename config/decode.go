package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/internal/spelling"
)

// Block is an entry of sources or sinks: a name, a type, and a body. Only the
// kind of the type can decode the body.
type Block struct {
	Name string
	Type string
	Path string // of the entry, such as sinks[0]

	doc   *document
	node  *yaml.Node
	fault Problems // why Type is empty
}

// Decode reads all keys except name and type into the fields of targets.
// Targets are pointers to structs, and together contain every key. A field
// keeps its value if the key is not written. The error is a Problems.
func (b Block) Decode(targets ...any) error {
	values := make([]reflect.Value, len(targets))
	for i, t := range targets {
		values[i] = settable(t)
	}
	d := &decoder{doc: b.document()}
	d.structs(b.node, b.Path, values, "name", "type")
	return d.problems.err()
}

// With returns the block with a top-level key set to a text. The text is not
// expanded.
func (b Block) With(key, text string) Block {
	node := *b.node
	node.Content = slices.Clone(node.Content)
	value := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Line: node.Line, Column: node.Column}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			node.Content[i+1] = value
			b.node = &node
			return b
		}
	}
	name := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key, Line: node.Line, Column: node.Column}
	node.Content = append(node.Content, name, value)
	b.node = &node
	return b
}

// Check turns errors of Validate methods into Problems with positions. Check
// returns nil if all errs are nil.
func (b Block) Check(errs ...error) error {
	var all Problems
	for _, err := range errs {
		all = append(all, b.document().place(b.node, b.Path, err)...)
	}
	return all.err()
}

// UnknownType returns the Problem for a block with an unknown type. What is
// "source" or "sink"; names are the names of the kinds.
func (b Block) UnknownType(what string, names []string) error {
	if b.Type == "" && len(b.fault) > 0 {
		return b.fault // reported by Parse
	}
	n := find(b.node, "type")
	return Problems{b.document().at(n, join(b.Path, "type"), b.document().written(n, b.Type)+" is not a type of "+what, suggest(b.Type, names, "types"))}
}

// Problem returns a problem at a key of the block, such as "paths[1]"; "" is
// the block itself.
func (b Block) Problem(key, what, hint string) Problem {
	return b.document().foreign(find(b.node, key), join(b.Path, key), what, hint)
}

// Has reports whether a key of the block, such as "retry.max", is written, and
// not as null.
func (b Block) Has(key string) bool {
	n := deref(b.node)
	for name := range strings.SplitSeq(key, ".") {
		if n = deref(child(n, name)); n == nil || isNull(n) {
			return false
		}
	}
	return true
}

// missing returns the problem for a missing key that every block needs.
func (b Block) missing(key string) Problem {
	hint := "add name: with lower case letters, digits, dashes and underscores"
	if key == "type" {
		hint = "add type: with the kind of this entry"
	}
	return b.document().at(find(b.node, key), join(b.Path, key), "is required", hint)
}

// document returns the block's document. A Block that was not parsed has an
// empty document and decodes to defaults.
func (b Block) document() *document {
	if b.doc != nil {
		return b.doc
	}
	return &document{private: &private{}}
}

// Node is a value of the document with its position. A Value decodes itself
// from a Node.
type Node struct {
	doc *document
	n   *yaml.Node
	key string
}

// Text returns the text of a scalar, with ${…} expanded, and false for a list
// or a mapping. The text may be a secret: in messages, print Written.
func (n Node) Text() (string, bool) {
	if n.n.Kind != yaml.ScalarNode {
		return "", false
	}
	text, _ := n.doc.text(n.n)
	return text, true
}

// IsList reports whether the node is a list.
func (n Node) IsList() bool { return n.n.Kind == yaml.SequenceNode }

// IsMapping reports whether the node is a mapping of keys to values.
func (n Node) IsMapping() bool { return n.n.Kind == yaml.MappingNode }

// Written returns a scalar as written, quoted, for messages, without expanding
// ${…}. For a list or a mapping Written returns "a list" or "a mapping".
func (n Node) Written() string { return n.doc.written(n.n, "") }

// Decode reads the node into target, by target's Go kind and tags, without
// calling target's own UnmarshalConfig. The error is a Problems.
func (n Node) Decode(target any) error {
	d := &decoder{doc: n.doc}
	d.plain(n.n, n.key, settable(target), field{})
	return d.problems.err()
}

// Problem returns a problem at the node.
func (n Node) Problem(what, hint string) Problem { return n.doc.foreign(n.n, n.key, what, hint) }

// Want returns the problem for a node of a wrong type. Want is the right type,
// such as "a size".
func (n Node) Want(want, hint string) Problem {
	return n.doc.at(n.n, n.key, n.doc.is(n.n)+", want "+want, hint)
}

// decoder reads nodes into values and collects problems.
type decoder struct {
	doc      *document
	problems Problems
}

func (d *decoder) add(p Problem) { d.problems = append(d.problems, p) }

func (d *decoder) wrong(n *yaml.Node, key, what, hint string) {
	d.add(d.doc.at(n, key, what, hint))
}

// want adds the problem for a node of a wrong type.
func (d *decoder) want(n *yaml.Node, key, want, hint string) {
	d.wrong(n, key, d.doc.is(n)+", want "+want, hint)
}

// value reads a node into v. Null leaves v unchanged.
func (d *decoder) value(n *yaml.Node, key string, v reflect.Value, f field) {
	n = deref(n)
	if isNull(n) {
		return
	}
	if e, ok := d.doc.expanded[n]; ok && e.fault != nil {
		p := d.doc.at(n, key, e.fault.what, e.fault.hint)
		p.Missing = e.fault.missing
		d.add(p)
		return
	}
	if custom, ok := reflect.TypeAssert[Value](v.Addr()); ok {
		d.custom(n, key, v, custom)
		return
	}
	d.plain(n, key, v, f)
}

// custom lets a Value read itself.
func (d *decoder) custom(n *yaml.Node, key string, v reflect.Value, custom Value) {
	before := reflect.New(v.Type()).Elem()
	before.Set(v)
	if err := custom.UnmarshalConfig(Node{d.doc, n, key}); err != nil {
		v.Set(before)
		d.problems = append(d.problems, d.doc.place(n, key, err)...)
	}
}

// plain reads a node into v by the Go type of v.
func (d *decoder) plain(n *yaml.Node, key string, v reflect.Value, f field) {
	n = deref(n)
	switch v.Interface().(type) {
	case Block:
		d.block(n, key, v)
		return
	case time.Duration:
		d.duration(n, key, v)
		return
	case netip.Prefix:
		d.prefix(n, key, v)
		return
	case *time.Location:
		d.location(n, key, v)
		return
	case Secret:
		d.doc.private.hide(n)
		if text, ok := d.text(n, key); ok {
			d.doc.private.secret(Secret(text))
			d.stray(n, key, text)
			v.SetString(text)
		}
		return
	case URL:
		d.doc.private.hide(n)
		if text, ok := d.text(n, key); ok {
			d.doc.private.secret(URL(text).secrets()...)
			d.stray(n, key, text)
			v.SetString(text)
		}
		return
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		d.textUnmarshaler(n, key, u)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		target := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			target.Elem().Set(v.Elem())
		}
		before := len(d.problems)
		d.value(n, key, target.Elem(), f)
		if len(d.problems) == before {
			v.Set(target)
		}
	case reflect.Struct:
		d.structs(n, key, []reflect.Value{v})
	case reflect.Slice:
		d.list(n, key, v, f)
	case reflect.Map:
		d.mapping(n, key, v, f)
	case reflect.String:
		if text, ok := d.text(n, key); ok && d.inEnum(n, key, text, f.enum) {
			v.SetString(text)
		}
	case reflect.Bool:
		d.boolean(n, key, v)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.integer(n, key, v)
	case reflect.Float32, reflect.Float64:
		d.float(n, key, v)
	default:
		panic(fmt.Sprintf("config: %s: a %v cannot be configured", key, v.Type()))
	}
}

// isWord reports whether a text looks like a key: letters, underscores and dashes.
func isWord(text string) bool {
	return len(text) <= 32 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-") == ""
}

// stray adds a problem for characters around a secret that are not part of the
// secret.
func (d *decoder) stray(n *yaml.Node, key, text string) {
	e := d.doc.expanded[n]
	if what, hint := Stray(text); what != "" {
		if len(e.outside) > 0 {
			hint += ", and check " + e.outside[len(e.outside)-1].written + ", the origin of the value"
		}
		d.wrong(n, key, what, hint)
		return
	}
	for _, part := range e.outside { // such as a token behind Bearer
		if part.value == "" { // an empty token file must not disable authentication
			hint := "give the variable a value, or write ${NAME:-} where the secret may be absent"
			if strings.HasPrefix(part.written, "${file:") {
				hint = "write the secret into the file, or remove the key"
			}
			d.wrong(n, key, part.written+" is empty", hint)
			continue
		}
		if what, hint := Stray(part.value); what != "" {
			d.wrong(n, key, part.written+" "+what, hint)
		}
	}
}

// privately hides n and everything below n if a key of type t holds secrets. A
// section of the document has many keys and few secrets: a section is hidden
// only if one of its own keys is a secret.
func (d *decoder) privately(n *yaml.Node, t reflect.Type, section bool) {
	if section && holdsSecret(t, 1) || !section && holdsSecret(t, maxDepth) {
		d.doc.private.hide(n)
	}
}

// holdsSecret reports whether a type is a secret or has a key for a secret, at
// most depth structs deep.
func holdsSecret(t reflect.Type, depth int) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return holdsSecret(t.Elem(), depth)
	case reflect.Struct:
		for f := range t.Fields() {
			tag, tagged := f.Tag.Lookup("yaml")
			if depth > 0 && f.IsExported() && tagged && tag != "-" && holdsSecret(f.Type, depth-1) {
				return true
			}
		}
	}
	return t == reflect.TypeFor[Secret]()
}

// structs reads a mapping into structs that together contain every key, except
// the keys in skip.
func (d *decoder) structs(n *yaml.Node, key string, targets []reflect.Value, skip ...string) {
	n = deref(n)
	if n != nil && n.Kind != yaml.MappingNode && !isNull(n) {
		for _, target := range targets {
			d.privately(n, target.Type(), false)
		}
		d.want(n, key, "a mapping of keys to values", "")
		return
	}
	type slot struct {
		field
		value reflect.Value
		at    *yaml.Node // nil if not written
	}
	var (
		allowed = slices.Clone(skip)
		slots   []*slot
		named   = map[string]*slot{}
	)
	for _, target := range targets {
		for _, f := range fieldsOf(target.Type()) {
			if named[f.name] != nil || slices.Contains(skip, f.name) {
				panic(fmt.Sprintf("config: key %q is defined twice, also in %v", f.name, target.Type()))
			}
			s := &slot{field: f, value: target.FieldByIndex(f.index)}
			allowed, slots, named[f.name] = append(allowed, f.name), append(slots, s), s
		}
	}
	for i := 0; n != nil && i+1 < len(n.Content); i += 2 {
		k, item := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" || slices.Contains(skip, k.Value) {
			continue // the walker has reported the first two
		}
		s := named[k.Value]
		switch {
		case s == nil && d.doc.private.hides(n) && (!isWord(k.Value) || spelling.Nearest(k.Value, allowed) == ""):
			// In {TOKEN}, {bearer TOKEN} and {TOKEN: x} the secret is part of the key.
			what := "has an unknown key, which is not shown because it may be a secret"
			if isNull(deref(item)) {
				what = "contains a value instead of a key"
			}
			d.wrong(k, key, what, suggest("", allowed, "keys here"))
		case s == nil:
			d.wrong(k, join(key, k.Value), "unknown key", suggest(k.Value, allowed, "keys here"))
		case s.at == nil: // a second occurrence is reported already
			s.at = item
			d.privately(item, s.value.Type(), key == "")
			d.value(item, join(key, s.name), s.value, s.field)
		}
	}
	for _, s := range slots {
		if s.required && isNull(deref(s.at)) {
			at := s.at
			if at == nil {
				at = n
			}
			d.wrong(at, join(key, s.name), "is required", s.needs())
		}
	}
}

// block reads the part of a block that is independent of the type.
func (d *decoder) block(n *yaml.Node, key string, v reflect.Value) {
	b := Block{Path: key, doc: d.doc}
	if n.Kind != yaml.MappingNode {
		d.doc.private.hide(n)
		d.want(n, key, "a mapping with a name and a type", "begin each entry with - name:")
		return
	}
	b.node = n
	b.Name, _ = d.label(b, "name")
	b.Type, b.fault = d.label(b, "type")
	if b.Name != "" && !blockName.MatchString(b.Name) {
		item := deref(child(n, "name"))
		d.wrong(item, join(key, "name"), d.doc.written(item, "")+" is not a name", "use lower case letters, digits, dashes and underscores, and begin with a letter or a digit")
	}
	v.Set(reflect.ValueOf(b))
}

// label reads the name or the type of a block, and returns the problems that
// label added.
func (d *decoder) label(b Block, key string) (text string, added Problems) {
	before := len(d.problems)
	item := deref(child(b.node, key))
	if isNull(item) {
		d.add(b.missing(key))
	} else {
		d.value(item, join(b.Path, key), reflect.ValueOf(&text).Elem(), field{})
		if text == "" && len(d.problems) == before {
			d.wrong(item, join(b.Path, key), "is empty", "write a "+key)
		}
	}
	return text, slices.Clone(d.problems[before:])
}

// blockName matches names of sources and sinks. Names are part of keys in the
// journal, of metrics and of URLs.
var blockName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// checkNames adds problems for duplicate names.
func (d *decoder) checkNames(section string, blocks []Block) {
	first := map[string]Block{}
	for _, b := range blocks {
		if b.Name == "" {
			continue
		}
		one, taken := first[b.Name]
		if !taken {
			first[b.Name] = b
			continue
		}
		n := find(b.node, "name")
		d.wrong(n, join(b.Path, "name"),
			fmt.Sprintf("%s is the name of %s too, in line %d", d.doc.written(n, b.Name), one.Path, d.doc.line(find(one.node, "name").Line)),
			"give each of the "+section+" its own name")
	}
}

// badKeys returns a function that reports whether a key, a child or a parent of
// the key has a problem.
func (d *decoder) badKeys() func(string) bool {
	keys := map[string]bool{}
	for _, p := range d.problems {
		if p.Key != "" {
			keys[p.Key] = true
		}
	}
	below := func(key, parent string) bool {
		rest, ok := strings.CutPrefix(key, parent)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	return func(key string) bool {
		for k := range keys {
			if below(key, k) || below(k, key) {
				return true
			}
		}
		return false
	}
}

func (d *decoder) list(n *yaml.Node, key string, v reflect.Value, f field) {
	entries := n.Content
	if f.commas && n.Kind == yaml.ScalarNode {
		entries = []*yaml.Node{n}
	} else if n.Kind != yaml.SequenceNode {
		if v.Type().Elem() == reflect.TypeFor[Block]() {
			d.doc.private.hide(n)
		}
		hint := "begin each entry with a dash"
		if inner, _ := innerStruct(v.Type().Elem()); n.Kind == yaml.ScalarNode && inner == nil && v.Type().Elem() != reflect.TypeFor[Block]() {
			hint = "write a list, also for a single value: [" + d.listed(n) + "]"
		}
		d.want(n, key, "a list", hint)
		return
	}
	items := reflect.MakeSlice(v.Type(), 0, len(entries))
	for i, c := range entries {
		item := reflect.New(v.Type().Elem()).Elem()
		itemKey := fmt.Sprintf("%s[%d]", key, i)
		if isNull(deref(c)) {
			d.wrong(c, itemKey, "is empty", "write a value, or remove the dash")
		} else {
			d.value(c, itemKey, item, field{enum: f.enum})
		}
		if b, ok := reflect.TypeAssert[Block](item); ok && b.node == nil {
			continue // no caller can use the value
		}
		if f.commas {
			for _, text := range d.entriesOf(c, item.String()) {
				items = reflect.Append(items, reflect.ValueOf(text))
			}
			continue
		}
		items = reflect.Append(items, item)
	}
	v.Set(items)
}

// entriesOf returns the entries of a text with commas. An entry of a text from outside the
// document is not shown, like the text.
func (d *decoder) entriesOf(n *yaml.Node, text string) (entries []string) {
	_, expanded := d.doc.expanded[deref(n)]
	for entry := range strings.SplitSeq(text, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		entries = append(entries, entry)
		if expanded {
			d.doc.private.value(entry, n.Value)
		}
	}
	return entries
}

// listed returns how a scalar would stand in a list, for a hint.
func (d *decoder) listed(n *yaml.Node) string {
	if d.doc.private.hides(n) {
		return "…"
	}
	return d.doc.written(n, "")
}

func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value, f field) {
	if v.Type().Key().Kind() != reflect.String {
		panic(fmt.Sprintf("config: %s: keys of a map are strings", key))
	}
	if n.Kind != yaml.MappingNode {
		d.want(n, key, "a mapping of keys to values", "")
		return
	}
	items := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, c := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" {
			continue // reported by the walker
		}
		item := reflect.New(v.Type().Elem()).Elem()
		itemKey := join(key, k.Value)
		if isNull(deref(c)) {
			d.wrong(c, itemKey, "is empty", `write a value; no text is ""`)
		} else {
			d.value(c, itemKey, item, field{enum: f.enum})
		}
		items.SetMapIndex(reflect.ValueOf(k.Value).Convert(v.Type().Key()), item)
	}
	v.Set(items)
}

// text reads a text scalar. Other scalars are refused, because a tool that
// rewrites the file may change 1.10 and 0755.
func (d *decoder) text(n *yaml.Node, key string) (string, bool) {
	switch tag := n.ShortTag(); {
	case n.Kind != yaml.ScalarNode:
		hint := ""
		if n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0 {
			hint = "put text with braces in quotes"
		}
		d.want(n, key, "text", hint)
		return "", false
	case tag == "!!int" || tag == "!!float" || tag == "!!bool":
		hint := "put the value in quotes"
		if !d.doc.private.hides(n) {
			hint += ": " + strconv.Quote(n.Value)
		}
		d.want(n, key, "text", hint)
		return "", false
	}
	return d.doc.text(n)
}

// scalar reads the text of a scalar of another type than text.
func (d *decoder) scalar(n *yaml.Node, key, want, hint string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.want(n, key, want, hint)
		return "", false
	}
	return d.doc.text(n)
}

func (d *decoder) boolean(n *yaml.Node, key string, v reflect.Value) {
	const want = "true or false"
	text, ok := d.scalar(n, key, want, "")
	if !ok {
		return
	}
	switch {
	case (text == "true" || text == "True" || text == "TRUE") && d.bare(n):
		v.SetBool(true)
	case (text == "false" || text == "False" || text == "FALSE") && d.bare(n):
		v.SetBool(false)
	default:
		hint := ""
		switch strings.ToLower(n.Value) {
		case "yes", "on", "y", "true":
			hint = "write true"
		case "no", "off", "n", "false":
			hint = "write false"
		}
		d.want(n, key, want, hint)
	}
}

// bare reports whether a scalar is unquoted or was expanded, so that the scalar
// may have another type than text.
func (d *decoder) bare(n *yaml.Node) bool {
	_, expanded := d.doc.expanded[n]
	return expanded || n.ShortTag() != "!!str"
}

func (d *decoder) integer(n *yaml.Node, key string, v reflect.Value) {
	const want = "a whole number"
	text, ok := d.scalar(n, key, want, "")
	if !ok {
		return
	}
	unsigned := v.CanUint()
	i, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 0, 64)
	if errors.Is(err, strconv.ErrRange) {
		d.wrong(n, key, d.doc.written(n, "")+" is too large", "")
		return
	}
	if err != nil || !d.bare(n) {
		hint := ""
		if err == nil {
			hint = "remove the quotes"
		}
		d.want(n, key, want, hint)
		return
	}
	switch {
	case unsigned && i < 0:
		d.wrong(n, key, d.doc.written(n, "")+" is negative", "use 0 or more")
	case unsigned && v.OverflowUint(uint64(i)), !unsigned && v.OverflowInt(i):
		d.wrong(n, key, d.doc.written(n, "")+" is too large", "")
	case unsigned:
		v.SetUint(uint64(i))
	default:
		v.SetInt(i)
	}
}

func (d *decoder) float(n *yaml.Node, key string, v reflect.Value) {
	const want = "a number"
	text, ok := d.scalar(n, key, want, "")
	if !ok {
		return
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || !d.bare(n) {
		hint := ""
		if err == nil && !d.bare(n) {
			hint = "remove the quotes"
		}
		d.want(n, key, want, hint)
		return
	}
	v.SetFloat(f)
}

func (d *decoder) duration(n *yaml.Node, key string, v reflect.Value) {
	const (
		want = "a duration"
		hint = "write a number with a unit: 500ms, 30s, 5m, 24h, 7d, 2w"
	)
	text, ok := d.scalar(n, key, want, hint)
	if !ok {
		return
	}
	duration, err := ParseDuration(text)
	switch _, isNumber := strconv.ParseFloat(text, 64); {
	case err == nil:
		v.SetInt(int64(duration))
	case text == "":
		d.want(n, key, want, hint)
	case isNumber == nil && d.doc.shows(n):
		d.wrong(n, key, "duration "+d.doc.written(n, "")+" has no unit", fmt.Sprintf("write %[1]ss, %[1]sm or %[1]sh", text))
	case isNumber == nil:
		d.wrong(n, key, "duration "+d.doc.written(n, "")+" has no unit", hint)
	case strings.HasSuffix(err.Error(), "too long"):
		d.wrong(n, key, "duration "+d.doc.written(n, "")+" is too long", "the longest is about 292 years")
	default:
		d.wrong(n, key, d.doc.written(n, "")+" is not a duration", hint)
	}
}

func (d *decoder) prefix(n *yaml.Node, key string, v reflect.Value) {
	const hint = "write a network with its length: 10.0.0.0/8, 2001:db8::/32"
	text, ok := d.scalar(n, key, "a network", hint)
	if !ok {
		return
	}
	p, err := netip.ParsePrefix(text)
	if err == nil {
		v.Set(reflect.ValueOf(p))
		return
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		one := hint
		if d.doc.shows(n) {
			one = fmt.Sprintf("write %s/%d for this address alone", addr.WithZone(""), addr.BitLen())
		}
		d.wrong(n, key, d.doc.written(n, "")+" is an address, want a network", one)
		return
	}
	d.wrong(n, key, d.doc.written(n, "")+" is not a network", hint)
}

func (d *decoder) location(n *yaml.Node, key string, v reflect.Value) {
	const hint = "use a name of the IANA database, such as UTC or Europe/Berlin"
	text, ok := d.scalar(n, key, "a time zone", hint)
	if !ok {
		return
	}
	// "Local" depends on the machine: the meaning of the file would change from
	// machine to machine.
	location, err := time.LoadLocation(text)
	if err != nil || text == "" || text == "Local" {
		d.wrong(n, key, d.doc.written(n, "")+" is not a time zone", hint)
		return
	}
	v.Set(reflect.ValueOf(location))
}

func (d *decoder) textUnmarshaler(n *yaml.Node, key string, u encoding.TextUnmarshaler) {
	text, ok := d.scalar(n, key, "text", "")
	if !ok {
		return
	}
	err := u.UnmarshalText([]byte(text))
	if err == nil {
		return
	}
	if !d.doc.shows(n) {
		// The error may hold any part of the value.
		d.wrong(n, key, d.doc.written(n, "")+" is not valid", "")
		return
	}
	d.add(d.doc.foreign(n, key, err.Error(), ""))
}

func (d *decoder) inEnum(n *yaml.Node, key, text string, enum []string) bool {
	if len(enum) == 0 || slices.Contains(enum, text) {
		return true
	}
	hint := suggest(text, enum, "values")
	if _, expanded := d.doc.expanded[n]; expanded {
		hint = "the values are " + strings.Join(enum, ", ") // a similar value would reveal part of the secret
	}
	d.wrong(n, key, d.doc.written(n, "")+" is not one of the values", hint)
	return false
}

// is describes a node: `is a list`, `"many" is a string`.
func (doc *document) is(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return "is " + kindOf(n)
	}
	written := doc.written(n, "")
	if written == "null" || written == `""` {
		return "is empty"
	}
	if doc.private.hides(n) {
		return "is " + kindOf(n)
	}
	if _, expanded := doc.expanded[n]; expanded {
		return written + " expands to a value of another type"
	}
	return written + " is " + kindOf(n)
}

// shows reports whether messages may tell of the value of a node, also in part.
func (doc *document) shows(n *yaml.Node) bool {
	_, expanded := doc.expanded[n]
	return !expanded && !doc.private.hides(n)
}

// longest is how much of a value a message shows.
const longest = 60

// written returns a scalar as written, for messages: ${…} is not expanded,
// credentials of a URL are removed, and a hidden value is ***. A nil node
// returns the fallback.
func (doc *document) written(n *yaml.Node, fallback string) string {
	if n == nil {
		return strconv.Quote(fallback)
	}
	if n.Kind != yaml.ScalarNode {
		return kindOf(n)
	}
	if doc.private.hides(n) && n.Value != "" && !isNull(n) {
		return hidden
	}
	text := redactURLs(n.Value)
	if r := []rune(text); len(r) > longest {
		text = string(r[:longest]) + "…"
	}
	if n.ShortTag() == "!!str" {
		return strconv.Quote(text)
	}
	if text == "" {
		return "null"
	}
	return text
}

// kindOf returns the type of a node in words: "a list", "a whole number".
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!int":
		return "a whole number"
	case "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	case "!!null":
		return "empty"
	case "!!timestamp":
		return "a date"
	}
	return "a string"
}

// isNull reports whether nothing is written at n.
func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// child returns the value of a key of a mapping, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// settable returns the value behind a caller's pointer.
func settable(target any) reflect.Value {
	v := reflect.ValueOf(target)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic(fmt.Sprintf("config: cannot decode into a %T; give a pointer", target))
	}
	return v.Elem()
}

// field is the description of a key in the tags of a struct field.
type field struct {
	name, doc, example string
	enum               []string
	required           bool
	commas             bool // of a list: a text may have several entries, separated by commas
	index              []int
	typ                reflect.Type
}

// needs returns the hint for a missing required key.
func (f field) needs() string {
	if f.example == "" {
		return "add the key"
	}
	return "for example " + f.name + ": " + f.example
}

// fieldsOf returns the keys of a struct, including keys of inlined structs, in
// source order.
func fieldsOf(t reflect.Type) []field {
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %v is not a struct", t))
	}
	var all []field
	for i := range t.NumField() {
		sf := t.Field(i)
		if !sf.IsExported() {
			continue
		}
		tag, tagged := sf.Tag.Lookup("yaml")
		if !tagged {
			panic(fmt.Sprintf("config: %v.%s has no yaml tag; use yaml:\"-\" if it is no key", t, sf.Name))
		}
		name, options, _ := strings.Cut(tag, ",")
		if name == "-" {
			continue
		}
		if options == "inline" {
			for _, f := range fieldsOf(sf.Type) {
				f.index = append([]int{i}, f.index...)
				all = append(all, f)
			}
			continue
		}
		f := field{
			name: name, doc: sf.Tag.Get("doc"), example: sf.Tag.Get("example"),
			required: sf.Tag.Get("required") == "true", commas: sf.Tag.Get("list") == "commas", index: []int{i}, typ: sf.Type,
		}
		if enum := sf.Tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, ",")
		}
		all = append(all, f)
	}
	return all
}
