package webhook

import (
	"errors"
	"math"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types"
	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/source"
)

func TestValue(t *testing.T) {
	for body, want := range map[string]any{
		`{"a":1,"b":[-1,1.0,1e3,true,null,"x"]}`: map[string]any{"a": int64(1), "b": []any{int64(-1), 1.0, 1e3, true, nil, "x"}},
		`9223372036854775807`:                    int64(9223372036854775807),
		`18446744073709551615`:                   uint64(18446744073709551615),
		`18446744073709551616`:                   18446744073709551616.0,
		`1e999`:                                  math.Inf(1),
		` null `:                                 nil,
		"\ufeff[]":                               []any{},
	} {
		got, err := value([]byte(body), false)
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
	digits, err := value([]byte(`{"a":1.10,"b":[18446744073709551616,-0,"x",true,null]}`), true)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"a": "1.10", "b": []any{"18446744073709551616", "-0", "x", true, nil}}, digits); diff != "" {
		t.Errorf("with digits (-want +got):\n%s", diff)
	}
	for body, want := range map[string]error{`{"a":1,"\u0061":2}`: errTwice, `{"a":"\ud800"}`: errUnicode, "{\"a\":\"\xff\"}": errUnicode} {
		got, err := value([]byte(body), false)
		if err != nil {
			t.Fatal(err)
		}
		if failed, ok := got.(map[string]any)["a"].(*types.Err); !ok || !errors.Is(failed, want) {
			t.Errorf("%s: %v, want %v", body, got, want)
		}
	}
	for body, want := range map[string]string{
		``:                         "body: is not valid JSON at byte 0",
		`{} {}`:                    "body: is not valid JSON at byte 3",
		`{"a":`:                    "body: is not valid JSON at byte 5",
		strings.Repeat("[", 10000): "body: nests deeper than 900",
	} {
		_, err := value([]byte(body), false)
		if _, ok := errors.AsType[*source.MalformedError](err); !ok || err.Error() != want {
			t.Errorf("%.20s: %v, want %s", body, err, want)
		}
	}
}

