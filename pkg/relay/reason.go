package relay

import "time"

// reasonInterval is the least time between two log lines about a changed error of a sink.
// Errors may contain a port or a counter and change with each attempt.
const reasonInterval = 10 * time.Second

// failureReason is the logged error of a failing sink.
type failureReason struct {
	text   string
	logged time.Time
}

// changed reports whether err is to be logged, and records err if so. An error within
// reasonInterval is logged after a later attempt that fails with this error.
func (r *failureReason) changed(err error, now time.Time) bool {
	if err.Error() == r.text || now.Sub(r.logged) < reasonInterval {
		return false
	}
	r.text, r.logged = err.Error(), now
	return true
}
