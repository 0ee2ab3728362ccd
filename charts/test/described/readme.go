package described

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// tables is where the README's template wants the values.
const tables = "<!-- values -->\n"

// Readme returns the chart's README: its template, with a table of keys for
// each section in place.
func Readme(template string, keys []Key) (string, error) {
	before, after, ok := strings.Cut(template, tables)
	if !ok {
		return "", fmt.Errorf("the template has no line %q", strings.TrimSpace(tables))
	}
	var b strings.Builder
	b.WriteString("<!-- Made of README.in.md and the comments of values.yaml, by make generate. -->\n\n")
	b.WriteString(before)
	for _, k := range keys {
		if k.Section != "" {
			fmt.Fprintf(&b, "### %s\n\n| key | default | description |\n|---|---|---|\n", k.Section)
		}
		Walk([]Key{k}, func(k Key) {
			if k.Doc == "" {
				return
			}
			doc := k.Doc
			if choices := k.Choices(); len(choices) > 0 {
				doc += " One of `" + strings.Join(choices, "`, `") + "`."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.Path, cell(k.written()), cell(doc))
		})
		if next := nextOf(keys, k); next == nil || next.Section != "" {
			b.WriteString("\n")
		}
	}
	b.WriteString(strings.TrimLeft(after, "\n"))
	return b.String(), nil
}

func nextOf(keys []Key, k Key) *Key {
	for i := range keys {
		if keys[i].Path == k.Path && i+1 < len(keys) {
			return &keys[i+1]
		}
	}
	return nil
}

// written is the default as one would write it on a line; nothing for a
// mapping whose keys have lines of their own.
func (k Key) written() string {
	told := false
	Walk(k.Keys, func(inner Key) { told = told || inner.Doc != "" })
	if told {
		return ""
	}
	n := *k.node
	plain(&n)
	out, err := yaml.Marshal(&n)
	if err != nil {
		return ""
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	return "`" + text + "`"
}

// plain takes comments off a node, and lets it be written on one line.
func plain(n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	if n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
	for _, inner := range n.Content {
		plain(inner)
	}
}

func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(text)
}
