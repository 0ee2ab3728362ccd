package jsonbody

import (
	"errors"
	"strings"
	"testing"

	"github.com/postwire/postwire/pkg/source"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct{ name, body, object, list string }{
		{"an object", `{"a":1}`, "", "is not a JSON array"},
		{"a list", ` [1]`, "is not a JSON object", ""},
		{"null", `null`, "is not a JSON object", "is not a JSON array"},
		{"text", `"a"`, "is not a JSON object", "is not a JSON array"},
		{"nothing", ``, "is not valid JSON at byte 0", "is not valid JSON at byte 0"},
		{"more behind it", `{}{}`, "is not valid JSON at byte 2", "is not a JSON array"},
		{"a name twice", `{"a":1,"\u0061":2}`, "has a name twice", "is not a JSON array"},
		{"a name twice, deeper", `[{"a":1,"a":2}]`, "is not a JSON object", "has a name twice"},
		{"not UTF-8", "{\"\xff\":1}", "is not valid UTF-8", "is not a JSON array"},
		{"as deep as may be", strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth), "is not a JSON object", ""},
		{"too deep", strings.Repeat("[", MaxDepth+1) + strings.Repeat("]", MaxDepth+1), "nests deeper than 900", "nests deeper than 900"},
		{"too deep, and broken", strings.Repeat("[", 1<<20), "nests deeper than 900", "nests deeper than 900"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := func(err error, want string) {
				t.Helper()
				malformed, ok := errors.AsType[*source.MalformedError](err)
				if want == "" && err != nil || want != "" && (!ok || malformed.Field != "" || !strings.Contains(err.Error(), want)) {
					t.Errorf("%v, want %q", err, want)
				}
			}
			var object map[string]any
			check(Decode([]byte(tt.body), &object), tt.object)
			var list []any
			check(DecodeList([]byte(tt.body), &list), tt.list)
		})
	}
}

func TestUsable(t *testing.T) {
	for text, want := range map[string]bool{
		"a": true, `ü "b" 🎬`: true, strings.Repeat("x", MaxAttribute): true,
		strings.Repeat("x", MaxAttribute+1): false, "a\x00": false, "a\nb": false, "\x7f": false, "\u0085": false,
		"\ufdd0": false, "\U0001ffff": false, "\xff": false, "\ufffd": true,
	} {
		if got := Usable(text); got != text && want || got != "" && !want {
			t.Errorf("Usable(%q) = %q", text, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"a":[1,{"b":null}]}`, `[[[]]]`, `{"a":1,"a":2}`, "\xff", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var object map[string]any
		var list []any
		for _, err := range []error{Decode(body, &object), DecodeList(body, &list)} {
			if _, ok := errors.AsType[*source.MalformedError](err); err != nil && !ok {
				t.Errorf("%v is no MalformedError", err)
			}
		}
	})
}
