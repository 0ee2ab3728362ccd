package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The bounds of a document. A file of a few lines can describe billions of
// values by aliases of aliases; no configuration needs many.
const (
	maxDocument = 8 << 20
	maxAliased  = 10000 // values reached through aliases
	maxDepth    = 100
)

// Read reads the text of a configuration for Parse. The error is a Problems.
func Read(path string) ([]byte, error) {
	data, err := readRegular(path, maxDocument)
	if err != nil {
		return nil, Problems{{File: path, What: "configuration file " + fileReason(err), Hint: "name a different file with -c"}}
	}
	return data, nil
}

// Load reads the configuration from a file. See Parse.
func Load(path string, env func(string) (string, bool)) (*Config, error) {
	data, err := Read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data, env)
}

// Parse reads the configuration from data. File is the name in problems, and
// relative paths in ${file:…} start at the folder of file. Env looks up
// variables, like os.LookupEnv; nil defines no variables.
//
// The error is a Problems. Unless data is not a YAML document, Parse returns a
// partial configuration together with the error, so that the caller can decode
// the blocks and Merge further problems.
func Parse(file string, data []byte, env func(string) (string, bool)) (*Config, error) {
	if env == nil {
		env = func(string) (string, bool) { return "", false }
	}
	doc := &document{
		file:     file,
		lines:    max(1, bytes.Count(data, []byte("\n"))+1),
		expander: expander{env: env, folder: filepath.Dir(file), files: map[string]string{}},
		expanded: map[*yaml.Node]expansion{},
		private:  &private{},
	}
	root, problem := doc.parse(data)
	if problem != nil {
		return nil, Problems{*problem}
	}
	c := Default()
	c.root = Block{doc: doc, node: root}
	if root == nil {
		return &c, nil
	}
	w := &walker{doc: doc, open: map[*yaml.Node]bool{}, visited: map[*yaml.Node]bool{}}
	w.walk(root, "", 0)
	if w.unbounded {
		return nil, w.problems.err()
	}

	d := &decoder{doc: doc, problems: w.problems}
	d.value(root, "", settable(&c), field{})
	d.checkNames("sources", c.Sources)
	d.checkNames("sinks", c.Sinks)
	bad := d.badKeys()
	for _, p := range doc.place(root, "", c.Validate()) {
		// An unreadable value kept its default: no second problem for the key.
		if !bad(p.Key) {
			d.add(p)
		}
	}
	return &c, d.problems.err()
}

// document is a parsed file. The blocks of the file share the document.
type document struct {
	file     string
	lines    int
	expander expander
	expanded map[*yaml.Node]expansion // the scalars with ${…}
	private  *private
}

// parse returns the root of the document in data, or nil if data is empty.
func (doc *document) parse(data []byte) (*yaml.Node, *Problem) {
	if len(data) > maxDocument {
		return nil, &Problem{File: doc.file, Line: 1, What: fmt.Sprintf("configuration is larger than %v", Size(maxDocument))}
	}
	var first, second yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(data))
	switch err := in.Decode(&first); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, doc.syntax(data, err)
	}
	switch err := in.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, doc.syntax(data, err)
	default:
		return nil, &Problem{
			File: doc.file, Line: doc.line(second.Line), Column: second.Column,
			What: "a second YAML document begins here", Hint: "keep one document, without --- in between",
		}
	}
	if len(first.Content) == 0 {
		return nil, nil
	}
	return first.Content[0], nil
}

// syntaxLine finds the line in an error of the YAML parser.
var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// unknownAnchor is the parser's error for an alias of nothing.
const unknownAnchor = "unknown anchor '"

