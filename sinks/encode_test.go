package sinks

import (
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"

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
			m, err := Encode(t.Context(), event.Event{CloudEvent: e}, mode)
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
