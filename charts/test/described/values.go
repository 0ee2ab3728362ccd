// Package described parses the comments in the values.yaml of the chart, and generates
// values.schema.json and the README's tables.
package described

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Key is a documented key of values.yaml.
type Key struct {
	Name    string
	Path    string         // path from the root, with dots
	Section string         // section of the README that begins at the key
	Doc     string         // text after "# --"
	Schema  map[string]any // schema after "# @schema"
	Default any
	Keys    []Key // keys of a mapping

	node *yaml.Node
}

// Opaque reports whether the comment of the key defines the allowed values, so that the
// default does not.
func (k Key) Opaque() bool { return len(k.Keys) == 0 || k.Schema != nil }

// Read parses values.yaml.
func Read(text []byte) ([]Key, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) != 1 {
		return nil, fmt.Errorf("values.yaml holds %d documents", len(doc.Content))
	}
	return keys("", doc.Content[0], strings.Split(string(text), "\n"))
}

func keys(path string, n *yaml.Node, lines []string) ([]Key, error) {
	var all []Key
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		k := Key{Name: name.Value, Path: strings.TrimPrefix(path+"."+name.Value, "."), node: value}
		if n.Style&yaml.FlowStyle == 0 { // in flow style the keys share a line
			if err := k.comments(above(lines, name.Line-1)); err != nil {
				return nil, fmt.Errorf("line %d: %s: %w", name.Line, k.Path, err)
			}
		}
		if err := value.Decode(&k.Default); err != nil {
			return nil, err
		}
		if value.Kind == yaml.MappingNode {
			var err error
			if k.Keys, err = keys(k.Path, value, lines); err != nil {
				return nil, err
			}
		}
		all = append(all, k)
	}
	return all, nil
}

// above returns the comment directly above a line.
func above(lines []string, at int) []string {
	begin := at
	for begin > 0 && strings.HasPrefix(strings.TrimSpace(lines[begin-1]), "#") {
		begin--
	}
	return lines[begin:at]
}

func (k *Key) comments(lines []string) error {
	var doc []string
	told := false // the description has begun
	for _, line := range lines {
		line = strings.TrimSpace(line)
		text := strings.TrimSpace(strings.TrimLeft(line, "#"))
		switch {
		case strings.HasPrefix(line, "## "):
			k.Section = text
		case strings.HasPrefix(text, "-- "):
			told, doc = true, []string{strings.TrimPrefix(text, "-- ")}
		case strings.HasPrefix(text, "@schema "):
			told = false
			if err := json.Unmarshal([]byte(strings.TrimPrefix(text, "@schema ")), &k.Schema); err != nil {
				return fmt.Errorf("@schema: %w", err)
			}
		case told:
			doc = append(doc, text)
		}
	}
	k.Doc = strings.Join(doc, " ")
	return nil
}

// Walk visits keys, outer keys first.
func Walk(keys []Key, visit func(Key)) {
	for _, k := range keys {
		visit(k)
		Walk(k.Keys, visit)
	}
}
