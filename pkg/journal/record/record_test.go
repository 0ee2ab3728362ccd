package record

import (
	"encoding/binary"
	"slices"
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
	got, _, err := new(Decoder).event(b)
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
		got, _, err := new(Decoder).event(b)
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

// The source stands behind all that an older version reads, within the length that
// it passes over; and what such a version has written is read, without a source.
func TestSource(t *testing.T) {
	e := full(t)
	for name := range e.CloudEvent.Extensions() { // of which only one has an order
		if name != "text" {
			e.CloudEvent.SetExtension(name, nil)
		}
	}
	e.Keys = []event.Key{event.NewKey("upload-post", "a"), event.NewKey("upload-post", "b")}
	old, err := AppendEvent(make([]byte, 8), e)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := Sourced(old[8:], e.Keys)
	if err != nil {
		t.Fatal(err)
	}
	sourced := append(make([]byte, 8), encoded...)
	attributes := 8 + 6 + int(binary.BigEndian.Uint32(old[8+2:]))
	want := slices.Insert(slices.Clone(old), attributes, []byte("\x0bupload-post")...)
	binary.BigEndian.PutUint32(want[8+2:], uint32(attributes-14+12))
	if diff := cmp.Diff(want, sourced); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if again, err := Sourced(sourced[8:], []event.Key{event.NewKey("other")}); err != nil || !slices.Equal(again, sourced[8:]) {
		t.Errorf("named twice it is %q, %v", again, err)
	}
	keyed, err := AppendEvent(AppendKeys(make([]byte, 8), e.Keys), e)
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		record []byte
		source string
	}{"of an older version": {old, ""}, "with its source": {sourced, "upload-post"}, "with its keys": {keyed, "upload-post"}} {
		r, err := Decode(1, tt.record)
		if err != nil || r.Event.SourceName != tt.source {
			t.Errorf("%s: the source is %q, %v", what, r.Event.SourceName, err)
		}
		if diff := cmp.Diff(e.CloudEvent.String(), r.Event.CloudEvent.String()); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", what, diff)
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
	if b, err = Sourced(b, []event.Key{event.NewKey("source", "a")}); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, _, err := new(Decoder).event(b)
		if err != nil {
			return
		}
		again, err := AppendEvent(nil, e)
		if err != nil {
			return // an attribute that no source can have made
		}
		if _, _, err := new(Decoder).event(again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
