package admin

import (
	"encoding/json"
	"testing"

	"github.com/postwire/postwire/internal/texts"
)

// TestDescriptionsStandAlone: a user reads a summary or a description of the OpenAPI
// document without any other text.
func TestDescriptionsStandAlone(t *testing.T) {
	document, err := json.Marshal(newWorld(t, operatorToken).server.opts.API.described())
	if err != nil {
		t.Fatal(err)
	}
	var all any
	if err := json.Unmarshal(document, &all); err != nil {
		t.Fatal(err)
	}
	count := 0
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch v := value.(type) {
		case map[string]any:
			for name, inner := range v {
				if text, ok := inner.(string); ok && (name == "summary" || name == "description") {
					count++
					if words := texts.Dangling(text); words != "" {
						t.Errorf("%s/%s refers to a different text by %q: %s", path, name, words, text)
					}
				}
				walk(path+"/"+name, inner)
			}
		case []any:
			for _, inner := range v {
				at := path
				if m, ok := inner.(map[string]any); ok {
					if name, ok := m["name"].(string); ok {
						at += "/" + name
					}
				}
				walk(at, inner)
			}
		}
	}
	walk("", all)
	if count < 150 {
		t.Errorf("only %d texts were checked", count)
	}
}
