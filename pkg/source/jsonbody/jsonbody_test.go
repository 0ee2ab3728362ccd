package jsonbody

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/source"
)

func TestValue(t *testing.T) {
	for body, want := range map[string]any{
		`{"a":1,"b":[-1,1.0,1e3,true,null,"x"]}`: map[string]any{"a": int64(1), "b": []any{int64(-1), 1.0, 1e3, true, nil, "x"}},
		`9223372036854775807`:                    int64(9223372036854775807),
		`18446744073709551615`:                   uint64(18446744073709551615),
		`18446744073709551616`:                   18446744073709551616.0,
		` null `:                                 nil,
	} {
		got, err := Value([]byte(body))
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
}

func TestValueIsStrict(t *testing.T) {
	for body, want := range map[string]string{
		``:                         "body: is not valid JSON at byte 0",
		`{"a":1,"\u0061":2}`:       "body: has a name twice in one object",
		"\"\xff\"":                 "body: is not valid UTF-8",
		`{} {}`:                    "body: is not valid JSON at byte 3",
		`{"a":`:                    "body: is not valid JSON at byte 5",
		`[1e999]`:                  "body: is not valid JSON",
		strings.Repeat("[", 10000): "body: nests deeper than 900",
	} {
		_, err := Value([]byte(body))
		if _, ok := errors.AsType[*source.MalformedError](err); !ok || err.Error() != want {
			t.Errorf("%.20s: %v, want %s", body, err, want)
		}
	}
}

func TestDigestIsOfTheValue(t *testing.T) {
	a, err1 := Digest([]byte(`{"a":1, "b":"é"}`))
	b, err2 := Digest([]byte(`{"b":"\u00e9","a":1.0}`))
	c, err3 := Digest([]byte(`{"b":"e","a":1}`))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if a != b || a == c || !strings.HasPrefix(a, "sha256:") {
		t.Errorf("%s, %s and %s", a, b, c)
	}
}

// A body is refused, or has a value and a digest.
func FuzzValue(f *testing.F) {
	for _, body := range []string{`{"a":[1,2.5,"x",null]}`, `18446744073709551615`, `[[[`, `"\ud800"`, `1e999`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := Value(body); err != nil {
			if _, ok := errors.AsType[*source.MalformedError](err); !ok {
				t.Errorf("the error is no MalformedError: %v", err)
			}
			return
		}
		if _, err := Digest(body); err != nil {
			if _, ok := errors.AsType[*source.MalformedError](err); !ok {
				t.Errorf("the error is no MalformedError: %v", err)
			}
		}
	})
}

func TestObjectAndList(t *testing.T) {
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
			check(Object([]byte(tt.body), &object), tt.object)
			var list []any
			check(List([]byte(tt.body), &list), tt.list)
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
		var object map[string]any
		var list []any
		for _, err := range []error{Object(body, &object), List(body, &list)} {
			if _, ok := errors.AsType[*source.MalformedError](err); err != nil && !ok {
				t.Errorf("%v is no MalformedError", err)
			}
		}
	})
}
