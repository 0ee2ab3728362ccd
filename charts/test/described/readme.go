package described

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// tables is the place of the values in the README's template.
const tables = "<!-- values -->\n"

// Readme returns the README of the chart: its template with a table of keys for each
// section.
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

// written returns the default on one line, or nothing for a mapping with documented keys.
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

// plain removes comments from a node and sets the one-line style.
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
