package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"sync/atomic"

	"github.com/postwire/postwire/config"
)

// Credential is a bearer token of the API, with the name and the role of its holder.
type Credential struct {
	Name  string // of the holder, in the audit log
	Role  Role
	Token config.Secret
}

// errTokenRevoked is the cause of ending requests of a removed token.
var errTokenRevoked = errors.New("the token was replaced or removed")

// Credentials are the valid tokens of the API. Without any token, every caller is an
// operator. Methods may be called concurrently, except Replace.
type Credentials struct {
	current atomic.Pointer[holders]
}

// holders are the holders of the current credentials.
type holders struct {
	byToken  []*holder
	unlocked *holder // the holder for every caller; nil with any token
}

// holder is the holder of a token.
type holder struct {
	name string
	role Role
	sum  [sha256.Size]byte // of the token
	weak bool              // the token is short enough for guessing
	life context.Context   // done after the token was revoked
	end  context.CancelCauseFunc
}

// NewCredentials returns Credentials with the given tokens.
func NewCredentials(all ...Credential) *Credentials {
	c := &Credentials{}
	c.Replace(all...)
	return c
}

// Replace replaces the credentials. Replace ends sessions, tails and requests of a
// token that was removed, or has a new name or role; other sessions, tails and requests
// continue. Replace must not be called concurrently with itself.
func (c *Credentials) Replace(all ...Credential) {
	before := c.current.Load()
	if before == nil {
		before = &holders{}
	}
	next, kept := &holders{}, map[*holder]bool{}
	for _, one := range all {
		h := newHolder(one)
		for _, old := range before.byToken {
			if old.name == h.name && old.role == h.role && old.sum == h.sum {
				h = old
			}
		}
		kept[h] = true
		next.byToken = append(next.byToken, h)
	}
	switch {
	case len(all) > 0:
	case before.unlocked != nil:
		next.unlocked = before.unlocked
	default:
		next.unlocked = newHolder(Credential{Role: Operator})
	}
	c.current.Store(next)
	for _, old := range before.byToken {
		if !kept[old] {
			old.end(errTokenRevoked)
		}
	}
	if before.unlocked != nil && next.unlocked == nil {
		before.unlocked.end(errTokenRevoked)
	}
}

func newHolder(c Credential) *holder {
	h := &holder{name: c.Name, role: c.Role, sum: sha256.Sum256([]byte(c.Token)), weak: len(c.Token) < config.MinProof}
	h.life, h.end = context.WithCancelCause(context.Background())
	return h
}

// unlocked returns the holder for every caller if no token is configured, otherwise nil.
func (c *Credentials) unlocked() *holder { return c.current.Load().unlocked }

// find returns the holder of a token among weak or among strong tokens, or nil. The
// comparison takes constant time per token.
func (c *Credentials) find(token string, weak bool) (found *holder) {
	sum := sha256.Sum256([]byte(token))
	for _, h := range c.current.Load().byToken {
		if subtle.ConstantTimeCompare(sum[:], h.sum[:]) == 1 && h.weak == weak {
			found = h
		}
	}
	return found
}
