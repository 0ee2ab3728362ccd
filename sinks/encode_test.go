package sinks

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
)

// TestDataThatIsAnEvent goes in structured mode, whatever the case of its media
// type: in binary mode a reader would take it for the event.
func TestDataThatIsAnEvent(t *testing.T) {
	for contentType, structured := range map[string]bool{
		"application/cloudevents+json": true, "Application/CloudEvents-batch+json; charset=utf-8": true,
		"application/json": false, "text/plain": false,
	} {
		e := cloudevents.NewEvent()
		e.SetID("1")
		e.SetSource("/s")
		e.SetType("t")
		if err := e.SetData(contentType, []byte(`{"specversion":"1.0"}`)); err != nil {
			t.Fatal(err)
		}
		for _, mode := range []string{Binary, Structured} {
			m, err := Env{}.Encode(event.Event{CloudEvent: e}, mode)
			if err != nil {
				t.Fatal(err)
			}
			want := structured || mode == Structured
			if m.Structured() != want || (m.ContentType == cloudevents.ApplicationCloudEventsJSON) != want {
				t.Errorf("%s in mode %s: structured is %v, with content type %s", contentType, mode, m.Structured(), m.ContentType)
			}
		}
	}
}

// TestEncodeAsTheSDK holds what Encode writes against the SDK's own bindings.
func TestEncodeAsTheSDK(t *testing.T) {
	minimal := func() cloudevents.Event {
		e := cloudevents.NewEvent()
		e.SetID("1")
		e.SetSource("/s")
		e.SetType("t")
		return e
	}
	whole := minimal()
	whole.SetSource("https://example.com/profiles/m%C3%BCller")
	whole.SetSubject("a/b")
	whole.SetDataSchema("urn:schema:1")
	whole.SetTime(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600)))
	for name, value := range map[string]any{
		"text": "Größe \"100 %\"", "flag": true, "number": int32(-7), "bytes": []byte{0, 255}, "when": types.Timestamp{Time: time.Unix(0, 1).UTC()},
		"uri": types.URI{URL: url.URL{Scheme: "urn", Opaque: "x"}}, "ref": types.URIRef{URL: url.URL{Path: "/r"}},
	} {
		whole.SetExtension(name, value)
	}
	events := map[string]cloudevents.Event{"minimal": minimal(), "whole": whole}
	for _, contentType := range []string{"application/json", "text/plain; charset=utf-8", "application/cloudevents+json"} {
		e := whole.Clone()
		if err := e.SetData(contentType, []byte(`{"a":1}`)); err != nil {
			t.Fatal(err)
		}
		e.DataBase64 = false
		events[contentType] = e
	}
	binaryData := minimal()
	if err := binaryData.SetData("image/png", []byte{0, 1, 2}); err != nil {
		t.Fatal(err)
	}
	events["binary data"] = binaryData
	for name, e := range events {
		for _, mode := range []string{Binary, Structured} {
			t.Run(name+", "+mode, func(t *testing.T) {
				got, err := Env{}.Encode(event.Event{CloudEvent: e}, mode)
				if err != nil {
					t.Fatal(err)
				}
				ctx := binding.WithForceBinary(t.Context())
				if got.Structured() {
					ctx = binding.WithForceStructured(ctx)
				}
				w := &writer{}
				if _, err := binding.Write(ctx, (*binding.EventMessage)(&e), w, w); err != nil {
					t.Fatal(err)
				}
				if len(got.Body) == 0 && len(w.m.Body) == 0 {
					got.Body, w.m.Body = nil, nil
				}
				for _, attributes := range [][]Attribute{got.Attributes, w.m.Attributes} { // they have no order
					slices.SortFunc(attributes, func(a, b Attribute) int { return cmp.Compare(a.Name, b.Name) })
				}
				if got.Structured() { // members have no order
					var ours, theirs map[string]any
					if err := errors.Join(json.Unmarshal(got.Body, &ours), json.Unmarshal(w.m.Body, &theirs)); err != nil {
						t.Fatal(err)
					}
					if !reflect.DeepEqual(ours, theirs) {
						t.Errorf("Encode writes %s, the SDK %s", got.Body, w.m.Body)
					}
					got.Body, w.m.Body = nil, nil
				}
				if !reflect.DeepEqual(got, w.m) {
					t.Errorf("Encode = %+v, the SDK writes %+v", got, w.m)
				}
			})
		}
	}
}

// writer implements binding.StructuredWriter and binding.BinaryWriter.
type writer struct{ m Message }

var (
	_ binding.StructuredWriter = (*writer)(nil)
	_ binding.BinaryWriter     = (*writer)(nil)
)

func (w *writer) SetStructuredEvent(_ context.Context, f format.Format, event io.Reader) error {
	w.m.ContentType = f.MediaType()
	return w.SetData(event)
}

func (w *writer) Start(context.Context) error {
	w.m.Attributes = make([]Attribute, 0, 20)
	return nil
}

func (w *writer) SetAttribute(attribute spec.Attribute, value any) error {
	return w.set(attribute.Name(), value)
}

func (w *writer) SetExtension(name string, value any) error { return w.set(name, value) }

func (w *writer) set(name string, value any) error {
	if value == nil {
		w.m.Attributes = slices.DeleteFunc(w.m.Attributes, func(a Attribute) bool { return a.Name == name })
		return nil
	}
	text, err := types.Format(value)
	if err != nil {
		return fmt.Errorf("attribute %s: %w", name, err)
	}
	if name == "datacontenttype" {
		w.m.ContentType = text
		return nil
	}
	w.m.Attributes = append(w.m.Attributes, Attribute{name, text})
	return nil
}

func (w *writer) SetData(data io.Reader) error {
	var err error
	w.m.Body, err = io.ReadAll(data)
	return err
}

func (w *writer) End(context.Context) error { return nil }
