package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"
)

// Role is what a caller may do. The set is closed.
type Role string

// The roles there are. What one may, those below it may too.
const (
	Nobody   Role = "nobody"   // has shown nothing, or nothing that is right
	Viewer   Role = "viewer"   // may look, and is shown no personal data
	Operator Role = "operator" // may everything
)

// may reports whether r is allowed what needs the other one.
func (r Role) may(needed Role) bool {
	rank := map[Role]int{Nobody: 0, Viewer: 1, Operator: 2}
	return rank[r] >= rank[needed]
}

// The part of a rule that an operation says of itself.
const (
	ruleKey   = "postwire-rule" // in the metadata of an operation
	csrfField = "X-CSRF-Token"
)

// rule says which role a request needs.
type rule func(url.Values) Role

// personal is the rule of what shows personal data, to operators only, if the
// query says so by a parameter; unsaid is what it means where it is left out.
// Whatever is not plainly no is yes.
func personal(parameter string, unsaid bool) rule {
	return func(query url.Values) Role {
		shown := unsaid && !query.Has(parameter)
		for _, value := range query[parameter] {
			said, err := strconv.ParseBool(value)
			shown = shown || said || err != nil
		}
		if shown {
			return Operator
		}
		return Viewer
	}
}

func open(url.Values) Role { return Nobody }

// ruled gives an operation a rule of its own.
func ruled(o huma.Operation, r rule) huma.Operation {
	o.Metadata = map[string]any{ruleKey: r}
	return o
}

// rulesOf are those of all operations, by the pattern of their route. What says
// nothing of itself is for those who may look if it is a GET, and for operators
// otherwise.
func rulesOf(described *huma.OpenAPI) map[string]rule {
	rules := map[string]rule{}
	for path, item := range described.Paths {
		for method, o := range map[string]*huma.Operation{
			http.MethodGet: item.Get, http.MethodPut: item.Put, http.MethodPost: item.Post, http.MethodDelete: item.Delete, http.MethodPatch: item.Patch,
		} {
			if o == nil {
				continue
			}
			r, own := o.Metadata[ruleKey].(rule)
			switch {
			case own:
			case method == http.MethodGet:
				r = func(url.Values) Role { return Viewer }
			default:
				r = func(url.Values) Role { return Operator }
			}
			rules[method+" "+path] = r
		}
	}
	return rules
}

// guard lets those through who may ask. Where no token is needed, the port is
// on loopback, and what is left to fear is a web page that makes its reader's
// browser ask: by a request across origins, or by a name that it lets point
// here. The same page is to be feared by who has signed in, so that a request
// that changes something must show besides what only our own page knows.
func (a *API) guard(mux *http.ServeMux, s *sessions, rules map[string]rule) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if strings.HasPrefix(r.URL.Path, BasePath+"/openapi") {
			mux.ServeHTTP(w, r)
			return
		}
		role, by := Nobody, "nothing"
		switch cookie, err := r.Cookie(cookieName); {
		case a.Token() == "" && !loopback(r.Host):
			problem(w, http.StatusForbidden, "Ask by the address 127.0.0.1, or set admin.token in the configuration.")
			return
		case a.Token() == "":
			role, by = Operator, "no token"
		case r.Header.Get("Authorization") != "":
			by = "token"
			scheme, shown, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			if strings.EqualFold(scheme, "Bearer") {
				role = a.roleOf(shown)
			}
		case err == nil:
			by = "session"
			in := s.find(cookie.Value, a.roleOf)
			if in == nil {
				break
			}
			if safe := r.Method == http.MethodGet || r.Method == http.MethodHead; !safe && !same(r.Header.Get(csrfField), in.csrf) {
				problem(w, http.StatusForbidden, "The header "+csrfField+" is missing or wrong: a page of another site may have asked. Load the console again.")
				return
			}
			role = in.role
			// What is followed ends with the session.
			ctx, cancel := context.WithDeadline(r.Context(), in.ends)
			defer cancel()
			defer context.AfterFunc(in.life, cancel)() //nolint:contextcheck // it is the session's life that ends this one
			r = r.WithContext(ctx)
		}
		if crossSite(r) && by != "token" {
			problem(w, http.StatusForbidden, "A page of another site may not ask.")
			return
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil { // others might read it otherwise than the rule does
			problem(w, http.StatusBadRequest, "The query cannot be read.")
			return
		}
		_, pattern := mux.Handler(r)
		needed, known := Viewer, false
		if rule := rules[pattern]; rule != nil {
			needed, known = rule(query), true
		}
		switch {
		case role.may(needed):
		case role == Nobody:
			w.Header().Set("WWW-Authenticate", `Bearer realm="postwire"`)
			detail := "A bearer token is needed: admin.token of the relay's configuration."
			if by == "session" {
				detail = "The session has ended: sign in again."
			}
			problem(w, http.StatusUnauthorized, detail)
			return
		default:
			problem(w, http.StatusForbidden, "This is for operators, who show admin.token: it changes something, or shows personal data.")
			return
		}
		if known && needed == Operator && r.Method != http.MethodGet {
			// A change may take longer than an answer may: a comparison with a sender's
			// history, a page of the dead-letter queue. There is no deadline to clear
			// where the writer is none of the server's own, as in tests.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
			// Not the path: it may hold what an event is called by.
			a.Log.Info("an operator asked for a change", zap.String("what", pattern), zap.String("by", by))
		}
		mux.ServeHTTP(w, r)
	})
}

// crossSite reports whether a browser says that a page of another site makes a
// request, of whatever method: an answer costs the relay work even where the page
// cannot read it.
func crossSite(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "":
	case "same-origin", "none": // none: a person typed the address
		return false
	default:
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false // no browser, or a navigation of an old one, which shows no answer to a page
	}
	u, err := url.Parse(origin)
	return err != nil || u.Host != r.Host
}