// syntax makes a problem of an error of the YAML parser.
func (doc *document) syntax(data []byte, err error) *Problem {
	text := err.Error()
	p := &Problem{File: doc.file, Line: 1, Hint: "check indentation, colons, brackets and quotes from this line on"}
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			p.Line = n
		}
		text = text[len(m[0]):]
	}
	p.Line = doc.line(p.Line)
	lines := strings.Split(string(data), "\n")

	if rest, ok := strings.CutPrefix(text, unknownAnchor); ok {
		name, _, _ := strings.Cut(rest, "'")
		for i, line := range lines {
			if at := strings.Index(line, "*"+name); at >= 0 {
				p.Line, p.Column = i+1, utf8.RuneCountInString(line[:at])+1
				break
			}
		}
		// The parser prints the name; if quotes are missing, the name is the
		// start of a secret.
		p.What, p.Hint = "an alias (*) names no anchor (&)", "put the text in quotes if an alias is not intended"
		return p
	}
	p.What = "is not YAML: " + text
	if strings.Contains(lines[p.Line-1], "${") {
		p.Hint = "put text with ${…} in quotes, which are needed inside [ ] and { }"
	}
	// After a tab, the parser's line number is off by one in either direction.
	for n := max(1, p.Line-1); n <= min(len(lines), p.Line+1); n++ {
		indent := lines[n-1][:len(lines[n-1])-len(strings.TrimLeft(lines[n-1], " \t"))]
		if at := strings.IndexByte(indent, '\t'); at >= 0 {
			p.Line, p.Column = n, at+1
			p.What, p.Hint = "is indented with a tab", "YAML wants spaces"
			return p
		}
	}
	return p
}

// line keeps a line number inside the file.
func (doc *document) line(n int) int { return min(max(1, n), doc.lines) }

// at makes a problem at a node. What and hint contain no hidden value; for
// other texts see foreign.
func (doc *document) at(n *yaml.Node, key, what, hint string) Problem {
	p := Problem{File: doc.file, Key: key, What: what, Hint: hint}
	switch {
	case n != nil && n.Line > 0:
		p.Line, p.Column = doc.line(n.Line), n.Column
	case doc.lines > 0:
		p.Line, p.Column = 1, 1
	}
	return p
}

// foreign makes a problem at a node from texts of other packages, which may
// contain hidden values.
func (doc *document) foreign(n *yaml.Node, key, what, hint string) Problem {
	if n != nil && n.Kind == yaml.ScalarNode && doc.private.hides(n) {
		for _, value := range []string{strconv.Quote(n.Value), n.Value} {
			what = hideValue(what, value)
		}
	}
	return doc.at(n, key, doc.private.clean(what), doc.private.clean(hint))
}

// hideValue hides a value below a key with secrets.
func hideValue(text, value string) string {
	switch {
	case len(value) < minSecretForm:
		return text
	case len(value) < shortSecret:
		return replaceAlone(text, value, hidden)
	}
	return strings.ReplaceAll(text, value, hidden)
}

// text returns the value of a scalar, with ${…} expanded, and false if the
// expansion failed. A failure is reported already.
func (doc *document) text(n *yaml.Node) (string, bool) {
	if e, ok := doc.expanded[n]; ok {
		return e.text, e.fault == nil
	}
	return n.Value, true
}

// place turns errors of Validate methods into problems with positions. The keys
// are relative to root; prefix is the key of root. If a key is not written, the
// position is the position of the nearest written parent.
func (doc *document) place(root *yaml.Node, prefix string, err error) Problems {
	var all Problems
	leaves(err, func(err error) {
		switch err := err.(type) { //nolint:errorlint // leaves has unwrapped it
		case Problems:
			all = append(all, err...)
		case Problem:
			all = append(all, err)
		case Invalids:
			for _, i := range err {
				p := doc.foreign(find(root, i.Key), join(prefix, i.Key), i.What, i.Hint)
				p.Missing = i.Missing
				all = append(all, p)
			}
		default:
			all = append(all, doc.foreign(root, prefix, err.Error(), ""))
		}
	})
	return all
}

// find returns the node at a path below n, or the last node on the way.
func find(n *yaml.Node, path string) *yaml.Node {
	n = deref(n)
	if n == nil || path == "" {
		return n
	}
	switch n.Kind {
	case yaml.MappingNode:
		// The longest match, because keys of maps may contain dots.
		var (
			next *yaml.Node
			rest string
			best = -1
		)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			after, ok := strings.CutPrefix(path, key)
			if !ok || len(key) <= best {
				continue
			}
			if after == "" || after[0] == '.' || after[0] == '[' {
				next, rest, best = n.Content[i+1], strings.TrimPrefix(after, "."), len(key)
			}
		}
		if next != nil {
			return find(next, rest)
		}
	case yaml.SequenceNode:
		index, after, ok := strings.Cut(strings.TrimPrefix(path, "["), "]")
		i, err := strconv.Atoi(index)
		if ok && err == nil && i >= 0 && i < len(n.Content) {
			return find(n.Content[i], strings.TrimPrefix(after, "."))
		}
	}
	return n
}

