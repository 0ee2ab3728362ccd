package admin

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// The audit log has one line per requested change, with the caller, the remote
// address, the object and the result. The line is written when the change has ended,
// even if the caller has disconnected. A line contains names of the configuration,
// sequences and counts; no attribute or data of an event, and no free text of a caller.

// changeWriter records the answer of an operation.
type changeWriter struct {
	http.ResponseWriter
	status  int
	subject []zap.Field // object of the change, from the body of the request
	result  []zap.Field // result of the change, from the answer
}

// WriteHeader implements http.ResponseWriter.
func (w *changeWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *changeWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the writer of the server.
func (w *changeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// recordResult is a huma.Transformer that records the answer of an operation, for the
// audit log.
func recordResult(ctx huma.Context, _ string, body any) (any, error) {
	_, w := humago.Unwrap(ctx)
	if w, ok := w.(*changeWriter); ok {
		w.result = resultOf(body)
	}
	return body, nil
}

// addSubject records the object of a change from the body of a request, for the audit
// log.
func addSubject(ctx huma.Context, fields ...[]zap.Field) []error {
	_, w := humago.Unwrap(ctx)
	if w, ok := w.(*changeWriter); ok {
		for _, f := range fields {
			w.subject = append(w.subject, f...)
		}
	}
	return nil
}

// dry is the audit field of a dry run.
func dry(run bool) []zap.Field {
	if !run {
		return nil
	}
	return []zap.Field{zap.Bool("dry_run", true)}
}

// audited runs an operation that changes something, and writes the audit line.
func (a *API) audited(to access, who caller, next http.Handler, w http.ResponseWriter, r *http.Request) {
	began, recorder := a.Now(), &changeWriter{ResponseWriter: w}
	returned := false
	defer func() {
		if !returned { // the operation panics; the server closes the connection
			recorder.status = http.StatusInternalServerError
		}
		outcome := changeApplied
		if recorder.status >= http.StatusBadRequest {
			outcome = changeFailed
		}
		fields := append(append(subjectOf(to.path, r), recorder.subject...), recorder.result...)
		if r.Context().Err() != nil {
			fields = append(fields, zap.Bool("caller_gone", true))
		}
		fields = append(fields, zap.Duration("took", a.Now().Sub(began)))
		a.audit(to.id, outcome, who, recorder.status, fields...)
	}()
	next.ServeHTTP(recorder, r)
	returned = true
}

// denied writes the audit line of a denied change.
func (a *API) denied(to access, who caller, status int, r *http.Request) {
	a.audit(to.id, changeDenied, who, status, subjectOf(to.path, r)...)
}

func (a *API) audit(operation, outcome string, who caller, status int, fields ...zap.Field) {
	a.Metrics.changes.WithLabelValues(operation, outcome).Inc()
	by := who.holder.name
	if by == "" {
		by = "anybody" // no token is configured
	}
	all := append([]zap.Field{zap.String("operation", operation), zap.String("outcome", outcome), zap.Int("status", status), zap.String("by", by), zap.String("role", string(who.role())), zap.String("proof", who.proof)}, who.remote.fields()...)
	log := a.Log.Info
	if outcome != changeApplied {
		log = a.Log.Warn
	}
	log("admin change "+outcome, append(all, fields...)...)
}

// configured matches names of the configuration. The audit log omits any other text,
// which cannot be a configured name and may be any text of the caller.
var configured = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)

func named(key, name string) []zap.Field {
	if !configured.MatchString(name) {
		return nil
	}
	return []zap.Field{zap.String(key, name)}
}

// subjectOf returns the object of a change from the path of a request. route is the
// path of the operation, with parameters in braces.
func subjectOf(route string, r *http.Request) (fields []zap.Field) {
	values := map[string]string{}
	written := strings.Split(r.URL.EscapedPath(), "/")
	for i, part := range strings.Split(route, "/") {
		if strings.HasPrefix(part, "{") && i < len(written) {
			values[strings.Trim(part, "{}")], _ = url.PathUnescape(written[i]) // valid, because the server has unescaped the path before
		}
	}
	for _, key := range []string{"sink", "source", "seq"} {
		fields = append(fields, named(key, values[key])...)
	}
	id := values["id"]
	if letter, dead := parseDeadLetterID(id); dead {
		return append(fields, append(named("sink", letter.Sink), zap.Uint64("seq", uint64(letter.Seq)))...)
	}
	if parsed, err := uuid.Parse(id); err == nil {
		fields = append(fields, zap.Stringer("id", parsed))
	}
	return fields
}

// resultOf returns the result of a change from the body of the answer.
func resultOf(body any) []zap.Field {
	switch b := body.(type) {
	case ActionResult:
		return []zap.Field{zap.Bool("done", b.Done)}
	case ActionPage:
		done := 0
		for _, e := range b.Entries {
			if e.Done {
				done++
			}
		}
		return []zap.Field{zap.Int("done", done), zap.Int("failed", len(b.Entries)-done)}
	case relay.Replay:
		return []zap.Field{zap.String("replay", b.ID), zap.String("state", string(b.State)), zap.Int("events", b.Total)}
	case DeletedSink:
		return []zap.Field{zap.Uint64("discarded", b.Discarded)}
	case LogLevel:
		return []zap.Field{zap.String("level", b.Level)}
	case ReloadResult:
		return []zap.Field{zap.Strings("changed", b.Changed)}
	case reconcile.Report:
		return []zap.Field{zap.Int("uploads", b.Uploads), zap.Int("recovered", b.Recovered)}
	}
	return nil
}
