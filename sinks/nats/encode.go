package nats

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

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
	h := make(nats.Header, len(m.Attributes)+3)
	for _, a := range m.Attributes {
		h["ce-"+a.Name] = []string{escape(a.Value)}
	}
	if m.ContentType != "" {
		h["content-type"] = []string{escape(m.ContentType)}
		if mode == sinks.Binary {
			h["ce-datacontenttype"] = h["content-type"]
		}
	}
	return &nats.Msg{Subject: subject, Header: h, Data: m.Body}, nil
}

// escape percent-encodes a header's value as the HTTP binding does (section
// 3.1.3.2): the space, the double quote, the percent sign, and all that is not
// printable ASCII.
func escape(s string) string {
	clean := func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }
	if !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf || !clean(byte(r)) }) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if clean(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}
