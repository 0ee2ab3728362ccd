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
	// sessionAge is the fixed lifetime of a session, a working day.
	sessionAge = 8 * time.Hour
	// maxSessions limits the sessions per token. A new session beyond the limit ends
	// the oldest session of its token, and never a session of a different token, so that a
	// viewer cannot sign out an operator.
	maxSessions = 200
)

// Causes of ending the requests of a session.
var (
	errSignedOut = errors.New("the session was signed out")
	errSessions  = errors.New("the oldest session of the token ended: the token has too many sessions")
)

// sessions are the sessions of signed-in browsers, in memory only: a restart ends every
// session.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	open map[string]*session // by the value of the cookie
}

type session struct {
	holder *holder
	csrf   string
	ends   time.Time
	life   context.Context // done after the session or its token was ended; does not cover ends
	end    context.CancelCauseFunc
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, open: map[string]*session{}}
}

// begin starts a session for the holder of a token, and returns the value of the cookie.
func (s *sessions) begin(h *holder) (id string, in *session) {
	in = &session{holder: h, csrf: rand.Text(), ends: s.now().Add(sessionAge)}
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

// over reports whether a session has expired or was ended.
func (s *sessions) over(in *session) bool { return in.life.Err() != nil || !s.now().Before(in.ends) }

// remove ends a session. The caller holds mu.
func (s *sessions) remove(id string, cause error) {
	s.open[id].end(cause)
	delete(s.open, id)
}

// find returns the session for the value of a cookie, or nil if no such session exists
// or the session is over.
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

// end ends a session, by sign-out.
func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[id] != nil {
		s.remove(id, errSignedOut)
	}
}