// roleOf is the role of who shows a token.
func (a *API) roleOf(token string) Role {
	operator, viewer := a.Token(), a.viewerToken()
	switch {
	case operator != "" && same(token, operator):
		return Operator
	case viewer != "" && same(token, viewer):
		return Viewer
	}
	return Nobody
}

func (a *API) viewerToken() string {
	if a.ViewerToken == nil {
		return ""
	}
	return a.ViewerToken()
}

// same compares in a time that tells nothing of either.
func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want)) // of one length
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

const (
	cookieName = "postwire_session"
	// A session is for a working day, and is not made longer: whoever finds a
	// browser open the next morning finds it signed out.
	sessionFor   = 8 * time.Hour
	mostSessions = 1000
)

// sessions are those of browsers that have signed in. They are kept in memory
// only: after a restart one signs in again.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	open map[string]*session // by what the cookie holds
}

type session struct {
	token string // that was shown; a rotated one opens nothing any more
	role  Role
	csrf  string
	ends  time.Time
	life  context.Context // done when it was signed out
	end   context.CancelFunc
}

// begin opens a session for who shows a token, and returns what the cookie is to hold.
func (s *sessions) begin(token string, role Role) (id string, in *session) {
	in = &session{token: token, role: role, csrf: rand.Text(), ends: s.now().Add(sessionFor)}
	in.life, in.end = context.WithCancel(context.Background())
	id = rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	var first string // to end
	for id, other := range s.open {
		if !s.now().Before(other.ends) {
			other.end()
			delete(s.open, id)
		} else if first == "" || other.ends.Before(s.open[first].ends) {
			first = id
		}
	}
	if len(s.open) >= mostSessions {
		s.open[first].end()
		delete(s.open, first)
	}
	s.open[id] = in
	return id, in
}

// find returns the session of a cookie, or nil where there is none, where it is
// over, or where its token opens nothing any more.
func (s *sessions) find(id string, roleOf func(token string) Role) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.open[id]
	if in == nil {
		return nil
	}
	if !s.now().Before(in.ends) || roleOf(in.token) != in.role {
		in.end()
		delete(s.open, id)
		return nil
	}
	return in
}

// end closes a session.
func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if in := s.open[id]; in != nil {
		in.end()
		delete(s.open, id)
	}
}

// Session is who a browser is signed in as.
type Session struct {
	Role     Role       `json:"role" enum:"nobody,viewer,operator" doc:"What the caller may do; nobody has to sign in."`
	CSRF     string     `json:"csrf,omitempty" doc:"What requests that change something have to show as X-CSRF-Token, where they come with the session's cookie."`
	Ends     *time.Time `json:"ends,omitempty" doc:"When one has to sign in again."`
	Unlocked bool       `json:"unlocked,omitempty" doc:"No token is configured: whoever is on the relay's machine may everything."`
}

// Caller is how a request to sign in or out came.
type Caller struct {
	Cookie    string `cookie:"postwire_session"`
	Forwarded string `header:"X-Forwarded-Proto" doc:"https where a proxy speaks TLS: then the cookie is sent over nothing else."`

	tls bool
}

// Resolve implements huma.Resolver.
func (h *Caller) Resolve(c huma.Context) []error {
	h.tls = c.TLS() != nil || strings.EqualFold(h.Forwarded, "https")
	return nil
}

// cookie is the one that holds a value for a time; less than no time removes it.
func (h *Caller) cookie(value string, age time.Duration) http.Cookie {
	return http.Cookie{ //nolint:gosec // Secure where TLS is spoken: without it the browser would not send the cookie back
		Name: cookieName, Value: value, Path: BasePath + "/", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: h.tls, SameSite: http.SameSiteStrictMode,
	}
}

// signIn is how a browser gets a session.
func (a *API) signIn(api huma.API, s *sessions) {
	type output struct {
		SetCookie http.Cookie `header:"Set-Cookie"`
		Body      Session
	}
	said := func(in *session) Session {
		switch {
		case a.Token() == "":
			return Session{Role: Operator, Unlocked: true}
		case in == nil:
			return Session{Role: Nobody}
		}
		ends := in.ends.UTC()
		return Session{Role: in.role, CSRF: in.csrf, Ends: &ends}
	}
	huma.Register(api, ruled(operation("show-session", http.MethodGet, "/session", "Who the caller is signed in as"), open),
		func(_ context.Context, in *Caller) (*struct{ Body Session }, error) {
			return &struct{ Body Session }{said(s.find(in.Cookie, a.roleOf))}, nil
		})
	huma.Register(api, ruled(operation("begin-session", http.MethodPost, "/session", "Sign a browser in: the answer sets a cookie", 422), open),
		func(_ context.Context, in *struct {
			Caller
			Body struct {
				Token string `json:"token" minLength:"1" doc:"admin.token or admin.viewer_token of the configuration."`
			}
		},
		) (*output, error) {
			role := a.roleOf(in.Body.Token)
			if role == Nobody {
				return nil, huma.Error401Unauthorized("This token opens nothing. It is admin.token or admin.viewer_token of the relay's configuration.")
			}
			s.end(in.Cookie)
			id, begun := s.begin(in.Body.Token, role)
			a.Log.Info("somebody signed in to the console", zap.String("role", string(role)))
			return &output{in.cookie(id, sessionFor), said(begun)}, nil
		})
	huma.Register(api, ruled(operation("end-session", http.MethodDelete, "/session", "Sign a browser out"), func(url.Values) Role { return Viewer }),
		func(_ context.Context, in *Caller) (*output, error) {
			s.end(in.Cookie)
			return &output{in.cookie("", -time.Second), said(nil)}, nil
		})
}
