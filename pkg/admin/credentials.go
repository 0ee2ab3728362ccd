package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"sync/atomic"

	"github.com/postwire/postwire/config"
)

// Credential is a bearer token of the API and whom it stands for.
type Credential struct {
	Name  string // of the holder, in the audit log
	Role  Role
	Token config.Secret
}

// errTokenGone is why a request ends whose token was replaced or removed.
var errTokenGone = errors.New("the token was replaced or removed")

// Credentials are the tokens that callers of the API may show. While there is
// none, every caller is an operator. The methods may be called concurrently.
type Credentials struct {
	current atomic.Pointer[holders]
}

// holders are those of the credentials that are in effect at one time.
type holders struct {
	byToken  []*holder
	unlocked *holder // stands for every caller; nil while there is a token
}

// holder is whom a token stands for.
type holder struct {
	name string
	role Role
	sum  [sha256.Size]byte // of the token
	weak bool              // somebody might find the token by trying
	life context.Context   // done when the token is not in effect any more
	end  context.CancelCauseFunc
}

// NewCredentials returns Credentials that hold the given ones.
func NewCredentials(all ...Credential) *Credentials {
	c := &Credentials{}
	c.Replace(all...)
	return c
}

// Replace puts the given credentials into effect in place of those before. It ends
// the sessions, the tails and the requests of a token that is gone, or that has
// another name or role; the others go on. It must not be called concurrently with
// itself.
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
			old.end(errTokenGone)
		}
	}
	if before.unlocked != nil && next.unlocked == nil {
		before.unlocked.end(errTokenGone)
	}
}

func newHolder(c Credential) *holder {
	h := &holder{name: c.Name, role: c.Role, sum: sha256.Sum256([]byte(c.Token)), weak: len(c.Token) < config.MinProof}
	h.life, h.end = context.WithCancelCause(context.Background())
	return h
}

// unlocked returns who every caller is while there is no token, otherwise nil.
func (c *Credentials) unlocked() *holder { return c.current.Load().unlocked }

// find returns the holder of a token, among those whose tokens are weak or among
// those whose tokens are not; nil if there is none. The time that it takes tells
// nothing of the tokens.
func (c *Credentials) find(token string, weak bool) (found *holder) {
	sum := sha256.Sum256([]byte(token))
	for _, h := range c.current.Load().byToken {
		if subtle.ConstantTimeCompare(sum[:], h.sum[:]) == 1 && h.weak == weak {
			found = h
		}
	}
	return found
}
