package schema_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/schema"
)

// released holds the schemas that were released, to which files are only added.
const released = "testdata/released"

// TestSchemasOnlyGrowWithinAVersion holds what is built in against what was
// released.
func TestSchemasOnlyGrowWithinAVersion(t *testing.T) {
	l := open(t, "")
	count := 0
	err := fs.WalkDir(os.DirFS(released), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		count++
		old, err := os.ReadFile(filepath.Join(released, path))
		if err != nil {
			return err
		}
		typ, file := filepath.Split(path)
		now, ok := l.Text(schema.Name{Type: strings.TrimSuffix(typ, "/"), Version: strings.TrimSuffix(file, ".json")})
		if !ok {
			t.Errorf("%s was released, and is gone", path)
			return nil
		}
		for _, b := range breaks("", parse(t, old), parse(t, now)) {
			t.Errorf("%s: %s; make it version %s+1 instead", path, b, strings.TrimSuffix(file, ".json"))
		}
		return nil
	})
	if err != nil || count < 6 {
		t.Errorf("%d schemas were released, %v", count, err)
	}
}

// TestEachKindOfBreakIsFound changes a schema in every way that the rule
// forbids, and in those that it allows.
func TestEachKindOfBreakIsFound(t *testing.T) {
	const old = `{"type":"object","required":["a","kind"],"properties":{
		"a":{"type":"string","minLength":1}, "any":{"description":"any"}, "kind":{"enum":["x","y"]}, "one":{"const":1},
		"many":{"type":["string","null"]}, "list":{"type":"array","items":{"type":"integer","minimum":0}},
		"open":{"type":"object","properties":{"b":{"type":"number"}},"required":["b"]}, "closed":{"type":"object","additionalProperties":false}}}`
	for _, tt := range []struct{ name, from, to, want string }{
		{"nothing", `"x"`, `"x"`, ""},
		{"a description", `"description":"any"`, `"description":"another","title":"t","examples":[1],"$comment":"c","deprecated":true`, ""},
		{"a new property that may be anything", `"one":`, `"new":{"description":"new"},"one":`, ""},
		{"a new property of one type", `"one":`, `"new":{"type":"string"},"one":`, "/properties/new: is new, and not everything fits it"},
		{"a property removed", `"any":{"description":"any"},`, ``, "/properties/any: is gone"},
		{"a type narrowed", `"type":["string","null"]`, `"type":"string"`, "/properties/many/type: has changed"},
		{"a type widened", `"a":{"type":"string"`, `"a":{"type":["string","null"]`, "/properties/a/type: has changed"},
		{"a type given to what had none", `"description":"any"`, `"type":"string"`, "/properties/any/type: is new"},
		{"a type exchanged, deep", `"b":{"type":"number"}`, `"b":{"type":"integer"}`, "/properties/open/properties/b/type: has changed"},
		{"newly required", `"required":["a","kind"]`, `"required":["a","any","kind"]`, "/required: any is new"},
		{"newly required, deep", `"required":["b"]`, `"required":["b","c"]`, "/properties/open/required: c is new"},
		{"no longer required", `"required":["a","kind"]`, `"required":["a"]`, "/required: kind is gone"},
		{"an enum narrowed", `["x","y"]`, `["x"]`, "/properties/kind/enum: has changed"},
		{"an enum widened", `["x","y"]`, `["x","y","z"]`, "/properties/kind/enum: has changed"},
		{"a const exchanged", `"const":1`, `"const":2`, "/properties/one/const: has changed"},
		{"additional properties closed", `"open":{`, `"open":{"additionalProperties":false,`, "/properties/open/additionalProperties: is new"},
		{"additional properties opened", `,"additionalProperties":false`, ``, "/properties/closed/additionalProperties: is gone"},
		{"a property added to a closed object", `"additionalProperties":false`, `"additionalProperties":false,"properties":{"n":{}}`, "/properties/closed/properties/n: is new, in an object that is closed"},
		{"a bound", `"minLength":1`, `"minLength":2`, "/properties/a/minLength: has changed"},
		{"a bound of items", `"minimum":0`, `"minimum":1`, "/properties/list/items/minimum: has changed"},
		{"a keyword that narrows", `"one":{`, `"one":{"not":{"type":"string"},`, "/properties/one/not: is new"},
		{"a schema that takes nothing", `"any":{"description":"any"}`, `"any":false`, "/properties/any: has changed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(old, tt.from) {
				t.Fatalf("the schema has no %s", tt.from)
			}
			now := strings.Replace(old, tt.from, tt.to, 1)
			got := breaks("", parse(t, []byte(old)), parse(t, []byte(now)))
			var want []string
			if tt.want != "" {
				want = []string{tt.want}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("breaks (-want +got):\n%s", diff)
			}
		})
	}
}

func parse(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// words are the keywords that only tell people something.
var words = []string{"title", "description", "examples", "$comment", "deprecated"}

// breaks says in what now breaks the rule for change, where old was released:
// what was accepted must stay accepted, and what a reader may count on must stay
// so. Of keywords that it does not know it allows no change.
func breaks(at string, old, now any) (found []string) {
	was, ok1 := old.(map[string]any)
	is, ok2 := now.(map[string]any)
	if !ok1 || !ok2 {
		if !reflect.DeepEqual(old, now) {
			return []string{at + ": has changed"}
		}
		return nil
	}
	keywords := maps.Clone(was)
	maps.Copy(keywords, is)
	for _, k := range slices.Sorted(maps.Keys(keywords)) {
		before, had := was[k]
		after, has := is[k]
		here := at + "/" + k
		switch {
		case slices.Contains(words, k):
		case k == "properties":
			b, _ := before.(map[string]any)
			a, _ := after.(map[string]any)
			found = append(found, properties(here, b, a, was["additionalProperties"] == false)...)
		case !had:
			found = append(found, here+": is new")
		case !has:
			found = append(found, here+": is gone")
		case k == "required":
			found = append(found, required(here, before, after)...)
		case k == "items", k == "additionalProperties":
			found = append(found, breaks(here, before, after)...)
		case !reflect.DeepEqual(before, after):
			found = append(found, here+": has changed")
		}
	}
	return found
}

func properties(at string, was, is map[string]any, closed bool) (found []string) {
	all := maps.Clone(is)
	if all == nil {
		all = map[string]any{}
	}
	maps.Copy(all, was)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		before, had := was[name]
		after, has := is[name]
		here := at + "/" + name
		switch {
		case !has:
			found = append(found, here+": is gone")
		case had:
			found = append(found, breaks(here, before, after)...)
		case closed:
			found = append(found, here+": is new, in an object that is closed")
		case len(breaks("", map[string]any{}, after)) > 0:
			found = append(found, here+": is new, and not everything fits it")
		}
	}
	return found
}

func required(at string, before, after any) (found []string) {
	names := func(v any) (all []string) {
		list, _ := v.([]any)
		for _, name := range list {
			all = append(all, fmt.Sprint(name))
		}
		return all
	}
	was, is := names(before), names(after)
	for _, name := range is {
		if !slices.Contains(was, name) {
			found = append(found, at+": "+name+" is new")
		}
	}
	for _, name := range was {
		if !slices.Contains(is, name) {
			found = append(found, at+": "+name+" is gone")
		}
	}
	return found
}