// deref follows an alias.
func deref(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// walker visits the whole document before decoding. The walker expands the
// scalars, including scalars of blocks that are never decoded, and ensures that
// the document is a finite tree of valid keys.
type walker struct {
	doc       *document
	problems  Problems
	open      map[*yaml.Node]bool // on the way from the root
	visited   map[*yaml.Node]bool
	aliases   int // depth of aliases on the way
	aliased   int
	unbounded bool
}

func (w *walker) add(n *yaml.Node, key, what, hint string) {
	w.problems = append(w.problems, w.doc.at(n, key, what, hint))
}

func (w *walker) walk(n *yaml.Node, key string, depth int) {
	if w.unbounded {
		return
	}
	if w.aliases > 0 {
		if w.aliased++; w.aliased > maxAliased {
			w.unbounded = true
			w.add(n, key, fmt.Sprintf("aliases expand to more than %d values", maxAliased), "write the values out")
			return
		}
	}
	if depth > maxDepth {
		w.unbounded = true
		key, _, _ = strings.Cut(key, "[0][0]")
		w.add(n, key, fmt.Sprintf("is nested more than %d levels deep", maxDepth), "")
		return
	}
	if n.Kind == yaml.AliasNode {
		if w.open[n.Alias] {
			w.unbounded = true
			w.add(n, key, "is an alias of its own parent", "write the value out")
			return
		}
		w.aliases++
		w.walk(n.Alias, key, depth+1)
		w.aliases--
		return
	}
	first := !w.visited[n]
	w.visited[n], w.open[n] = true, true
	defer delete(w.open, n)
	if first {
		w.tag(n, key)
	}
	switch n.Kind {
	case yaml.ScalarNode:
		if first {
			w.scalar(n, key)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			w.walk(item, fmt.Sprintf("%s[%d]", key, i), depth+1)
		}
	case yaml.MappingNode:
		lines := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if first {
				w.key(k, key, lines)
			}
			w.walk(n.Content[i+1], join(key, k.Value), depth+1)
		}
	}
}

// key checks a key of a mapping; lines has the line of each previous key.
func (w *walker) key(k *yaml.Node, parent string, lines map[string]int) {
	switch {
	case k.Kind != yaml.ScalarNode:
		w.add(k, parent, "has a key that is "+kindOf(k), "write the key as text")
	case k.ShortTag() == "!!merge":
		w.add(k, parent, "merge keys (<<) are not supported", "write the keys out, or use an alias for a whole value")
	case lines[k.Value] > 0:
		w.add(k, join(parent, k.Value), fmt.Sprintf("is written twice, first in line %d", lines[k.Value]), "keep a single entry")
	default:
		lines[k.Value] = w.doc.line(k.Line)
	}
}

// tag checks that the type of a value is supported.
func (w *walker) tag(n *yaml.Node, key string) {
	switch n.ShortTag() {
	case "", "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!merge", "!!map", "!!seq":
	default:
		// The tag is not shown: a password may begin with an exclamation mark.
		w.add(n, key, "has a YAML tag (!)", "remove the tag, because tags are not supported; or put text starting with ! in quotes")
	}
}

// scalar expands a value.
func (w *walker) scalar(n *yaml.Node, key string) {
	if !strings.Contains(n.Value, "${") {
		return
	}
	text, values, fault := w.doc.expander.expand(n.Value)
	w.doc.expanded[n] = expansion{text, values, fault}
	if fault != nil {
		w.add(n, key, fault.what, fault.hint)
		w.problems[len(w.problems)-1].Missing = fault.missing
		return
	}
	if len(values) > 0 {
		w.doc.private.value(text, n.Value)
	}
	for _, v := range values {
		if len(v.value) >= 4 { // shorter ones are hardly secrets, and stand in every message
			w.doc.private.value(v.value, v.written)
		}
	}
}
