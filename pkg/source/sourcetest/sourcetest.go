// Package sourcetest is the conformance suite of sources. The name of each test is a
// sentence of the contract in package source.
package sourcetest

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
)

// Run runs the suite on valid and invalid bodies.
func Run(t *testing.T, s source.Source, bodies [][]byte) {
	t.Run("any bytes give valid events or a malformed error", func(t *testing.T) {
		for _, body := range bodies {
			Check(t, s, body)
			for n := 0; n < len(body) && n < 2000; n += 7 {
				Check(t, s, body[:n])
			}
		}
	})
	t.Run("a stranger is refused, by one of two reasons, if and only if proof is required", func(t *testing.T) {
		for _, body := range bodies {
			err := s.Verify(&source.Request{Method: http.MethodPost, Header: http.Header{}, Body: body, Received: time.Unix(1e9, 0).UTC()})
			if required := s.Proof().Required; required != (err != nil) {
				t.Fatalf("Verify = %v, and proof is required: %v", err, required)
			}
			if err != nil && errors.Is(err, source.ErrUnauthenticated) == errors.Is(err, source.ErrForbidden) {
				t.Errorf("Verify = %v", err)
			}
		}
	})
	t.Run("what it asks for is always the same", func(t *testing.T) {
		first := s.Proof()
		for i := range first.SecretHeaders { // a caller may change the result
			first.SecretHeaders[i] = "X-Changed"
		}
		if diff := cmp.Diff(s.Proof(), s.Proof()); diff != "" || len(first.SecretHeaders) > 0 && cmp.Equal(first, s.Proof()) {
			t.Errorf("it asks for %+v and %+v", s.Proof(), s.Proof())
		}
	})
	t.Run("nobody is let by Options who does not ask", func(t *testing.T) {
		if h, ok := s.Options(&source.Request{Method: http.MethodOptions, Header: http.Header{}, Received: time.Unix(1e9, 0).UTC()}); ok || h != nil {
			t.Errorf("Options = %v, %v", h, ok)
		}
	})
	t.Run("methods may be called concurrently", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for _, body := range bodies {
					Check(t, s, body)
				}
			})
		}
		wg.Wait()
	})
}

// Check checks the contract on one body. Fuzz targets call Check.
func Check(t *testing.T, s source.Source, body []byte) {
	t.Helper()
	before := bytes.Clone(body)
	normalize := func(delivery string, received time.Time) ([]event.Event, error) {
		h := http.Header{}
		h.Set("X-Delivery", delivery)
		return s.Normalize(&source.Request{Header: h, Body: body, Received: received})
	}
	events, err := normalize("1", time.Unix(1e9, 0).UTC())
	again, err2 := normalize("2", time.Unix(2e9, 0).UTC())
	if !bytes.Equal(before, body) {
		t.Error("the body was changed")
	}
	if err != nil {
		if err2 != nil && sameChallenge(err, err2) {
			return
		}
		if _, ok := errors.AsType[*source.MalformedError](err); !ok {
			t.Errorf("the error is no MalformedError: %v", err)
		}
		if len(events) > 0 {
			t.Error("there are events beside the error")
		}
		if err2 == nil || err2.Error() != err.Error() {
			t.Errorf("equal bodies give %v and %v", err, err2)
		}
		return
	}
	if err2 != nil || len(again) != len(events) {
		t.Fatalf("equal bodies give %d and %d events, %v", len(events), len(again), err2)
	}
	for i, e := range events {
		if err := e.CloudEvent.Validate(); err != nil {
			t.Errorf("event %d is not valid: %v", i, err)
		}
		if len(e.Keys) == 0 {
			t.Errorf("event %d has no key", i)
		}
		if e.CloudEvent.ID() != again[i].CloudEvent.ID() {
			t.Errorf("equal bodies give ids %q and %q", e.CloudEvent.ID(), again[i].CloudEvent.ID())
		}
		if diff := cmp.Diff(e.Keys, again[i].Keys); diff != "" {
			t.Errorf("equal bodies give other keys:\n%s", diff)
		}
		for name := range e.CloudEvent.Extensions() {
			a := s.Attributes()
			if !a.Any && !slices.Contains(a.Names, name) && !slices.Contains(event.Core(), name) {
				t.Errorf("event %d has the extension %s, which is not among Attributes, %v", i, name, a.Names)
			}
		}
		for _, name := range event.Attributes() {
			if v, ok := e.Attribute(name); ok && strings.ContainsAny(v, "\x00\r\n") {
				t.Errorf("attribute %s holds a control character", name)
			}
		}
		if _, err := e.CloudEvent.MarshalJSON(); err != nil {
			t.Errorf("event %d has no JSON form: %v", i, err)
		}
	}
}

// sameChallenge reports whether both errors are challenges with equal answers.
func sameChallenge(a, b error) bool {
	first, ok1 := errors.AsType[*source.ChallengeError](a)
	second, ok2 := errors.AsType[*source.ChallengeError](b)
	return ok1 && ok2 && first.Answer == second.Answer
}
