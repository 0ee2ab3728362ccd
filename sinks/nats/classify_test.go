package nats

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/sinks/sinktest"
)

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
