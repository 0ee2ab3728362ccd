package sinks

import (
	"errors"
	"fmt"
	"time"
)

// BatchError has one entry for each event of the batch, nil where the broker
// acknowledged. It does not unwrap: that one event was refused for good says
// nothing of its neighbors.
type BatchError []error

func (e BatchError) Error() string {
	failed := 0
	var first error
	for _, err := range e {
		if err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
	}
	return fmt.Sprintf("%d of %d events not delivered, the first because: %v", failed, len(e), first)
}

// Reason is why an event was set aside. The set is closed: it is a metric's
// label and what an operator filters dead letters by.
type Reason string

// The reasons there are.
const (
	ReasonTooLarge      Reason = "too_large"      // over the broker's limit of a message
	ReasonNoDestination Reason = "no_destination" // the subject or topic of this event does not exist and is not to be created
	ReasonInvalid       Reason = "invalid"        // the broker cannot take it in this form
	ReasonUnauthorized  Reason = "unauthorized"   // the broker forbids the subject or topic that this event's attributes name, and only this
	ReasonRefused       Reason = "refused"        // the receiver says no, and not why
	ReasonExpired       Reason = "expired"        // retry.dead_letter_after passed
)

// Reasons returns all there are.
func Reasons() []Reason {
	return []Reason{ReasonTooLarge, ReasonNoDestination, ReasonInvalid, ReasonUnauthorized, ReasonRefused, ReasonExpired}
}

// permanentError marks an error that trying again cannot mend.
type permanentError struct {
	reason Reason
	err    error
}

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks err as one that trying again cannot mend.
func Permanent(reason Reason, err error) error { return &permanentError{reason, err} }

// IsPermanent reports whether err is marked by Permanent, and with which reason.
func IsPermanent(err error) (Reason, bool) {
	if p, ok := errors.AsType[*permanentError](err); ok {
		return p.reason, true
	}
	return "", false
}

// retryAfterError carries the wait that a broker asked for.
type retryAfterError struct {
	wait time.Duration
	err  error
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter marks err as transient, and wait as what the broker asked for.
func RetryAfter(wait time.Duration, err error) error { return &retryAfterError{wait, err} }

// Wait returns what the broker asked for by RetryAfter, or zero.
func Wait(err error) time.Duration {
	if r, ok := errors.AsType[*retryAfterError](err); ok {
		return r.wait
	}
	return 0
}