// TestStringKeepsDigits: string(…) of a number that was sent is the number as it
// was sent, wherever in an expression it is looked up.
func TestStringKeepsDigits(t *testing.T) {
	const body = `{"big":123456789012345678901234567890,"neighbor":123456789012345678901234567891,"price":1.10,"n":7,"list":[1.10,0.30],"m":{"x":1e2},"text":"t","yes":true}`
	s := newSource(t, "event: {type: '\"t\"', id: body.text, extensions: {"+
		`a: string(body.big), b: string(body.neighbor), c: string(body.price), d: 'string(body["price"])', e: 'string(body.list[1])', `+
		`f: 'string(body.m.x)', g: 'string(body.?price.orValue(0))', h: 'string(body.?none.orValue(body.big))', i: 'string(has(body.big) ? body.big : body.n)', `+
		`j: 'string(body.?none.or(body.?price).value())', k: 'string(optional.of(body.price).value())', l: 'string([body.big][0])', m: 'string({"k": body.big}.k)', `+
		`n: 'string(dyn(body.big))', o: 'string(string(body.big))', p: 'string(body.n + 1)', q: 'string(body.yes)', r: 'string(body.text)', s: 'string(body.list.size())', t: 'string(body.price > 1.0 ? body.price : body.n)'`+
		"}}\nauth: none")
	events, err := s.Normalize(&source.Request{Body: []byte(body), Received: received})
	if err != nil {
		t.Fatal(err)
	}
	const big = "123456789012345678901234567890"
	for name, want := range map[string]string{
		"a": big, "b": "123456789012345678901234567891", "c": "1.10", "d": "1.10", "e": "0.30", "f": "1e2", "g": "1.10", "h": big, "i": big,
		"j": "1.10", "k": "1.10", "l": big, "m": big, "n": big, "o": big, "p": "8", "q": "true", "r": "t", "s": "2", "t": "1.10",
	} {
		if got, _ := events[0].Attribute(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestNumbersMakeEvents: bodies, and elements of one body, that differ in a digit
// of a number are events of their own.
func TestNumbersMakeEvents(t *testing.T) {
	pairs := [][2]string{
		{"1745000000000000001", "1745000000000000002"},
		{"18446744073709551616", "18446744073709551617"},
		{"1.1", "1.10"},
		{"0.1", "0.10000000000000000001"},
		{"1e400", "1e401"},
	}
	for _, keys := range []string{
		"event: {type: '\"t\"'}\nauth: none",
		"event: {type: '\"t\"', id: string(body.post_id)}\nauth: none",
		"event: {type: '\"t\"', id: '\"1\"'}\ndedupe: [string(body.post_id)]\nauth: none",
	} {
		for _, pair := range pairs {
			one, split := newSource(t, keys), newSource(t, keys+"\nsplit: body")
			var all []string
			for _, n := range pair {
				events, err := one.Normalize(&source.Request{Body: []byte(`{"post_id":` + n + `}`), Received: received})
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, string(events[0].Keys[0]))
			}
			events, err := split.Normalize(&source.Request{Body: []byte(`[{"post_id":` + pair[0] + `},{"post_id":` + pair[1] + `}]`), Received: received})
			if err != nil {
				t.Fatal(err)
			}
			if all[0] == all[1] || all[0] != string(events[0].Keys[0]) || all[1] != string(events[1].Keys[0]) {
				t.Errorf("%s\n%v: keys %q, and split %q", keys, pair, all, []string{string(events[0].Keys[0]), string(events[1].Keys[0])})
			}
		}
	}
}

// TestWhatCanBeReadIsPassedOn: only what identifies the event must be without
// doubt. The data is what was sent, byte for byte.
func TestWhatCanBeReadIsPassedOn(t *testing.T) {
	s := newSource(t, "event: {type: body.type, id: body.id, subject: body.subject, time: body.at, partitionkey: body.key, extensions: {x: body.x}}\nauth: none")
	for _, tt := range []struct{ name, body, malformed string }{
		{"a byte order mark", "\ufeff{\"type\":\"t\",\"id\":\"1\"}", ""},
		{"a name twice elsewhere", `{"type":"t","id":"1","a":1,"a":2,"b":{"c":1,"c":1}}`, ""},
		{"no Unicode elsewhere", `{"type":"t","id":"1","a":"\ud800","\udfff":1}`, ""},
		{"no UTF-8 elsewhere", "{\"type\":\"t\",\"id\":\"1\",\"a\":\"\xff\",\"\xff\":1}", ""},
		{"a number without bounds elsewhere", `{"type":"t","id":"1","a":1e999}`, ""},
		{"attributes twice that need not be", `{"type":"t","id":"1","subject":"a","subject":"b","at":1,"at":2,"key":"a","key":"a","x":"a","x":"b"}`, ""},
		{"attributes of no Unicode that need not be", `{"type":"t","id":"1","subject":"\ud800","at":"\ud800","key":"\ud800","x":"\ud800"}`, ""},
		{"the id twice", `{"type":"t","id":"1","id":"1"}`, "event.id: meets a name that is twice in one object"},
		{"the type twice", `{"type":"t","id":"1","type":"u"}`, "event.type: meets a name that is twice in one object"},
		{"an id of no Unicode", `{"type":"t","id":"\ud800"}`, "event.id: meets text that is no Unicode"},
		{"no id", `{"type":"t","id":null}`, "event.id: finds nothing in the request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events, err := s.Normalize(&source.Request{Body: []byte(tt.body), Received: received})
			if tt.malformed != "" {
				if err == nil || err.Error() != tt.malformed {
					t.Errorf("%v, want %s", err, tt.malformed)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if data := string(events[0].CloudEvent.Data()); data != tt.body {
				t.Errorf("the data is %q, want %q", data, tt.body)
			}
			for _, name := range []string{"subject", "time", "partitionkey", "x"} {
				if v, there := events[0].Attribute(name); there {
					t.Errorf("%s is %q", name, v)
				}
			}
		})
	}
}
