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

// Kinds of proof of a caller.
const (
	proofNone    = "none"
	proofToken   = "token"
	proofSession = "session"
)

// caller is the caller of a request.
type caller struct {
	holder *holder // nil for a stranger
	proof  string
	remote origin
	life   context.Context // done after the proof was revoked
	ends   time.Time       // expiry of the proof; zero for no expiry
}

func (c caller) role() Role {
	if c.holder == nil {
		return Nobody
	}
	return c.holder.role
}

// errSessionOver is the cause of ending requests of an expired session.
var errSessionOver = errors.New("the session is over")

// bound returns a context that ends with the proof of the caller, and a function to
// call after the request.
func (c caller) bound(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.life, func() { cancel(context.Cause(c.life)) })
	if c.ends.IsZero() {
		return ctx, func() { stop(); cancel(nil) }
	}
	ctx, over := context.WithDeadlineCause(ctx, c.ends, errSessionOver)
	return ctx, func() { stop(); over(); cancel(nil) }
}

// origin is the remote address of a request.
type origin struct {
	peer   netip.Addr // at the other end of the connection
	sender netip.Addr // from trusted proxies; invalid if unknown
}

func (a *API) origin(r *http.Request) origin {
	peer := forwarded.Peer(r)
	return origin{peer, a.Proxies.Remote(peer, r)}
}

// fields returns log fields: the sender, and the peer if different.
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

// door authenticates callers by a token, or by the session of a browser.
type door struct {
	api      *API
	sessions *sessions
	attempts *attempts
}

func (a *API) door() *door { return &door{a, newSessions(a.Now), newAttempts(a.Now)} }

// identify returns the caller of a request. A wrong token is refused. A caller without
// a proof, or with the cookie of an ended session, is a stranger.
func (d *door) identify(r *http.Request) (who caller, refused *refusal) {
	who = caller{proof: proofNone, remote: d.api.origin(r)}
	shown := r.Header.Get("Authorization")
	cookie, err := r.Cookie(cookieName)
	switch unlocked := d.api.Credentials.unlocked(); {
	case unlocked != nil && !loopback(r.Host):
		return who, &refusal{status: http.StatusForbidden, detail: "No token is configured: use the address 127.0.0.1, or set admin.token in the configuration."}
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
			return who, &refusal{status: http.StatusForbidden, detail: "The header " + csrfField + " is missing or wrong: a page of another site may have sent the request. Load the console again."}
		}
	}
	return who, nil
}

// authenticate returns the holder of a token. A strong token is accepted whatever the
// number of wrong tokens from its address, so that a stranger behind a shared proxy
// cannot lock out operators. A weak token is not compared while its address is over the
// limit, so that guesses are limited.
func (d *door) authenticate(token string, from origin, proof string) (*holder, *refusal) {
	if h := d.api.Credentials.find(token, false); h != nil {
		return h, nil
	}
	log := d.api.Log.With(append(from.fields(), zap.String("proof", proof))...)
	try := d.attempts.begin(from.sender)
	if try.wait > 0 {
		d.api.Metrics.signIns.WithLabelValues(signInLimited).Inc()
		if try.first {
			log.Warn("admin sign-ins limited: too many wrong tokens from the remote address")
		}
		return nil, &refusal{status: http.StatusTooManyRequests, detail: "Too many wrong tokens from this address: try again later.", wait: try.wait}
	}
	if h := d.api.Credentials.find(token, true); h != nil {
		try.undo()
		return h, nil
	}
	d.api.Metrics.signIns.WithLabelValues(signInRefused).Inc()
	log.Warn("admin sign-in refused: wrong token")
	return nil, &refusal{status: http.StatusUnauthorized, detail: "Wrong token. Use admin.token, admin.viewer_token or a token of admin.tokens from the relay's configuration."}
}

// Session is the role and the name of the caller.
type Session struct {
	Role     Role       `json:"role" enum:"nobody,viewer,operator" doc:"Role of the caller. nobody: the caller must sign in."`
	Name     string     `json:"name,omitempty" doc:"Name of the caller's token, as in the audit log."`
	CSRF     string     `json:"csrf,omitempty" doc:"Value of the header X-CSRF-Token, required for changes by a session."`
	Ends     *time.Time `json:"ends,omitempty" doc:"Expiry of the session."`
	Unlocked bool       `json:"unlocked,omitempty" doc:"Whether no token is configured, so that every user of the relay's machine has full access."`
}

// Caller is the input of requests to sign in or out.
type Caller struct {
	Cookie    string `cookie:"postwire_session"`
	Forwarded string `header:"X-Forwarded-Proto" doc:"https if a proxy terminates TLS. The browser then sends the session cookie over HTTPS only."`

	tls     bool
	request *http.Request
}

// Resolve implements huma.Resolver.
func (h *Caller) Resolve(c huma.Context) []error {
	h.tls = c.TLS() != nil || strings.EqualFold(h.Forwarded, "https")
	h.request, _ = humago.Unwrap(c)
	return nil
}

// cookie returns the session cookie with a maximum age; a negative age removes the
// cookie.
func (h *Caller) cookie(value string, age time.Duration) http.Cookie {
	return http.Cookie{ //nolint:gosec // Secure with TLS only: a browser does not send a Secure cookie over HTTP
		Name: cookieName, Value: value, Path: BasePath + "/", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: h.tls, SameSite: http.SameSiteStrictMode,
	}
}

// session returns role and name of the caller of a session; nil for no session.
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

// signIn registers the operations for sessions.
func (d *door) signIn(api huma.API) {
	type output struct {
		SetCookie http.Cookie `header:"Set-Cookie"`
		Body      Session
	}
	open := rule(func(url.Values) Role { return Nobody })
	huma.Register(api, ruled(operation("show-session", http.MethodGet, "/session", "Show role and name of the caller"), open),
		func(_ context.Context, in *Caller) (*struct{ Body Session }, error) {
			return &struct{ Body Session }{d.session(d.sessions.find(in.Cookie))}, nil
		})
	huma.Register(api, ruled(operation("begin-session", http.MethodPost, "/session", "Sign in: begin a session and set its cookie", 422, 429), open),
		func(_ context.Context, in *struct {
			Caller
			Body struct {
				Token string `json:"token" minLength:"1" doc:"admin.token, admin.viewer_token or a token of admin.tokens in the configuration."`
			}
		},
		) (*output, error) {
			from := d.api.origin(in.request)
			h, refused := d.authenticate(in.Body.Token, from, proofSession)
			if refused != nil {
				return nil, refused.asError()
			}
			d.sessions.end(in.Cookie)
			id, started := d.sessions.begin(h)
			d.api.Metrics.signIns.WithLabelValues(signInAccepted).Inc()
			d.api.Log.Info("console session started", append(from.fields(), zap.String("by", h.name), zap.String("role", string(h.role)))...)
			return &output{in.cookie(id, sessionAge), d.session(started)}, nil
		})
	huma.Register(api, ruled(operation("end-session", http.MethodDelete, "/session", "Sign out: end the session"), rule(func(url.Values) Role { return Viewer })),
		func(_ context.Context, in *Caller) (*output, error) {
			d.sessions.end(in.Cookie)
			return &output{in.cookie("", -time.Second), d.session(nil)}, nil
		})
}

// asError returns the refusal as the error of an operation.
func (f *refusal) asError() error {
	err := huma.NewError(f.status, f.detail)
	if f.wait == 0 {
		return err
	}
	return huma.ErrorWithHeaders(err, http.Header{"Retry-After": {retryAfter(f.wait)}})
}
