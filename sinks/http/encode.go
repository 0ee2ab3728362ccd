package http

import (
	"bytes"
	nethttp "net/http"
	"slices"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// part is an encoded event: a whole request, or an element of a batch.
type part struct {
	index  int            // index in the batch of Deliver
	id     string         // the event's MessageID
	header nethttp.Header // nil in a batch
	body   []byte
}

// encode makes a part of an event, as in the HTTP binding for CloudEvents:
// attributes as ce- headers with percent-encoded values, datacontenttype as
// Content-Type.
func encode(env sinks.Env, e event.Event, mode string) (part, error) {
	if mode == batched {
		m, err := env.Encode(e, sinks.Structured)
		return part{id: e.MessageID, body: m.Body}, err
	}
	m, err := env.Encode(e, mode)
	if err != nil {
		return part{}, err
	}
	h := make(nethttp.Header, len(m.Attributes)+1)
	for name, value := range m.Headers("ce-") {
		h.Set(name, sinks.EscapeHeader(value))
	}
	if m.ContentType != "" {
		h.Set("Content-Type", sinks.EscapeMediaType(m.ContentType))
	}
	return part{id: e.MessageID, header: h, body: m.Body}, nil
}

// list encodes several events as a JSON list.
func list(parts []part) (nethttp.Header, []byte) {
	bodies := make([][]byte, len(parts))
	for i, p := range parts {
		bodies[i] = p.body
	}
	return nethttp.Header{"Content-Type": {cloudevents.ApplicationCloudEventsBatchJSON}},
		slices.Concat([]byte{'['}, bytes.Join(bodies, []byte{','}), []byte{']'})
}
