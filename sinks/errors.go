package sinks

import (
	"errors"
	"fmt"
	"time"
)

// BatchError has an entry for each event of the batch, nil for an acknowledged
// event. BatchError does not unwrap: a permanent failure of an event says
// nothing about the other events.
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

// Reason is the reason for a dead letter. The set is closed: Reason is a metric
// label, and operators filter dead letters by Reason.
type Reason string

// Reasons for dead letters.
const (
	ReasonTooLarge      Reason = "too_large"      // over the broker's limit of a message
	ReasonNoDestination Reason = "no_destination" // the subject or topic of this event does not exist and is not to be created
	ReasonInvalid       Reason = "invalid"        // the broker cannot store the event in this form
	ReasonUnauthorized  Reason = "unauthorized"   // the broker forbids only the subject or topic of this event
	ReasonRefused       Reason = "refused"        // the receiver says no, and not why
	ReasonExpired       Reason = "expired"        // retry.dead_letter_after passed
	ReasonMaxAttempts   Reason = "max_attempts"   // retry.max_attempts attempts failed
	ReasonOperator      Reason = "operator"       // an operator gave up the blocked event
)

// Reasons returns all reasons.
func Reasons() []Reason {
	return []Reason{ReasonTooLarge, ReasonNoDestination, ReasonInvalid, ReasonUnauthorized, ReasonRefused, ReasonExpired, ReasonMaxAttempts, ReasonOperator}
}

// permanentError marks an error for which a retry is useless.
type permanentError struct {
	reason Reason
	err    error
}

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks err as permanent: a retry is useless.
func Permanent(reason Reason, err error) error { return &permanentError{reason, err} }

// IsPermanent reports whether err is marked by Permanent, and returns the
// reason.
func IsPermanent(err error) (Reason, bool) {
	if p, ok := errors.AsType[*permanentError](err); ok {
		return p.reason, true
	}
	return "", false
}

// destinationError marks an error of a whole destination.
type destinationError struct{ err error }

func (e *destinationError) Error() string { return e.err.Error() }
func (e *destinationError) Unwrap() error { return e.err }

// AtDestination marks err as transient and as an error of the destination of the event:
// every event of the destination would fail.
func AtDestination(err error) error { return &destinationError{err} }

// IsAtDestination reports whether err is marked by AtDestination.
func IsAtDestination(err error) bool {
	_, ok := errors.AsType[*destinationError](err)
	return ok
}

// inDoubtError marks an error after which an event may be stored.
type inDoubtError struct{ err error }

func (e *inDoubtError) Error() string { return e.err.Error() }
func (e *inDoubtError) Unwrap() error { return e.err }

// InDoubt marks err as transient, and the outcome as unknown: the broker may have stored the
// event. The sink sends the event again unchanged, and tells the outcome when the event is
// delivered again. Until then the event must not become a dead letter or be discarded.
func InDoubt(err error) error { return &inDoubtError{err} }

// IsInDoubt reports whether err is marked by InDoubt.
func IsInDoubt(err error) bool {
	_, ok := errors.AsType[*inDoubtError](err)
	return ok
}

// retryAfterError carries the wait requested by a broker.
type retryAfterError struct {
	wait time.Duration
	err  error
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter marks err as transient and adds the wait requested by the broker.
func RetryAfter(wait time.Duration, err error) error { return &retryAfterError{wait, err} }

// Wait returns the wait of RetryAfter, or zero.
func Wait(err error) time.Duration {
	if r, ok := errors.AsType[*retryAfterError](err); ok {
		return r.wait
	}
	return 0
}
