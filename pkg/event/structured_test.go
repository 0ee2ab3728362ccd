package event

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

func TestIsJSON(t *testing.T) {
	for contentType, want := range map[string]bool{
		"": true, "application/json": true, "Application/JSON; charset=utf-8": true, "text/json": true, "application/problem+json": true,
		"application/vnd.github.v3+json": true, "image/x+json": true, "application/json; charset": true, "application/json;;": true, "text/plain": false, "application/jsonl": false, "application/xml": false, "x": false, "+json": false,
	} {
		if got := IsJSON(contentType); got != want {
			t.Errorf("IsJSON(%q) = %v", contentType, got)
		}
	}
}

// TestStructured: whatever the data is, the envelope is JSON that every reader can
// parse, and the data comes out of it as it was.
func TestStructured(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, data string
		bytes                   bool   // the data came as bytes
		member, want            string // of the envelope; "data" is JSON
		opaque                  bool
	}{
		{"JSON", "application/json", `{"n":1745000000000000001, "p":1.10}`, false, "data", `{"n":1745000000000000001, "p":1.10}`, false},
		{"other JSON", "application/problem+json", `{"n":1.10}`, false, "data", `{"n":1.10}`, false},
		{"JSON that came as bytes", "application/vnd.x+json; charset=utf-8", `{"n":1}`, true, "data", `{"n":1}`, false},
		{"a byte order mark", "application/json", "\ufeff{}", false, "data", `{}`, false},
		{"no JSON", "application/json", `{"n":`, false, "data_base64", "", true},
		{"two values", "application/json", `1,"evil":2`, false, "data_base64", "", true},
		{"no UTF-8", "application/json", "{\"a\":\"\xff\"}", false, "data_base64", "", true},
		{"no Unicode", "application/problem+json", `{"a":"\ud800"}`, false, "data_base64", "", true},
		{"a name twice", "application/json", `{"a":1,"a":2}`, false, "data_base64", "", true},
		{"text", "text/plain", "a \"b\"\n\u2028", false, "data", `"a \"b\"\n\u2028"`, false},
		{"text that is no UTF-8", "text/plain", "\xff", false, "data_base64", "", false},
		{"bytes", "image/png", "\x00\x01", true, "data_base64", "", false},
		{"no media type", "", `{"a":1}`, false, "data", `{"a":1}`, false},
		{"bytes without a media type", "", "\x00", true, "data_base64", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := cloudevents.NewEvent()
			e.SetID("1")
			e.SetSource("/s")
			e.SetType("t")
			if tt.contentType != "" {
				e.SetDataContentType(tt.contentType)
			}
			e.DataEncoded, e.DataBase64 = []byte(tt.data), tt.bytes
			body, opaque, err := Structured(Event{CloudEvent: e})
			if err != nil || opaque != tt.opaque {
				t.Fatalf("opaque is %v, %v", opaque, err)
			}
			var envelope map[string]json.RawMessage
			if err := json.Unmarshal(body, &envelope); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			got := string(envelope[tt.member])
			want := tt.want
			if tt.member == "data_base64" {
				want = `"` + base64.StdEncoding.EncodeToString([]byte(tt.data)) + `"`
			}
			if _, both := envelope["data_base64"]; got != want || both != (tt.member == "data_base64") {
				t.Errorf("%s: %s is %s, want %s", body, tt.member, got, want)
			}
			back := cloudevents.NewEvent()
			// The SDK takes no other JSON than application/json for JSON.
			if err := json.Unmarshal(body, &back); err != nil && !strings.HasSuffix(strings.Split(tt.contentType, ";")[0], "+json") {
				t.Errorf("the SDK reads: %v", err)
			}
		})
	}
	e := cloudevents.NewEvent()
	e.SetID("1")
	if body, _, err := Structured(Event{CloudEvent: e}); err != nil || !json.Valid(body) {
		t.Errorf("without data: %s, %v", body, err)
	}
}

// FuzzStructured: no data breaks out of the envelope.
func FuzzStructured(f *testing.F) {
	f.Add("application/json", []byte(`{"a":1}`), false)
	f.Add("a/b+json", []byte(`1,"id":"2"`), true)
	f.Add("text/plain", []byte("\xff"), false)
	f.Fuzz(func(t *testing.T, contentType string, data []byte, isBytes bool) {
		e := cloudevents.NewEvent()
		e.SetID("1")
		e.SetDataContentType(contentType)
		e.DataEncoded, e.DataBase64 = data, isBytes
		body, _, err := Structured(Event{CloudEvent: e})
		if err != nil {
			return
		}
		var envelope map[string]json.RawMessage
		if err := json.Unmarshal(body, &envelope); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if string(envelope["id"]) != `"1"` {
			t.Errorf("%q: the id is %s", body, envelope["id"])
		}
	})
}
