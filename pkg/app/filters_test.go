package app

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/postwire/postwire/pkg/source/auth"
)

// The page on filters lists the attributes of each kind of source, and each
// preset.
func TestFiltersPageListsAttributes(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "filters.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	row := func(name string) string {
		return regexp.MustCompile("(?m)^\\| `" + name + "` \\|.*$").FindString(page)
	}
	for _, k := range sources().Docs() {
		if row(k.Name) == "" {
			t.Errorf("the page has no row for sources of type %s", k.Name)
		}
	}
	p, err := Parse("c.yaml", []byte("sources: [{name: u, type: uploadpost, paths: [/a], auth: none}]\nsinks: [{name: s, type: stdout}]\n"), env)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range p.attributes.Names {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("the page lacks the attribute %s", name)
		}
	}
	for _, preset := range []auth.Preset{auth.GitHub, auth.Stripe, auth.StandardWebhooks, auth.Slack} {
		if row(string(preset)) == "" {
			t.Errorf("the page has no row for the preset %s", preset)
		}
	}
	for _, block := range regexp.MustCompile("(?m)^filter: (.*?)(?: +#.*)?$").FindAllStringSubmatch(page, -1) {
		text := "sources: [{name: u, type: uploadpost, paths: [/a], auth: none}]\nsinks:\n- name: s\n  type: stdout\n  filter: " + block[1] + "\n"
		if _, err := Parse("c.yaml", []byte(text), env); err != nil {
			t.Errorf("the example %s: %v", block[1], err)
		}
	}
	if !slices.ContainsFunc(strings.Split(page, "\n"), func(line string) bool { return strings.HasPrefix(line, "filter: ") }) {
		t.Error("the page has no examples")
	}
}
