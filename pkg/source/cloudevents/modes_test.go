package cloudevents

import (
	"net/http"
	"strings"
	"testing"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
)

// TestASignatureCoversTheAttributes: who has seen a signed event in structured mode
// cannot send it again in binary mode, with attributes of their own.
func TestASignatureCoversTheAttributes(t *testing.T) {
	signature := &auth.Signature{Header: "X-Signature", Secrets: []config.Secret{"sesame-sesame-sesame"}}
	const body = `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`
	structured := http.Header{"Content-Type": {"application/cloudevents+json"}}
	binary := func(id string) http.Header {
		return http.Header{"Content-Type": {"application/json"}, "Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {"/evil"}, "Ce-Type": {"evil"}}
	}
	for _, tt := range []struct {
		name   string
		config Config
		header http.Header
		want   string // malformed; empty is taken
	}{
		{"structured, signed", Config{Auth: auth.Auth{Signature: signature}}, structured, ""},
		{"binary, signed", Config{Auth: auth.Auth{Signature: signature}}, binary("2"), "Content-Type: says binary mode, whose attributes auth.signature does not cover"},
		{"binary, signed and listed", Config{ContentModes: []string{"binary"}, Auth: auth.Auth{Signature: signature}}, binary("2"), ""},
		{"structured, not listed", Config{ContentModes: []string{"binary"}, Auth: auth.Auth{None: true}}, structured, "Content-Type: says structured mode, which content_modes does not list"},
		{"binary, by a token", Config{Auth: auth.Auth{Bearer: &auth.Bearer{Tokens: []config.Secret{"sesame-sesame-sesame"}}}}, binary("2"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newSource(t, tt.config, source.Rate{}).Normalize(&source.Request{Header: tt.header, Body: []byte(body), Received: received})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	// Where the operator takes it, a captured body is still one event.
	src := newSource(t, Config{ContentModes: []string{"binary"}, Auth: auth.Auth{Signature: signature}}, source.Rate{})
	shared := map[string]int{}
	for _, id := range []string{"1", "2"} {
		events, err := src.Normalize(&source.Request{Header: binary(id), Body: []byte(body), Received: received})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range events[0].Keys {
			shared[string(k)]++
		}
	}
	if len(shared) != 3 {
		t.Errorf("two ids on one signed body have the keys %v, want one that they share", shared)
	}
	// Of an event without data such a signature proves nothing, unless it covers a header.
	empty := &source.Request{Header: binary("3"), Received: received}
	if _, err := src.Normalize(empty); err == nil || !strings.Contains(err.Error(), "proves nothing of the event") {
		t.Errorf("an event without data: %v", err)
	}
	stamped := &auth.Signature{
		Header: "X-Signature", Secrets: []config.Secret{"sesame-sesame-sesame"}, Signed: "{id}.{timestamp}.{body}", IDHeader: "X-Id", TimestampHeader: "X-Time",
	}
	if _, err := newSource(t, Config{ContentModes: []string{"binary"}, Auth: auth.Auth{Signature: stamped}}, source.Rate{}).Normalize(empty); err != nil {
		t.Errorf("an event without data, whose ID is signed: %v", err)
	}
	if err := (Config{MaxBatch: 1, ContentModes: []string{"binry"}, Auth: auth.Auth{None: true}}).Validate(); err == nil || !strings.Contains(err.Error(), `"binry" is not a mode`) {
		t.Errorf("Validate = %v", err)
	}
}
