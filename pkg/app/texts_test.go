package app

import (
	"encoding/json"
	"strconv"
	"testing"

	"github.com/postwire/postwire/internal/texts"
)

// TestHelpOfMetricsStandsAlone: Prometheus and Grafana show the HELP of a metric
// without any other text.
func TestHelpOfMetricsStandsAlone(t *testing.T) {
	_, own := gathered(t)
	for _, f := range own {
		if words := texts.Dangling(f.GetHelp()); words != "" {
			t.Errorf("%s: the HELP refers to a different text by %q: %s", f.GetName(), words, f.GetHelp())
		}
	}
}

// TestDescriptionsOfKeysStandAlone: an editor shows the description of a key without any
// other text.
func TestDescriptionsOfKeysStandAlone(t *testing.T) {
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	count := 0
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch v := value.(type) {
		case map[string]any:
			if text, ok := v["description"].(string); ok {
				count++
				if words := texts.Dangling(text); words != "" {
					t.Errorf("%s: the description refers to a different text by %q: %s", path, words, text)
				}
			}
			for name, inner := range v {
				walk(path+"/"+name, inner)
			}
		case []any:
			for i, inner := range v {
				walk(path+"/"+strconv.Itoa(i), inner)
			}
		}
	}
	walk("", schema)
	if count < 200 {
		t.Errorf("only %d descriptions were checked", count)
	}
}
