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
	// maxWait bounds what a receiver may ask for by Retry-After.
	maxWait = time.Hour
	// maxBody and bodyTime bound how much of an answer's body is read, and
	// thrown away, so that the connection can be used again.
	maxBody  = 4 << 10
	bodyTime = time.Second
)

// errGone is what becomes of events after the receiver has answered 410.
var errGone = errors.New("the receiver has answered 410 Gone, so that nothing more is sent to it until Postwire is started again; remove the sink, or set url to who takes its events")

// answerError is an answer that does not acknowledge. It holds the status and
// nothing else: whatever a receiver says may be an echo of the event.
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

// judge says what an answer means for the events of its request. Stop says that
// the answer means the same for all events, so that none is sent before the next
// attempt.
//
// A status is a verdict on the event only where the receiver can hardly have
// meant anything else (verdict), or where the operator says so by
// retry.dead_letter_on. What is wrong with the url, the credentials or the
// headers of the sink is the operator's to correct: the events wait.
func (s *Sink) judge(answer *nethttp.Response) (stop bool, err error) {
	status := answer.StatusCode
	failed := &answerError{status: status, hint: s.advice(status)}
	if slices.Contains(s.env.DeadLetterOn, status) {
		return false, sinks.Permanent(cmp.Or(s.verdict(status), sinks.ReasonRefused), failed)
	}
	if reason := s.verdict(status); reason != "" {
		return false, sinks.Permanent(reason, failed)
	}
	switch {
	case status >= 200 && status < 300:
		return false, nil
	case status == nethttp.StatusGone:
		if s.gone.CompareAndSwap(false, true) {
			s.log.Error("the receiver is gone for good: it has answered 410, and this sink sends nothing more; its events wait in the journal",
				zap.String("receiver", s.route.Template.String()))
		}
		return true, errGone
	}
	if wait := retryAfter(answer.Header.Get("Retry-After"), s.now()); wait > 0 {
		return true, sinks.RetryAfter(wait, failed)
	}
	return failed.hint != "" || status == nethttp.StatusTooManyRequests, failed
}

// verdict is why an event becomes a dead letter after an answer with this status;
// empty where the answer says nothing about the event.
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

// advice is what the operator can correct after an answer with this status; empty
// where nothing of the configuration is to blame.
func (s *Sink) advice(status int) string {
	switch status {
	case nethttp.StatusUnauthorized, nethttp.StatusForbidden:
		return "check the credentials of this sink: bearer, basic, headers, signing or tls"
	case nethttp.StatusProxyAuthRequired:
		return "a proxy asks for credentials; set url to the receiver itself"
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

// retryAfter reads the header: seconds or a date. What cannot be read is no wish.
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

// drop reads what is left of an answer, within bounds. Cancel ends the request.
// What comes of it is all the same: the status is known.
func drop(answer *nethttp.Response, cancel context.CancelFunc) {
	timer := time.AfterFunc(bodyTime, cancel)
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, answer.Body, maxBody)
	_ = answer.Body.Close()
}

// cause cuts an error of the transport down to what is not the receiver's: an
// answer that is not HTTP is quoted in it.
func cause(err error) error {
	if dialing, ok := errors.AsType[*dialError](err); ok {
		return dialing
	}
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return untrusted
	}
	if network, ok := errors.AsType[net.Error](err); ok { // context.DeadlineExceeded is one
		return network
	}
	for _, known := range []error{context.Canceled, nethttp.ErrSchemeMismatch, io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	return fmt.Errorf("the connection broke, or the answer was not HTTP (%T)", err)
}
