package admin

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/forwarded"
)

// What a caller shows.
const (
	proofNone    = "none"
	proofToken   = "token"
	proofSession = "session"
)

// caller is who makes a request.
type caller struct {
	holder *holder // nil is a stranger
	proof  string
	remote origin
	life   context.Context // done when the proof is not in effect any more
	ends   time.Time       // when the proof ends by the clock; zero is never
}

func (c caller) role() Role {
	if c.holder == nil {
		return Nobody
	}
	return c.holder.role
}

// errSessionOver is why the requests of a session end by the clock.
var errSessionOver = errors.New("the session is over")

// bound returns a context that ends with the proof of the caller, and what to call
// when the request has ended.
func (c caller) bound(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.life, func() { cancel(context.Cause(c.life)) })
	if c.ends.IsZero() {
		return ctx, func() { stop(); cancel(nil) }
	}
	ctx, over := context.WithDeadlineCause(ctx, c.ends, errSessionOver)
	return ctx, func() { stop(); over(); cancel(nil) }
}

// origin is where a request comes from.
type origin struct {
	peer   netip.Addr // at the other end of the connection
	sender netip.Addr // as trusted proxies tell it; not valid where they name nobody
}

func (a *API) origin(r *http.Request) origin {
	peer := forwarded.Peer(r)
	return origin{peer, a.Proxies.Remote(peer, r)}
}

// fields are those of a log line. The peer is in it where it is not the sender.
func (o origin) fields() []zap.Field {
	if o.sender == o.peer {
		return []zap.Field{zap.Stringer("remote", o.peer)}
	}
	remote := "unknown"
	if o.sender.IsValid() {
		remote = o.sender.String()
	}
	return []zap.Field{zap.String("remote", remote), zap.Stringer("proxy", o.peer)}
}

// door knows who may come in: by a token, or by the session of a browser.
type door struct {
	api      *API
	sessions *sessions
	attempts *attempts
}

func (a *API) door() *door { return &door{a, newSessions(a.Now), newAttempts(a.Now)} }

// identify finds out who makes a request. It refuses a wrong token; whoever shows
// nothing, or a session that has ended, is a stranger.
func (d *door) identify(r *http.Request) (who caller, refused *refusal) {
	who = caller{proof: proofNone, remote: d.api.origin(r)}
	shown := r.Header.Get("Authorization")
	cookie, err := r.Cookie(cookieName)
	switch unlocked := d.api.Credentials.unlocked(); {
	case unlocked != nil && !loopback(r.Host):
		return who, &refusal{status: http.StatusForbidden, detail: "Ask by the address 127.0.0.1, or set admin.token in the configuration."}
	case unlocked != nil:
		who.holder, who.life = unlocked, unlocked.life
	case shown != "":
		who.proof = proofToken
		scheme, token, _ := strings.Cut(shown, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			break
		}
		h, refused := d.authenticate(token, who.remote, proofToken)
		if refused != nil {
			return who, refused
		}
		who.holder, who.life = h, h.life
	case err == nil:
		who.proof = proofSession
		in := d.sessions.find(cookie.Value)
		if in == nil {
			break
		}
		who.holder, who.life, who.ends = in.holder, in.life, in.ends
		if safe := r.Method == http.MethodGet || r.Method == http.MethodHead; !safe && !same(r.Header.Get(csrfField), in.csrf) {
			return who, &refusal{status: http.StatusForbidden, detail: "The header " + csrfField + " is missing or wrong: a page of another site may have asked. Load the console again."}
		}
	}
	return who, nil
}

// authenticate returns the holder of a token. A token that nobody can find by trying
// is let in whatever else its remote address has shown, so that a stranger behind the
// same proxy locks nobody out. A weak token is not even compared when the address is
// over its limit: a guess counts only at the rate of the limit.
func (d *door) authenticate(token string, from origin, proof string) (*holder, *refusal) {
	if h := d.api.Credentials.find(token, false); h != nil {
		return h, nil
	}
	log := d.api.Log.With(append(from.fields(), zap.String("proof", proof))...)
	try := d.attempts.begin(from.sender)
	if try.wait > 0 {
		d.api.Metrics.signIns.WithLabelValues(signInLimited).Inc()
		if try.first {
			log.Warn("admin sign-ins limited: the remote address has shown too many wrong tokens")
		}
		return nil, &refusal{status: http.StatusTooManyRequests, detail: "Too many wrong tokens came from this address: try again later.", wait: try.wait}
	}
	if h := d.api.Credentials.find(token, true); h != nil {
		try.undo()
		return h, nil
	}
	d.api.Metrics.signIns.WithLabelValues(signInRefused).Inc()
	log.Warn("admin sign-in refused: wrong token")
	return nil, &refusal{status: http.StatusUnauthorized, detail: "This token opens nothing. It is admin.token, admin.viewer_token or one of admin.tokens of the relay's configuration."}
}

