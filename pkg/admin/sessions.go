package admin

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"
)

const (
	cookieName = "postwire_session"
	// A session is for a working day, and is not made longer: whoever finds a
	// browser open the next morning finds it signed out.
	sessionFor = 8 * time.Hour
	// maxSessions is how many sessions one token may have. One more ends the oldest
	// session of that token, and never a session of another token: a viewer cannot
	// sign an operator out.
	maxSessions = 200
)

// Why the requests of a session end.
var (
	errSignedOut = errors.New("the session was signed out")
	errSessions  = errors.New("the token has too many sessions, and this was the oldest")
)

// sessions are those of browsers that have signed in. They are kept in memory
// only: after a restart one signs in again.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	open map[string]*session // by what the cookie holds
}

type session struct {
	holder *holder
	csrf   string
	ends   time.Time
	life   context.Context // done when the session is over, but for ends
	end    context.CancelCauseFunc
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, open: map[string]*session{}}
}

// begin opens a session for the holder of a token, and returns what the cookie is
// to hold.
func (s *sessions) begin(h *holder) (id string, in *session) {
	in = &session{holder: h, csrf: rand.Text(), ends: s.now().Add(sessionFor)}
	in.life, in.end = context.WithCancelCause(h.life)
	id = rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest, count := "", 0
	for id, other := range s.open {
		switch {
		case s.over(other):
			s.remove(id, nil)
		case other.holder == h:
			if count++; oldest == "" || other.ends.Before(s.open[oldest].ends) {
				oldest = id
			}
		}
	}
	if count >= maxSessions {
		s.remove(oldest, errSessions)
	}
	s.open[id] = in
	return id, in
}

// over reports whether a session has ended, by the clock or with its token.
func (s *sessions) over(in *session) bool { return in.life.Err() != nil || !s.now().Before(in.ends) }

// remove ends a session. The lock is held.
func (s *sessions) remove(id string, cause error) {
	s.open[id].end(cause)
	delete(s.open, id)
}

// find returns the session of a cookie, or nil where there is none, where it is
// over, or where its token is not in effect any more.
func (s *sessions) find(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.open[id]
	if in != nil && s.over(in) {
		s.remove(id, nil)
		return nil
	}
	return in
}

// end closes a session.
func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[id] != nil {
		s.remove(id, errSignedOut)
	}
}
