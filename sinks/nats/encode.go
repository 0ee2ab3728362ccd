package nats

import (
	"context"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// encode makes a message of an event, as in the NATS binding for CloudEvents:
// attributes as ce- headers with percent-encoded values. The content type is
// also sent as content-type, where the Go SDK's reader looks for it
// (cloudevents/sdk-go#1334); readers that follow the letter do not mind.
func encode(ctx context.Context, e event.Event, mode, subject string) (*nats.Msg, error) {
	m, err := sinks.Encode(ctx, e, mode)
	if err != nil {
		return nil, err
	}
	h := make(nats.Header, len(m.Attributes)+4)
	for _, a := range m.Attributes {
		h["ce-"+a.Name] = []string{escape(a.Value)}
	}
	if m.ContentType != "" {
		if mode == sinks.Binary {
			h["ce-datacontenttype"] = []string{escape(m.ContentType)}
		}
		h["content-type"] = []string{plain(m.ContentType)}
	}
	return &nats.Msg{Subject: subject, Header: h, Data: m.Body}, nil
}

// messageID is how the stream knows an event again: CloudEvents source and id,
// which together are unique. Neither holds a space once it is escaped.
func messageID(e event.Event, replay string) string {
	id := escape(e.CloudEvent.Source()) + " " + escape(e.CloudEvent.ID())
	if replay != "" {
		id += " " + replay
	}
	return id
}

// escape percent-encodes a header's value as the HTTP binding does (section
// 3.1.3.2): the space, the double quote, the percent sign, and all that is not
// printable ASCII. No value can then end its header and begin another.
func escape(s string) string {
	return percent(s, func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' })
}

// plain leaves a media type as it is, with the spaces and quotes of its
// parameters, save for what has no place in a header.
func plain(s string) string {
	return percent(s, func(c byte) bool { return c >= ' ' && c < 0x7f })
}

// percent encodes the bytes of s that are not clean.
func percent(s string, clean func(c byte) bool) string {
	const hex = "0123456789ABCDEF"
	dirty := 0
	for i := range len(s) {
		if !clean(s[i]) {
			dirty++
		}
	}
	if dirty == 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2*dirty)
	for i := range len(s) {
		if c := s[i]; clean(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
