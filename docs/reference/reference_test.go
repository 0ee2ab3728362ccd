// Package reference tests the reference of the configuration.
package reference_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/texts"
	"github.com/postwire/postwire/pkg/source"
	allsources "github.com/postwire/postwire/pkg/source/all"
	"github.com/postwire/postwire/sinks"
	allsinks "github.com/postwire/postwire/sinks/all"
)

// eachKey calls do with the path of each key of the configuration, such as
// sinks.kafka.sasl.mechanism, and with its description.
func eachKey(do func(path string, f config.Field)) {
	var visit func(path string, fields []config.Field)
	visit = func(path string, fields []config.Field) {
		for _, f := range fields {
			do(path+f.Key, f)
			visit(path+f.Key+".", f.Fields)
		}
	}
	visit("", config.Describe(config.Default()))
	for _, kind := range config.NewRegistry[source.Settings](allsources.Kinds()...).Docs() {
		visit("sources."+kind.Name+".", config.Describe(kind.Values...))
	}
	for _, kind := range config.NewRegistry[sinks.Settings](allsinks.Kinds()...).Docs() {
		visit("sinks."+kind.Name+".", config.Describe(kind.Values...))
	}
}

// TestEveryKeyHasOneAnchor: a link to one key works, and goes on working.
func TestEveryKeyHasOneAnchor(t *testing.T) {
	page, err := os.ReadFile("configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]int{}
	for _, m := range regexp.MustCompile(`<a id="([^"]+)"></a>`).FindAllSubmatch(page, -1) {
		anchors[string(m[1])]++
	}
	for _, m := range regexp.MustCompile("(?m)^#+ (.*)$").FindAllSubmatch(page, -1) {
		heading := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(string(m[1])), "")
		anchors[strings.ReplaceAll(heading, " ", "-")]++ // as GitHub makes the anchor of a heading
	}
	keys := 0
	check := func(path string) {
		keys++
		if anchor := strings.NewReplacer(".", "-", "_", "-").Replace(path); anchors[anchor] != 1 {
			t.Errorf("key %s has %d anchors #%s, want 1", path, anchors[anchor], anchor)
		}
	}
	eachKey(func(path string, _ config.Field) { check(path) })
	for _, key := range []string{"sources.name", "sources.type", "sinks.name", "sinks.type"} {
		check(key)
	}
	if keys < 200 {
		t.Errorf("only %d keys were found", keys)
	}
	links := regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllSubmatch(page, -1)
	for _, m := range links {
		if anchors[string(m[1])] != 1 {
			t.Errorf("the page links to #%s, which %d places have", m[1], anchors[string(m[1])])
		}
	}
	if len(links) < keys {
		t.Errorf("only %d links for %d keys", len(links), keys)
	}
}

// TestDescriptionsStandAlone: an editor, a schema and a table show a description
// without the descriptions around it.
func TestDescriptionsStandAlone(t *testing.T) {
	check := func(key, text string) {
		if word := texts.Dangling(text); word != "" {
			t.Errorf("%s: %q in the description needs a noun: %s", key, word, text)
		}
	}
	eachKey(func(path string, f config.Field) { check(path, f.Doc) })
	kinds := slices.Concat(config.NewRegistry[source.Settings](allsources.Kinds()...).Docs(), config.NewRegistry[sinks.Settings](allsinks.Kinds()...).Docs())
	for _, kind := range kinds {
		check("type "+kind.Name, kind.Summary)
	}
}
