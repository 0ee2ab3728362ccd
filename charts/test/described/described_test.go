package described

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the generated files instead of comparing with them")

const chart = "../../postwire"

func read(t *testing.T, parts ...string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func values(t *testing.T) []Key {
	t.Helper()
	keys, err := Read(read(t, chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// The schema and the README of the chart are generated; CI fails when they are
// stale.
func TestGeneratedFilesAreFresh(t *testing.T) {
	keys := values(t)
	schema, err := Schema(keys, read(t, "../../../docs/reference/postwire.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := Readme(string(read(t, chart, "README.in.md")), keys)
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]string{"values.schema.json": string(schema), "README.md": readme}
	// A chart cannot hold files from outside of it.
	made["files/alerts.yaml"] = string(read(t, "../../../deploy/alerts/postwire.yaml"))
	made["files/dashboard.json"] = string(read(t, "../../../deploy/grafana/postwire.json"))
	for name, got := range made {
		file := filepath.Join(chart, name)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if diff := cmp.Diff(string(read(t, file)), got); diff != "" {
			t.Errorf("%s is stale; make generate writes it (- file, + made):\n%s", file, diff)
		}
	}
}

// Each key is described by a sentence, or has keys that are.
func TestEveryKeyIsDescribed(t *testing.T) {
	Walk(values(t), func(k Key) {
		if k.Doc != "" && !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s: %q is not a sentence", k.Path, k.Doc)
		}
	})
	var undescribed func(keys []Key)
	undescribed = func(keys []Key) {
		for _, k := range keys {
			if k.Doc != "" && k.Opaque() {
				continue
			}
			if k.Doc == "" && len(k.Keys) == 0 {
				t.Errorf("%s has no description", k.Path)
			}
			undescribed(k.Keys)
		}
	}
	undescribed(values(t))
}

// Read apart from the generator: each key of values.yaml has a place in the
// schema, and a row in the README or a row above it.
func TestEveryKeyIsInSchemaAndReadme(t *testing.T) {
	var all map[string]any
	if err := yaml.Unmarshal(read(t, chart, "values.yaml"), &all); err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(read(t, chart, "values.schema.json"), &schema); err != nil {
		t.Fatal(err)
	}
	readme := string(read(t, chart, "README.md"))
	count := 0
	var visit func(path string, told bool, value any, at []any)
	visit = func(path string, told bool, value any, at []any) {
		told = told || strings.Contains(readme, "| `"+path+"` |")
		inner, ok := value.(map[string]any)
		if !ok || len(inner) == 0 {
			count++
			if !told {
				t.Errorf("%s is not in the README", path)
			}
		}
		for name, value := range inner {
			at, known := below(schema, at, name)
			if !known {
				t.Errorf("%s.%s is not in the schema", path, name)
			}
			visit(strings.TrimPrefix(path+"."+name, "."), told, value, at)
		}
	}
	visit("", false, all, []any{schema})
	if count < 100 {
		t.Errorf("only %d keys were looked at", count)
	}
}

// below returns the schemas that a key of a mapping has, among all that the
// mapping itself has, and whether any of them knows the key.
func below(root map[string]any, schemas []any, name string) (found []any, known bool) {
	for _, s := range schemas {
		s, _ := s.(map[string]any)
		if ref, ok := s["$ref"].(string); ok {
			var at any = root
			for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
				m, _ := at.(map[string]any)
				at = m[part]
			}
			more, ok := below(root, []any{at}, name)
			found, known = append(found, more...), known || ok
		}
		if ways, ok := s["allOf"].([]any); ok {
			more, ok := below(root, ways, name)
			found, known = append(found, more...), known || ok
		}
		if properties, ok := s["properties"].(map[string]any); ok {
			if inner, ok := properties[name]; ok {
				found, known = append(found, inner), true
				continue
			}
		}
		// What Kubernetes or another chart defines is not spelled out here.
		if closed, ok := s["additionalProperties"].(bool); s["type"] == "object" && (!ok || closed) {
			known = true
			found = append(found, map[string]any{"type": "object"})
		}
	}
	return found, known
}

func TestRead(t *testing.T) {
	keys, err := Read([]byte(`# Of the file.

## Section
# -- What it
# is for.
# @schema {"minimum": 1}
# not of the description
a: 1
b:
  # -- Inner.
  c: []
`))
	if err != nil {
		t.Fatal(err)
	}
	type told struct {
		Path, Section, Doc string
		Schema             map[string]any
	}
	var got []told
	Walk(keys, func(k Key) { got = append(got, told{k.Path, k.Section, k.Doc, k.Schema}) })
	want := []told{
		{"a", "Section", "What it is for.", map[string]any{"minimum": 1.0}},
		{"b", "", "", nil},
		{"b.c", "", "Inner.", nil},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := Read([]byte("# @schema {\na: 1\n")); err == nil || !strings.Contains(err.Error(), "line 2: a: @schema") {
		t.Errorf("an annotation that is not JSON: %v", err)
	}
	if k, err := Read([]byte("a: null\n")); err != nil {
		t.Error(err)
	} else if _, err := Schema(k, []byte(`{"$defs": {}}`)); err == nil || !strings.Contains(err.Error(), "a: a default of type <nil>") {
		t.Errorf("a default without a type: %v", err)
	}
}