// Session is who a browser is signed in as.
type Session struct {
	Role     Role       `json:"role" enum:"nobody,viewer,operator" doc:"What the caller may do; nobody has to sign in."`
	Name     string     `json:"name,omitempty" doc:"Name of the token that was shown, as in the audit log."`
	CSRF     string     `json:"csrf,omitempty" doc:"What requests that change something have to show as X-CSRF-Token, where they come with the session's cookie."`
	Ends     *time.Time `json:"ends,omitempty" doc:"When one has to sign in again."`
	Unlocked bool       `json:"unlocked,omitempty" doc:"No token is configured: whoever is on the relay's machine may everything."`
}

// Caller is how a request to sign in or out came.
type Caller struct {
	Cookie    string `cookie:"postwire_session"`
	Forwarded string `header:"X-Forwarded-Proto" doc:"https where a proxy speaks TLS: then the cookie is sent over nothing else."`

	tls     bool
	request *http.Request
}

// Resolve implements huma.Resolver.
func (h *Caller) Resolve(c huma.Context) []error {
	h.tls = c.TLS() != nil || strings.EqualFold(h.Forwarded, "https")
	h.request, _ = humago.Unwrap(c)
	return nil
}

// cookie is the one that holds a value for a time; less than no time removes it.
func (h *Caller) cookie(value string, age time.Duration) http.Cookie {
	return http.Cookie{ //nolint:gosec // Secure where TLS is spoken: without it the browser would not send the cookie back
		Name: cookieName, Value: value, Path: BasePath + "/", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: h.tls, SameSite: http.SameSiteStrictMode,
	}
}

// session is who a browser is signed in as.
func (d *door) session(in *session) Session {
	switch {
	case d.api.Credentials.unlocked() != nil:
		return Session{Role: Operator, Unlocked: true}
	case in == nil:
		return Session{Role: Nobody}
	}
	ends := in.ends.UTC()
	return Session{Role: in.holder.role, Name: in.holder.name, CSRF: in.csrf, Ends: &ends}
}

// signIn is how a browser gets a session.
func (d *door) signIn(api huma.API) {
	type output struct {
		SetCookie http.Cookie `header:"Set-Cookie"`
		Body      Session
	}
	open := rule(func(url.Values) Role { return Nobody })
	huma.Register(api, ruled(operation("show-session", http.MethodGet, "/session", "Who the caller is signed in as"), open),
		func(_ context.Context, in *Caller) (*struct{ Body Session }, error) {
			return &struct{ Body Session }{d.session(d.sessions.find(in.Cookie))}, nil
		})
	huma.Register(api, ruled(operation("begin-session", http.MethodPost, "/session", "Sign a browser in: the answer sets a cookie", 422, 429), open),
		func(_ context.Context, in *struct {
			Caller
			Body struct {
				Token string `json:"token" minLength:"1" doc:"admin.token, admin.viewer_token or one of admin.tokens of the configuration."`
			}
		},
		) (*output, error) {
			from := d.api.origin(in.request)
			h, refused := d.authenticate(in.Body.Token, from, proofSession)
			if refused != nil {
				return nil, refused.asError()
			}
			d.sessions.end(in.Cookie)
			id, begun := d.sessions.begin(h)
			d.api.Metrics.signIns.WithLabelValues(signInAccepted).Inc()
			d.api.Log.Info("console session began", append(from.fields(), zap.String("by", h.name), zap.String("role", string(h.role)))...)
			return &output{in.cookie(id, sessionFor), d.session(begun)}, nil
		})
	huma.Register(api, ruled(operation("end-session", http.MethodDelete, "/session", "Sign a browser out"), rule(func(url.Values) Role { return Viewer })),
		func(_ context.Context, in *Caller) (*output, error) {
			d.sessions.end(in.Cookie)
			return &output{in.cookie("", -time.Second), d.session(nil)}, nil
		})
}

// asError is a refusal that an operation answers.
func (f *refusal) asError() error {
	err := huma.NewError(f.status, f.detail)
	if f.wait == 0 {
		return err
	}
	return huma.ErrorWithHeaders(err, http.Header{"Retry-After": {retryAfter(f.wait)}})
}
