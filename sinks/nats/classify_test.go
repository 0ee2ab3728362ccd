package nats

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// TestScope: each transient failure of a server, and whether the failure is of
// the event, of the subject, or of the whole stream.
func TestScope(t *testing.T) {
	api := func(status int, code jetstream.ErrorCode, text string) error {
		return &jetstream.APIError{Code: status, ErrorCode: code, Description: text}
	}
	tests := []struct {
		name        string
		err         error
		destination bool
		wait        time.Duration
	}{
		{"a full subject", api(503, codeStoreFailed, "maximum messages per subject exceeded"), true, 0},
		{"a forbidden subject", errDenied, true, 0},
		{"no valid subject", nats.ErrBadSubject, true, 0},
		{"a subject of no stream", api(400, codeOtherStream, "expected stream does not match"), true, 0},
		{"a full stream", api(503, codeStoreFailed, "maximum bytes exceeded"), false, streamWait},
		{"no memory", api(503, 10028, "insufficient memory resources available"), false, streamWait},
		{"an overloaded stream", api(429, 10167, "too many requests"), false, streamWait},
		{"a lost answer", nats.ErrTimeout, false, 0},
		{"an unknown error", api(400, 10003, "bad request"), false, 0},
	}
	c := Config{Subject: "events.all", Stream: "S"}
	d := &delivery{session: &session{conn: &nats.Conn{}}, sink: &Sink{config: c, route: c.Route()}, subjects: func() ([]string, error) { return []string{"other"}, nil }}
	for _, tt := range tests {
		err := d.classify("events.all", tt.err)
		if sinks.IsAtDestination(err) != tt.destination || sinks.Wait(err) != tt.wait {
			t.Errorf("%s: of the destination %v, wait %v: %v", tt.name, sinks.IsAtDestination(err), sinks.Wait(err), err)
		}
	}
	d.subjects = func() ([]string, error) { return []string{"events.>"}, nil }
	if err := d.classify("events.all", jetstream.ErrNoStreamResponse); sinks.Wait(err) != streamWait {
		t.Errorf("a stream without a leader: %v", err)
	}
}

// Each way in which a server refuses a message, and what becomes of the event: a
// dead letter only for what the event is. docs/dead-letters.md has the same table.
func TestClassification(t *testing.T) {
	api := func(code jetstream.ErrorCode) error {
		return &jetstream.APIError{Code: 400, ErrorCode: code, Description: "refused"}
	}
	lookup := errors.New("no answer")
	tests := []struct {
		name              string
		err               error
		subjects          []string // of the stream; nil cannot be looked up
		static, templated string   // what becomes of the event, by the subject of the sink
	}{
		{"over max_payload", nats.ErrMaxPayload, nil, "too_large", "too_large"},
		{"over max_msg_size", api(jetstream.JSErrCodeStreamMessageExceedsMaximum), nil, "too_large", "too_large"},
		{"headers too large", api(codeHeaderTooLarge), nil, "too_large", "too_large"},
		{"no valid subject", nats.ErrBadSubject, nil, "again", "invalid"},
		{"publishing forbidden", errDenied, nil, "again", "unauthorized"},
		{"the stream does not take the subject", jetstream.ErrNoStreamResponse, []string{"other.>"}, "again", "no_destination"},
		{"another stream takes the subject", api(codeOtherStream), []string{"other.>"}, "again", "no_destination"},
		{"the stream takes the subject, and its leader is away", jetstream.ErrNoStreamResponse, []string{"events.>"}, "again", "again"},
		{"the stream cannot be looked up", jetstream.ErrNoStreamResponse, nil, "again", "again"},
		{"the stream is full", api(codeStoreFailed), nil, "again", "again"},
		{"credentials", nats.ErrAuthorization, nil, "again", "again"},
		{"expired credentials", nats.ErrAuthExpired, nil, "again", "again"},
		{"a lost connection", nats.ErrConnectionClosed, nil, "again", "again"},
		{"a lost answer", nats.ErrTimeout, nil, "again", "again"},
		{"an unknown error", errors.New("what is this"), nil, "again", "again"},
	}
	for _, tt := range tests {
		for subject, want := range map[string]string{"events.all": tt.static, "events.{platform}": tt.templated} {
			c := Config{Subject: subject, Stream: "S"}
			ses := &session{conn: &nats.Conn{}}
			ses.accepted.Store(true)
			d := &delivery{session: ses, sink: &Sink{config: c, route: c.Route()}, subjects: func() ([]string, error) {
				if tt.subjects == nil {
					return nil, lookup
				}
				return tt.subjects, nil
			}}
			if got := sinktest.Outcomes(d.classify("events.all", tt.err), 1)[0]; got != want {
				t.Errorf("%s, subject %s: %q, want %q", tt.name, subject, got, want)
			}
			if ses.accepted.Store(false); tt.err == errDenied { //nolint:errorlint // it is the value itself
				if got := sinktest.Outcomes(d.classify("events.all", tt.err), 1)[0]; got != "again" {
					t.Errorf("%s before a message was taken, subject %s: %q", tt.name, subject, got)
				}
			}
		}
	}
}
