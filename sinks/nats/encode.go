package nats

import (
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// encode makes a message from an event, according to the NATS binding for
// CloudEvents: attributes as ce- headers with percent-encoded values. The
// content type is also sent as content-type, for the Go SDK's reader
// (cloudevents/sdk-go#1334); readers that follow the specification ignore this
// header.
func encode(env sinks.Env, e event.Event, mode, subject string) (*nats.Msg, error) {
	m, err := env.Encode(e, mode)
	if err != nil {
		return nil, err
	}
	h := make(nats.Header, len(m.Attributes)+4)
	values := make([]string, 0, len(m.Attributes)) // a single allocation
	for name, value := range m.Headers("ce-") {
		values = append(values, sinks.EscapeHeader(value))
		h[name] = slices.Clip(values[len(values)-1:])
	}
	if m.ContentType != "" {
		if !m.Structured() {
			h["ce-datacontenttype"] = []string{sinks.EscapeHeader(m.ContentType)}
		}
		h["content-type"] = []string{sinks.EscapeMediaType(m.ContentType)}
	}
	return &nats.Msg{Subject: subject, Header: h, Data: m.Body}, nil
}
