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

// Role is the role of a caller. The set is closed.
type Role string

// Roles, in ascending order. A role includes the permissions of the previous roles.
const (
	Nobody   Role = "nobody"   // no valid proof
	Viewer   Role = "viewer"   // read access without personal data
	Operator Role = "operator" // full access
)

// may reports whether r includes the permissions of needed.
func (r Role) may(needed Role) bool {
	rank := map[Role]int{Nobody: 0, Viewer: 1, Operator: 2}
	return rank[r] >= rank[needed]
}

// Keys in the metadata of an operation, and the header with the CSRF token.
const (
	ruleKey   = "postwire-rule"
	kindKey   = "postwire-kind"
	csrfField = "X-CSRF-Token"
)

// rule returns the role that a request needs, by its query.
type rule func(url.Values) Role

// personal is the rule of an operation that includes personal data if a query parameter
// is true. Only operators may see personal data. def is the default of the parameter. An
// invalid value counts as true.
func personal(parameter string, def bool) rule {
	return func(query url.Values) Role {
		shown := def && !query.Has(parameter)
		for _, value := range query[parameter] {
			include, err := strconv.ParseBool(value)
			shown = shown || include || err != nil
		}
		if shown {
			return Operator
		}
		return Viewer
	}
}

// ruled sets the rule of an operation.
func ruled(o huma.Operation, r rule) huma.Operation { return with(o, ruleKey, r) }

// counted sets the kind of an operation.
func counted(o huma.Operation, k kind) huma.Operation { return with(o, kindKey, k) }

func with(o huma.Operation, key string, value any) huma.Operation {
	if o.Metadata == nil {
		o.Metadata = map[string]any{}
	}
	o.Metadata[key] = value
	return o
}

// access is the rule and the kind of an operation.
type access struct {
	id   string // of the operation
	path string // of the route
	rule rule
	kind kind
}

// accessOf returns the access of an operation. Without a rule in the metadata, a GET
// needs the role viewer, and any other method the role operator.
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

// accesses returns the access of every operation, by the pattern of the route.
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

// changes reports whether a request is for a change that needs the role operator.
func (to access) changes(method string) bool {
	return to.id != "" && method != http.MethodGet && method != http.MethodHead && to.rule(nil) == Operator
}

// refusal is an answer of the guard.
type refusal struct {
	status int
	detail string
	wait   time.Duration // for Retry-After; 0 for no retry
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

// retryAfter formats a duration in seconds, rounded up.
func retryAfter(wait time.Duration) string {
	return strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10)
}

// guard authorizes requests. Without a configured token, the port listens on loopback,
// and the remaining threat is a web page that sends requests by a local browser: across
// origins, or by DNS rebinding. For a signed-in browser, such a page is a threat, too,
// so a change by a session needs the CSRF token, which only the console knows.
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
	to, ok := g.accesses[pattern]
	if !ok {
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

// listTimeout limits the time of a list or a search, until the caller has read the
// answer, so that a caller that does not read blocks other callers for a short time only.
const listTimeout = 20 * time.Second

// serve serves an authorized request.
func (g *guard) serve(w http.ResponseWriter, r *http.Request, who caller, to access) {
	// Setting a deadline fails for a writer of a test.
	c := http.NewResponseController(w)
	switch {
	case to.changes(r.Method):
		// A change may take longer than writeTimeout: reconcile, or a page of the
		// dead-letter queue.
		_ = c.SetWriteDeadline(time.Time{})
		g.api.audited(to, who, g.mux, w, r)
		return
	case to.kind == kindList, to.kind == kindSearch:
		_ = c.SetWriteDeadline(time.Now().Add(listTimeout))
	}
	g.mux.ServeHTTP(w, r)
}

// check returns the refusal of an unauthorized request, or nil.
func check(r *http.Request, who caller, to access) *refusal {
	if crossSite(r) && who.proof != proofToken {
		return &refusal{status: http.StatusForbidden, detail: "Cross-site requests are refused."}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // the operation could parse the query differently than the rule
		return &refusal{status: http.StatusBadRequest, detail: "The query is malformed."}
	}
	needed := to.rule(query)
	switch {
	case who.role().may(needed):
		return nil
	case who.role() != Nobody:
		return &refusal{status: http.StatusForbidden, detail: "This operation changes something or shows personal data, and requires the role operator. The token has the role viewer."}
	case who.proof == proofSession:
		return &refusal{status: http.StatusUnauthorized, detail: "The session has ended: sign in again."}
	}
	return &refusal{status: http.StatusUnauthorized, detail: "A bearer token is required: admin.token, or a token of admin.tokens, from the relay's configuration."}
}

// crossSite reports whether a browser marks a request as sent by a page of another
// site. The method does not matter, because an answer costs the relay work even if the
// page cannot read the answer.
func crossSite(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "":
	case "same-origin", "none": // none: the user typed the address
		return false
	default:
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false // not a browser, or a navigation of an old browser, invisible to pages
	}
	u, err := url.Parse(origin)
	return err != nil || u.Host != r.Host
}

// same compares two texts in constant time.
func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want)) // equal lengths
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
