package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// share reports whether two events have an identity key in common.
func share(a, b event.Event) bool {
	return slices.ContainsFunc(a.Keys, func(k event.Key) bool { return slices.Contains(b.Keys, k) })
}

// TestUnsignedHeadersForgeNoEvent: a captured request is one event, whatever its
// unsigned headers say.
func TestUnsignedHeadersForgeNoEvent(t *testing.T) {
	src := newSource(t, "preset: github\nauth: {signature: {secrets: ["+testSecret+"]}}\n")
	send := func(delivery, name, body string) event.Event {
		t.Helper()
		h := http.Header{"X-Github-Delivery": {delivery}, "X-Github-Event": {name}}
		if err := auth.GitHub.Sign(h, testSecret, "", received, []byte(body)); err != nil {
			t.Fatal(err)
		}
		r := &source.Request{Header: h, Body: []byte(body), Received: received}
		if err := src.Verify(r); err != nil {
			t.Fatal(err)
		}
		events, err := src.Normalize(r)
		if err != nil {
			t.Fatal(err)
		}
		return events[0]
	}
	const body = `{"action":"opened","issue":{"number":1}}`
	captured := send("d-1", "issues", body)
	for _, forged := range []event.Event{send("d-2", "issues", body), send("d-2", "deployment", body), send("d-1", "issues", body+" ")} {
		if !share(captured, forged) {
			t.Errorf("%q and %q have no key in common", captured.Keys, forged.Keys)
		}
	}
	if other := send("d-3", "issues", `{"action":"opened","issue":{"number":2}}`); share(captured, other) {
		t.Errorf("%q and %q have a key in common", captured.Keys, other.Keys)
	}
}

// TestASplitWebhookIsKnownByItsWholeBody: elements that are alike are events of
// their own where the verified bodies differ, and a captured body is still known.
func TestASplitWebhookIsKnownByItsWholeBody(t *testing.T) {
	src := newSource(t, "split: body.events\nevent: {type: body.type, id: 'headers[\"x-delivery\"] + \"/\" + body.type'}\nauth: {signature: {secrets: ["+testSecret+"], header: X-Signature, signed: '{body}'}}\n")
	send := func(delivery, body string) []event.Event {
		t.Helper()
		events, err := src.Normalize(&source.Request{Header: http.Header{"X-Delivery": {delivery}}, Body: []byte(body), Received: received})
		if err != nil {
			t.Fatal(err)
		}
		return events
	}
	first := send("d1", `{"seq":1,"events":[{"type":"ping"},{"type":"ping"}]}`)
	if share(first[0], send("d2", `{"seq":2,"events":[{"type":"ping"}]}`)[0]) {
		t.Error("events of different bodies share a key")
	}
	again := send("d3", `{"seq":1,"events":[{"type":"ping"},{"type":"ping"}]}`)
	for i := range first {
		if !share(first[i], again[i]) {
			t.Errorf("element %d of a captured body is a new event", i)
		}
	}
}

// TestWhatIsSignedNeedsNoDigest: where the proof covers what identifies an event,
// equal bodies may be several events.
func TestWhatIsSignedNeedsNoDigest(t *testing.T) {
	const spelled = "auth: {signature: {secrets: [" + testSecret + "], header: X-Signature, "
	for keys, digest := range map[string]bool{
		"event: {type: body.type, id: body.id}\n" + spelled + "signed: '{body}'}}":                                                                                                                   false,
		"event: {type: body.type, id: 'headers[\"x-id\"]'}\n" + spelled + "signed: '{body}'}}":                                                                                                       true,
		"event: {type: body.type, id: 'headers[\"x-id\"]'}\n" + spelled + "signed: '{id}.{timestamp}.{body}', id_header: X-Id, timestamp_header: X-T}}":                                              false,
		"event: {type: body.type, id: '\"x-id\" in headers ? headers[\"x-id\"] : headers[\"x-other\"]'}\n" + spelled + "signed: '{id}.{timestamp}.{body}', id_header: X-Id, timestamp_header: X-T}}": true,
		"event: {type: body.type, id: query.id}\n" + spelled + "signed: '{body}'}}":                                                                                                                  true,
		"event: {type: body.type, id: query.id}\n" + spelled + "signed: '{url}{body}'}}":                                                                                                             false,
		"event: {type: path, id: body.id}\n" + spelled + "signed: '{body}'}}":                                                                                                                        true,
		"event: {type: body.type, id: body.id, subject: query.id, extensions: {x: path}}\n" + spelled + "signed: '{body}'}}":                                                                         false,
		"event: {type: body.type, id: body.id}\ndedupe: [headers.x]\n" + spelled + "signed: '{body}'}}":                                                                                              true,
		"event: {type: body.type, id: query.id}\nauth: {bearer: {tokens: [" + testSecret + "]}}":                                                                                                     false,
		"preset: stripe\nauth: {signature: {secrets: [" + testSecret + "]}}":                                                                                                                         false,
		"preset: slack\nauth: {signature: {secrets: [" + testSecret + "]}}":                                                                                                                          false,
		"preset: standard-webhooks\nauth: {signature: {secrets: [" + testSecret + "]}}":                                                                                                              false,
		"preset: github\nauth: {signature: {secrets: [" + testSecret + "]}}":                                                                                                                         true,
	} {
		if got := newSource(t, keys).(*Source).digest; got != digest {
			t.Errorf("%s\nthe digest is a key: %v, want %v", keys, got, digest)
		}
	}
}

