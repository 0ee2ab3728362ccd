package record

import (
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
)

// full is an event with all kinds of attributes.
func full(t testing.TB) event.Event {
	t.Helper()
	e := cloudevents.NewEvent()
	e.SetID("a/1")
	e.SetSource("https://example.com/profiles/caf%C3%A9")
	e.SetType("t")
	e.SetSubject("s/ü")
	e.SetDataSchema("urn:x:1")
	e.SetTime(time.Date(2024, 3, 15, 14, 30, 0, 123456789, time.UTC))
	for name, value := range map[string]any{
		"text": "é \"x\"", "yes": true, "number": int32(-7), "bytes": []byte{0, 255},
		"at": types.Timestamp{Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)}, "ref": types.URIRef{URL: types.ParseURIRef("a/b").URL},
		"uri": types.URI{URL: types.ParseURI("urn:y").URL},
	} {
		e.SetExtension(name, value)
	}
	if err := e.SetData("application/json", []byte(`{"a": 1}`)); err != nil {
		t.Fatal(err)
	}
	return event.Event{CloudEvent: e}
}

func TestEventFormat(t *testing.T) {
	want := full(t)
	b, err := AppendEvent(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := new(Decoder).Event(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.CloudEvent.String(), got.CloudEvent.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	clear(b) // the event has its own memory
	if diff := cmp.Diff(want.CloudEvent.String(), got.CloudEvent.String()); diff != "" {
		t.Errorf("it shares memory with the record:\n%s", diff)
	}
}

// Data that is no JSON comes back as it was, and as what it was: bytes or text.
func TestEventFormatOfOtherData(t *testing.T) {
	for _, tt := range []struct {
		contentType string
		data        []byte
		bytes       bool
	}{
		{"application/octet-stream", []byte{0, 255, 1, '"', '\n', 0}, true},
		{"text/plain; charset=utf-8", []byte("Grüße\n"), false},
		{"", []byte{1, 2, 3}, true},
		{"application/json", []byte("1, \"id\": \"other\""), true},
		{"", nil, false},
	} {
		want := full(t)
		ce := want.CloudEvent.Context.AsV1()
		if ce.DataContentType = &tt.contentType; tt.contentType == "" {
			ce.DataContentType = nil
		}
		want.CloudEvent.Context, want.CloudEvent.DataEncoded, want.CloudEvent.DataBase64 = ce, tt.data, tt.bytes
		b, err := AppendEvent(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := new(Decoder).Event(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.CloudEvent.DataEncoded, got.CloudEvent.DataEncoded); diff != "" || got.CloudEvent.DataBase64 != tt.bytes {
			t.Errorf("%q: bytes %v, want %v; %s", tt.contentType, got.CloudEvent.DataBase64, tt.bytes, diff)
		}
		if diff := cmp.Diff(want.CloudEvent.Context.AsV1().DataContentType, got.CloudEvent.Context.AsV1().DataContentType); diff != "" {
			t.Error(diff)
		}
	}
}

// A damaged record is an error, or an event that can be stored again.
func FuzzDecodeEvent(f *testing.F) {
	b, err := AppendEvent(nil, full(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{version, 0, 0, 0, 0, 0})
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := new(Decoder).Event(b)
		if err != nil {
			return
		}
		again, err := AppendEvent(nil, e)
		if err != nil {
			return // an attribute that no source can have made
		}
		if _, err := new(Decoder).Event(again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
