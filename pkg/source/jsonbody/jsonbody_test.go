package jsonbody

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
)

// TestDigest: equal JSON has one digest, however it is spelled, and other JSON
// another one, by a single digit of a number too.
func TestDigest(t *testing.T) {
	for _, same := range [][]string{
		{`{"a":1, "b":"é"}`, "{\"b\":\"\\u00e9\",\n\"a\":1}", "\ufeff{\"a\":1,\"b\":\"é\"}"},
		{`{"b":{"d":1.10,"c":2}}`, ` {"b": {"c": 2, "d": 1.10} }`},
	} {
		for _, body := range same {
			if got, want := Digest([]byte(body)), Digest([]byte(same[0])); got != want || !strings.HasPrefix(got, "sha256:") {
				t.Errorf("%s has %s, and %s has %s", body, got, same[0], want)
			}
		}
	}
	seen := map[string]string{}
	for _, body := range []string{
		`{"a":1745000000000000001}`, `{"a":1745000000000000002}`, `{"a":18446744073709551616}`, `{"a":18446744073709551617}`,
		`{"a":1.1}`, `{"a":1.10}`, `{"a":0.1}`, `{"a":0.10000000000000001}`, `{"a":1e400}`, `{"a":1e401}`, `{"a":0}`, `{"a":-0}`,
		`{"a":"1"}`, `{"b":"\ud800"}`, `{"b":"\ud801"}`, "{\"b\":\"\xff\"}", "{\"b\":\"\xfe\"}", "{\"b\":\"\ufffd\"}",
		`{"a":1,"a":2}`, `{"a":2,"a":1}`, `{"a":2}`,
	} {
		digest := Digest([]byte(body))
		if other, known := seen[digest]; known {
			t.Errorf("%s and %s have one digest", body, other)
		}
		seen[digest] = body
	}
}

// FuzzDigest: numbers that are written otherwise are not one.
func FuzzDigest(f *testing.F) {
	f.Add("1745000000000000001", "1745000000000000002")
	f.Add("1.1", "1.10")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, text := range []string{a, b} {
			if v := jsontext.Value(text); !v.IsValid() || v.Kind() != '0' || strings.TrimSpace(text) != text {
				return
			}
		}
		if same := Digest([]byte("["+a+"]")) == Digest([]byte("["+b+"]")); same != (a == b) {
			t.Errorf("%s and %s: same is %v", a, b, same)
		}
	})
}

// whole is what a body holds, for Object and List.
type whole struct{ value any }

func (w *whole) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	return json.UnmarshalDecode(d, &w.value)
}

func TestObjectAndList(t *testing.T) {
	for _, tt := range []struct{ name, body, object, list string }{
		{"an object", `{"a":1}`, "", "is not a JSON array"},
		{"a list", ` [1]`, "is not a JSON object", ""},
		{"null", `null`, "is not a JSON object", "is not a JSON array"},
		{"text", `"a"`, "is not a JSON object", "is not a JSON array"},
		{"nothing", ``, "is not valid JSON at byte 0", "is not valid JSON at byte 0"},
		{"more behind it", `{}{}`, "is not valid JSON at byte 2", "is not valid JSON at byte 2"},
		{"a name twice", `{"a":1,"\u0061":2}`, "", "is not a JSON array"},
		{"a name twice, deeper", `[{"a":1,"a":2}]`, "is not a JSON object", ""},
		{"not UTF-8", "{\"\xff\":1}", "", "is not a JSON array"},
		{"a byte order mark", "\ufeff{}", "", "is not a JSON array"},
		{"two byte order marks", "\ufeff\ufeff{}", "is not valid JSON at byte 0", "is not valid JSON at byte 0"},
		{"a name twice, and too deep", `{"a":1,"a":` + strings.Repeat("[", event.MaxDepth) + strings.Repeat("]", event.MaxDepth) + "}", "nests deeper than 900", "nests deeper than 900"},
		{"as deep as may be", strings.Repeat("[", event.MaxDepth) + strings.Repeat("]", event.MaxDepth), "is not a JSON object", ""},
		{"too deep", strings.Repeat("[", event.MaxDepth+1) + strings.Repeat("]", event.MaxDepth+1), "nests deeper than 900", "nests deeper than 900"},
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
			check(Object([]byte(tt.body), &whole{}), tt.object)
			check(List([]byte(tt.body), &whole{}), tt.list)
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

func TestText(t *testing.T) {
	for text, want := range map[string]string{"": "", " ": "", "\u00a0\u3000": "", " a ": " a ", "a\n": "", "a": "a"} {
		if got := Text(text); got != want {
			t.Errorf("Text(%q) = %q", text, got)
		}
	}
}

func FuzzObjectAndList(f *testing.F) {
	for _, seed := range []string{`{"a":[1,{"b":null}]}`, `[[[]]]`, `{"a":1,"a":2}`, "\xff", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, err := range []error{Object(body, &whole{}), List(body, &whole{})} {
			if _, ok := errors.AsType[*source.MalformedError](err); err != nil && !ok {
				t.Errorf("%v is no MalformedError", err)
			}
		}
	})
}
