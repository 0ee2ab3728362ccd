package http

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/sinks"
)

const (
	// maxWait limits Retry-After.
	maxWait = time.Hour
	// busyWait is the wait after 429 and 503 without Retry-After.
	busyWait = time.Second
	// maxBody and bodyTime limit how much of a response body is read and
	// discarded to reuse the connection.
	maxBody  = 4 << 10
	bodyTime = time.Second
)

// errStopped is the outcome of events after the receiver has answered 410. The
// error is of the destination, because the connection works.
var errStopped = sinks.AtDestination(errors.New("the receiver answered 410 Gone, and delivery stops until Postwire is restarted; remove the sink, or set url to another receiver"))

// answerError is a response without acknowledgement. answerError contains only
// the status, because the response may quote the event.
type answerError struct {
	status int
	hint   string
}

func (e *answerError) Error() string {
	text := fmt.Sprintf("the receiver answers %d", e.status)
	if name := nethttp.StatusText(e.status); name != "" {
		text += " " + name
	}
	if e.hint != "" {
		text += "; " + e.hint
	}
	return text
}

// judge returns the outcome of a response for the events of the request.
//
// A status is a permanent failure only if the receiver can hardly have meant
// anything else (verdict), or if retry.dead_letter_on contains the status.
// Errors in the url, the credentials or the headers of the sink are for the
// operator to fix, and events stay pending.
func (s *Sink) judge(answer *nethttp.Response) error {
	status := answer.StatusCode
	failed := &answerError{status: status, hint: s.advice(status)}
	if slices.Contains(s.env.DeadLetterOn, status) {
		return sinks.Permanent(cmp.Or(s.verdict(status), sinks.ReasonRefused), failed)
	}
	if reason := s.verdict(status); reason != "" {
		return sinks.Permanent(reason, failed)
	}
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == nethttp.StatusGone:
		if s.stopped.CompareAndSwap(false, true) {
			s.log.Error("receiver answered 410 Gone, delivery to the sink stops; the events wait in the journal",
				zap.String("receiver", s.route.Template.String()))
		}
		return errStopped
	}
	wait := retryAfter(answer.Header.Get("Retry-After"), s.now())
	if busy := status == nethttp.StatusTooManyRequests || status == nethttp.StatusServiceUnavailable; wait == 0 && busy {
		wait = busyWait
	}
	if wait > 0 {
		return sinks.RetryAfter(wait, failed)
	}
	return failed
}

// verdict returns the reason for a dead letter after a response with this
// status, or "" if the status says nothing about the event.
func (s *Sink) verdict(status int) sinks.Reason {
	switch status {
	case nethttp.StatusRequestEntityTooLarge:
		return sinks.ReasonTooLarge
	case nethttp.StatusBadRequest, nethttp.StatusUnprocessableEntity:
		return sinks.ReasonInvalid
	case nethttp.StatusUnsupportedMediaType:
		if s.config.ContentMode == sinks.Binary { // otherwise the sink chose the media type
			return sinks.ReasonInvalid
		}
	case nethttp.StatusConflict:
		return sinks.ReasonRefused
	}
	return ""
}

// advice returns how the operator can fix a response with this status, or "" if
// the configuration is not the cause.
func (s *Sink) advice(status int) string {
	switch status {
	case nethttp.StatusUnauthorized, nethttp.StatusForbidden:
		return "check the credentials of this sink: bearer, basic, oauth2, headers, signing or tls"
	case nethttp.StatusProxyAuthRequired:
		return "a proxy asks for credentials; write a user name and a password into proxy, or set url to the receiver itself"
	case nethttp.StatusNotFound, nethttp.StatusMethodNotAllowed, nethttp.StatusMisdirectedRequest, nethttp.StatusRequestURITooLong:
		return "check url; where the receiver refuses single events in this way, list the status in retry.dead_letter_on"
	case nethttp.StatusUnsupportedMediaType, nethttp.StatusNotAcceptable:
		if status == nethttp.StatusUnsupportedMediaType && s.config.ContentMode == sinks.Binary {
			return ""
		}
		return "check content_mode"
	case nethttp.StatusLengthRequired, nethttp.StatusExpectationFailed, nethttp.StatusUpgradeRequired, nethttp.StatusPreconditionRequired,
		nethttp.StatusPreconditionFailed, nethttp.StatusRequestHeaderFieldsTooLarge:
		return "check url and headers of this sink"
	}
	if status >= 300 && status < 400 {
		return "redirects are not followed, set url to the new address"
	}
	return ""
}

// retryAfter reads the header: seconds or a date. An invalid value returns
// zero.
func retryAfter(text string, now time.Time) time.Duration {
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		wait = maxWait
		if seconds < uint64(maxWait/time.Second) {
			wait = time.Duration(seconds) * time.Second
		}
	} else if at, err := nethttp.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxWait)
}

// drop reads the rest of a response, within limits. Cancel ends the request.
// Errors are ignored, because the status is known.
func drop(answer *nethttp.Response, cancel context.CancelFunc) {
	timer := time.AfterFunc(bodyTime, cancel)
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, answer.Body, maxBody)
	_ = answer.Body.Close()
}

// cause removes the receiver's text from an error of the transport, which
// quotes a response that is not HTTP.
func cause(err error) error {
	if dialing, ok := errors.AsType[*connectError](err); ok {
		return dialing
	}
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return untrusted
	}
	if network, ok := errors.AsType[net.Error](err); ok { // includes context.DeadlineExceeded
		return network
	}
	for _, known := range []error{context.Canceled, nethttp.ErrSchemeMismatch, io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	return fmt.Errorf("the connection broke, or the answer was not HTTP (%T)", err)
}
