package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
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

// What an operation says of itself in its metadata, and the header by which our own
// page shows that it asks.
const (
	ruleKey   = "postwire-rule"
	kindKey   = "postwire-kind"
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

// ruled gives an operation a rule of its own.
func ruled(o huma.Operation, r rule) huma.Operation { return with(o, ruleKey, r) }

// counted makes an operation one of a kind.
func counted(o huma.Operation, k kind) huma.Operation { return with(o, kindKey, k) }

func with(o huma.Operation, key string, value any) huma.Operation {
	if o.Metadata == nil {
		o.Metadata = map[string]any{}
	}
	o.Metadata[key] = value
	return o
}

// access is who may use an operation, and which requests it is counted with.
type access struct {
	id   string // of the operation
	path string // of its route
	rule rule
	kind kind
}

// accessOf is that of an operation. One that says nothing of itself is for those who
// may look if it is a GET, and for operators otherwise.
func accessOf(o *huma.Operation) access {
	to := access{o.OperationID, o.Path, func(url.Values) Role { return Operator }, kindPlain}
	if o.Method == http.MethodGet {
		to.rule = func(url.Values) Role { return Viewer }
	}
	if own, ok := o.Metadata[ruleKey].(rule); ok {
		to.rule = own
	}
	if own, ok := o.Metadata[kindKey].(kind); ok {
		to.kind = own
	}
	return to
}

// accesses are those of all operations, by the pattern of their route.
func accesses(described *huma.OpenAPI) map[string]access {
	all := map[string]access{}
	for path, item := range described.Paths {
		for _, o := range []*huma.Operation{item.Get, item.Put, item.Post, item.Delete, item.Patch} {
			if o != nil {
				all[o.Method+" "+path] = accessOf(o)
			}
		}
	}
	return all
}

// changes reports whether a request is one for a change that operators may make.
func (to access) changes(method string) bool {
	return to.id != "" && method != http.MethodGet && method != http.MethodHead && to.rule(nil) == Operator
}

// refusal is an answer of the guard.
type refusal struct {
	status int
	detail string
	wait   time.Duration // until it is worth asking again; 0 is never
}

func (f *refusal) write(w http.ResponseWriter) {
	if f.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="postwire"`)
	}
	if f.wait > 0 {
		w.Header().Set("Retry-After", retryAfter(f.wait))
	}
	problem(w, f.status, f.detail)
}

// retryAfter is a time in whole seconds, rounded up.
func retryAfter(wait time.Duration) string {
	return strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10)
}

// guard lets those through who may ask. Where no token is configured, the port is
// on loopback, and what is left to fear is a web page that makes its reader's
// browser ask: by a request across origins, or by a name that it lets point
// here. The same page is to be feared by who has signed in, so that a request
// that changes something must show besides what only our own page knows.
type guard struct {
	*door
	mux      *http.ServeMux
	accesses map[string]access
	rooms    map[kind]*room
}

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if strings.HasPrefix(r.URL.Path, BasePath+"/openapi") {
		g.mux.ServeHTTP(w, r)
		return
	}
	_, pattern := g.mux.Handler(r)
	to, known := g.accesses[pattern]
	if !known {
		to = access{rule: func(url.Values) Role { return Viewer }, kind: kindPlain}
	}
	who, refused := g.identify(r)
	if refused == nil {
		refused = check(r, who, to)
	}
	if refused != nil {
		if who.role() != Nobody && to.changes(r.Method) {
			g.api.denied(to, who, refused.status, r)
		}
		refused.write(w)
		return
	}
	if who.role() == Nobody {
		g.mux.ServeHTTP(w, r)
		return
	}
	proven(r)
	ctx, done := who.bound(r.Context())
	defer done()
	leave, ok := g.rooms[to.kind].enter(ctx, who.role())
	if !ok {
		g.api.Metrics.busy.WithLabelValues(string(to.kind)).Inc()
		busy(to.kind).write(w)
		return
	}
	defer leave()
	g.serve(w, r.WithContext(ctx), who, to)
}

// readWithin is the longest time for a list or a page of a search, from the request
// until its answer has been read: whoever does not read keeps nobody out for long.
const readWithin = 20 * time.Second

// serve answers a request that may be made.
func (g *guard) serve(w http.ResponseWriter, r *http.Request, who caller, to access) {
	// There is no deadline to set where the writer is none of the server's own, as in
	// tests.
	c := http.NewResponseController(w)
	switch {
	case to.changes(r.Method):
		// A change may take longer than an answer may: a comparison with a sender's
		// history, a page of the dead-letter queue.
		_ = c.SetWriteDeadline(time.Time{})
		g.api.audited(to, who, g.mux, w, r)
		return
	case to.kind == kindList, to.kind == kindSearch:
		_ = c.SetWriteDeadline(time.Now().Add(readWithin))
	}
	g.mux.ServeHTTP(w, r)
}

// check says why a caller may not make a request, or nil.
func check(r *http.Request, who caller, to access) *refusal {
	if crossSite(r) && who.proof != proofToken {
		return &refusal{status: http.StatusForbidden, detail: "A page of another site may not ask."}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // others might read it otherwise than the rule does
		return &refusal{status: http.StatusBadRequest, detail: "The query cannot be read."}
	}
	needed := to.rule(query)
	switch {
	case who.role().may(needed):
		return nil
	case who.role() != Nobody:
		return &refusal{status: http.StatusForbidden, detail: "This is for operators: it changes something, or shows personal data. The token is one of a viewer."}
	case who.proof == proofSession:
		return &refusal{status: http.StatusUnauthorized, detail: "The session has ended: sign in again."}
	}
	return &refusal{status: http.StatusUnauthorized, detail: "A bearer token is needed: admin.token, or one of admin.tokens, of the relay's configuration."}
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
