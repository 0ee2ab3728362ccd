package relay

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/sinks"
)

const redactKey = "0123456789abcdef"

func digestOf(text string) string {
	mac := hmac.New(sha256.New, []byte(redactKey))
	mac.Write([]byte(text))
	return "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil))
}

func withData(contentType, data string) event.Event {
	e := journaltest.Event("e")
	e.CloudEvent.SetDataContentType(contentType)
	e.CloudEvent.DataEncoded = []byte(data)
	return e
}

func TestRedact(t *testing.T) {
	r := newRedactor(sinks.Redact{
		Drop: []string{"title", "/result/error", "/list/1", "/a~1b/~0"},
		Hash: []string{"user_email", "/list/0", "number"},
		Key:  redactKey,
	})
	for _, tt := range []struct{ name, in, want string }{
		{
			"what is named anywhere, and what is named by its place",
			`{"title": "T", "user_email": "a@b.c", "result": {"error": "E", "url": "U", "title": 1}, "error": "stays"}`,
			`{"user_email":"` + digestOf("a@b.c") + `","result":{"url":"U"},"error":"stays"}`,
		},
		{"in lists", `[{"user_email":"x"},[{"title":{}}]]`, `[{"user_email":"` + digestOf("x") + `"},[{}]]`},
		{"elements keep their places", `{"list":["a","b","c"]}`, `{"list":["` + digestOf("a") + `",null,"c"]}`},
		{"a digest is of the text, however it is written", `{"user_email":"\u0061@b.c"}`, `{"user_email":"` + digestOf("a@b.c") + `"}`},
		{"and of other values of their canonical form", `{"number":1.0,"user_email":{"b":1,"a":2}}`, `{"number":"` + digestOf("1.0") + `","user_email":"` + digestOf(`{"a":2,"b":1}`) + `"}`},
		{"numbers that differ in a digit differ", `{"number":1745000000000000001,"list":[{"number":1745000000000000002}]}`, `{"number":"` + digestOf("1745000000000000001") + `","list":["` + digestOf(`{"number":1745000000000000002}`) + `"]}`},
		{"text that is no Unicode", "{\"user_email\":\"\xff\",\"s\":\"\xfe\",\"t\":\"\\ud800\",\"title\":\"\xff\",\"\xff\":1}", "{\"user_email\":\"" + digestOf("\"\xff\"") + "\",\"s\":\"\xfe\",\"t\":\"\\ud800\",\"\xff\":1}"},
		{"a byte order mark", "\ufeff{\"title\":1}", `{}`},
		{"null stays null", `{"user_email":null}`, `{"user_email":null}`},
		{"a name is one however it is written", `{"us\u0065r_email":"x","titl\u0065":1}`, `{"us\u0065r_email":"` + digestOf("x") + `"}`},
		{"names that a pointer escapes", `{"a/b":{"~":1,"c":2}}`, `{"a/b":{"c":2}}`},
		{"twice the same name", `{"user_email":"x","user_email":"y"}`, `{"user_email":"` + digestOf("x") + `","user_email":"` + digestOf("y") + `"}`},
		{"the rest is not written otherwise", `{"n":1.50e3,"s":"\u00e9\/","big":12345678901234567890}`, `{"n":1.50e3,"s":"\u00e9\/","big":12345678901234567890}`},
		{"nothing to find", `"user_email"`, `"user_email"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := withData("application/json; charset=utf-8", tt.in)
			got, err := r.apply(e)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got.CloudEvent.DataEncoded)); diff != "" {
				t.Errorf("data (-want +got):\n%s", diff)
			}
			if string(e.CloudEvent.DataEncoded) != tt.in {
				t.Error("the event in the journal's hands was changed")
			}
		})
	}
	if got, err := r.apply(withData("application/problem+json", `{"title":1,"n":1}`)); err != nil || string(got.CloudEvent.DataEncoded) != `{"n":1}` {
		t.Errorf("other JSON: %s, %v", got.CloudEvent.DataEncoded, err)
	}
	for _, e := range []event.Event{
		withData("text/plain", "user_email=x"), withData("application/json", `{"user_email":`),
		withData("application/json", `{} {}`), withData("application/vnd.x+xml", "<x/>"),
	} {
		if got, err := r.apply(e); err == nil || strings.Contains(err.Error(), "user_email") {
			t.Errorf("%s: %s, %v", e.CloudEvent.DataEncoded, got.CloudEvent.DataEncoded, err)
		}
	}
	if got, err := r.apply(withData("image/png", "")); err != nil || len(got.CloudEvent.DataEncoded) != 0 {
		t.Errorf("an event without data: %v", err)
	}
}

// TestRedactedDelivery: the broker gets redacted events only, in a replay too.
// An event that cannot be redacted is set aside, and its neighbors arrive.
func TestRedactedDelivery(t *testing.T) {
	var got []string
	broker := &broker{seen: func(batch []event.Event) {
		for _, e := range batch {
			got = append(got, string(e.CloudEvent.DataEncoded))
		}
	}}
	b := start(t, func(s *sinks.Settings) { s.Redact = sinks.Redact{Drop: []string{"title"}} }, broker)
	put := func(id, contentType, data string) {
		e := withData(contentType, data)
		e.CloudEvent.SetID(id)
		e.Keys = []event.Key{event.Key(id)}
		if _, err := b.journal.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	put("1", "application/json", `{"title":"T","n":1}`)
	put("2", "text/plain", `title`)
	put("3", "application/json", `{"title":"T","n":3}`)
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 3 })
	dead := b.dead(t)
	if len(dead) != 1 || dead["2"].Reason != string(sinks.ReasonInvalid) || !strings.Contains(dead["2"].Err, "redact") {
		t.Errorf("dead letters: %+v", dead)
	}
	re, err := b.relay.StartReplay(t.Context(), spec(1000))
	if err != nil {
		t.Fatal(err)
	}
	if re = b.replayed(t, re.ID); re.Sent != 2 || re.Refused != 1 {
		t.Errorf("replay: %+v", re)
	}
	b.stop()
	if diff := cmp.Diff([]string{`{"n":1}`, `{"n":3}`, `{"n":1}`, `{"n":3}`}, got); diff != "" {
		t.Errorf("the broker saw (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"1", "3", "1", "3"}, broker.ids()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

// TestReopen: a sink that is configured otherwise is opened anew before its
// next attempt.
func TestReopen(t *testing.T) {
	first, second := &broker{}, &broker{}
	b := start(t, nil, first)
	b.put(t, "1")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 1 })
	configured := b.opts.Sinks[0]
	configured.Open, configured.Own = second.open, "other"
	if err := b.relay.SetSinks(t.Context(), []sinks.Configured{configured}); err != nil {
		t.Fatal(err)
	}
	b.put(t, "2")
	eventually(t, "the cursor is at the end", func() bool { return b.committed(0) == 2 })
	b.stop()
	if diff := cmp.Diff([][]string{{"1"}, {"2"}}, [][]string{first.ids(), second.ids()}); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}

// FuzzRedact: what is to be hidden is not in what comes out, which is JSON.
func FuzzRedact(f *testing.F) {
	for _, seed := range []string{
		`{"secret":"hidden"}`, `[{"x":{"secret":["hidden"]}}]`, `{"secret":"hidden","secret":1}`, `{"s\u0065cret":"hidden"}`, `{"a":[}`, "\xff", `{"\ud800":1}`,
	} {
		f.Add([]byte(seed))
	}
	r := newRedactor(sinks.Redact{Drop: []string{"secret"}, Hash: []string{"other"}, Key: redactKey})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := r.apply(withData("application/json", string(data)))
		if err != nil || len(data) == 0 {
			return
		}
		out := got.CloudEvent.DataEncoded
		again, err := r.apply(got)
		if err != nil {
			t.Fatalf("%q became %q, which cannot be read: %v", data, out, err)
		}
		if !bytes.Contains(out, []byte("other")) && !bytes.Equal(again.CloudEvent.DataEncoded, out) {
			t.Errorf("%q became %q, and then %q", data, out, again.CloudEvent.DataEncoded)
		}
		var v any
		if json.Unmarshal(out, &v) == nil && named(v, "secret") {
			t.Errorf("%q became %q", data, out)
		}
	})
}

// named reports whether something in v bears a name.
func named(v any, name string) bool {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			if k == name || named(inner, name) {
				return true
			}
		}
	case []any:
		for _, inner := range v {
			if named(inner, name) {
				return true
			}
		}
	}
	return false
}
