package relay

import "time"

// reasonInterval bounds how often the log tells of another reason for which a sink
// fails: the text of an error may hold a port or a number that is never the same
// twice.
const reasonInterval = 10 * time.Second

// failureReason is why a sink fails, as the log has told it last.
type failureReason struct {
	text   string
	logged time.Time
}

// changed reports whether the log is to tell of err, and remembers that it does.
// A reason that comes too early is told at a later attempt, if it still holds.
func (r *failureReason) changed(err error, now time.Time) bool {
	if err.Error() == r.text || now.Sub(r.logged) < reasonInterval {
		return false
	}
	r.text, r.logged = err.Error(), now
	return true
}