// TestTheVerifiedHeadersAreMapped: of two sets of names that one that was not
// verified says nothing, also of a request that is kept and read again.
func TestTheVerifiedHeadersAreMapped(t *testing.T) {
	src := newSource(t, "preset: standard-webhooks\nauth: {signature: {secrets: ["+testSecret+"]}}\n")
	body := []byte(`{"type":"a"}`)
	signed := http.Header{}
	if err := auth.StandardWebhooks.Sign(signed, testSecret, "msg_1", received, body); err != nil {
		t.Fatal(err)
	}
	h := http.Header{"Webhook-Id": {"evil"}, "Webhook-Timestamp": {"1"}}
	for name, values := range signed {
		h[strings.Replace(name, "Webhook-", "Svix-", 1)] = values
	}
	r := &source.Request{Header: h, Body: body, Received: received}
	if err := src.Verify(r); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*source.Request{r, src.Proof().Public(r)} {
		events, err := src.Normalize(r)
		if err != nil {
			t.Fatal(err)
		}
		if id := events[0].CloudEvent.ID(); id != "msg_1" {
			t.Errorf("the id is %s, want the one that is signed", id)
		}
	}
}

// TestAFormIsNoJSON: which of the two a body is the body says, not a header that
// nobody has signed.
func TestAFormIsNoJSON(t *testing.T) {
	src := newSource(t, "preset: slack\nauth: none")
	body := `{"type":"event_callback","event_id":"E1","event":{"type":"message","text":"&payload=%7B%22type%22%3A%22evil%22%2C%22event_id%22%3A%22E2%22%7D&"}}`
	for _, contentType := range []string{"application/json", "application/x-www-form-urlencoded"} {
		events, err := src.Normalize(&source.Request{Header: http.Header{"Content-Type": {contentType}}, Body: []byte(body), Received: received})
		if err != nil {
			t.Fatal(err)
		}
		if e := events[0].CloudEvent; e.ID() != "E1" || e.Type() != "com.slack.message" {
			t.Errorf("%s: %s %s", contentType, e.Type(), e.ID())
		}
	}
}

// TestNullIsAbsent: a member that is null means to each preset what a member means
// that is absent.
func TestNullIsAbsent(t *testing.T) {
	for _, preset := range []string{"github", "stripe", "slack", "standard-webhooks"} {
		src := newSource(t, "preset: "+preset+"\nauth: none")
		for _, file := range cases(t, filepath.Join("testdata", preset)) {
			r := readRequest(t, file)
			var whole any
			if json.Unmarshal(r.Body, &whole) != nil {
				continue // a form
			}
			for _, place := range members(whole, nil) {
				outcomes := map[string]string{}
				for _, how := range []string{"null", "absent"} {
					changed := *r
					var v any
					if err := json.Unmarshal(r.Body, &v); err != nil {
						t.Fatal(err)
					}
					change(v, place, how == "absent")
					var err error
					if changed.Body, err = json.Marshal(v); err != nil {
						t.Fatal(err)
					}
					events, err := src.Normalize(&changed)
					if err != nil {
						outcomes[how] = "not taken"
						continue
					}
					e := events[0].CloudEvent
					outcomes[how] = fmt.Sprint(e.Context, events[0].Keys)
				}
				if outcomes["null"] != outcomes["absent"] {
					t.Errorf("%s: %v is null: %s\nit is absent: %s", file, place, outcomes["null"], outcomes["absent"])
				}
			}
		}
	}
}

// members returns the places of all members of all objects.
func members(v any, at []string) (places [][]string) {
	if object, ok := v.(map[string]any); ok {
		for name, inner := range object {
			place := append(slices.Clone(at), name)
			places = append(append(places, place), members(inner, place)...)
		}
	}
	return places
}

// change makes a member null, or takes it away.
func change(v any, place []string, remove bool) {
	object := v.(map[string]any)
	for _, name := range place[:len(place)-1] {
		object = object[name].(map[string]any)
	}
	if name := place[len(place)-1]; remove {
		delete(object, name)
	} else {
		object[name] = nil
	}
}
