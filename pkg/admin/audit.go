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

// The audit log is one line for each change that was asked for: who asked, from
// where, for what, and what came of it. It is written when the change has ended,
// also when the caller did not wait for it. A line holds names of the
// configuration, sequences and counts: nothing of an event, and no text that a
// caller chose freely.

// changeWriter notes what an operation answers.
type changeWriter struct {
	http.ResponseWriter
	status  int
	subject []zap.Field // what is to be changed, as the body of the request says
	result  []zap.Field // what was changed, and how much
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

// noted is a huma.Transformer that notes what an operation answers, for the audit
// log.
func noted(ctx huma.Context, _ string, body any) (any, error) {
	_, w := humago.Unwrap(ctx)
	if w, ok := w.(*changeWriter); ok {
		w.result = resultOf(body)
	}
	return body, nil
}

// note keeps what the body of a request says about what is to be changed, for the
// audit log.
func note(ctx huma.Context, fields ...[]zap.Field) []error {
	_, w := humago.Unwrap(ctx)
	if w, ok := w.(*changeWriter); ok {
		for _, f := range fields {
			w.subject = append(w.subject, f...)
		}
	}
	return nil
}

// dry is a field of what only says what it would do.
func dry(run bool) []zap.Field {
	if !run {
		return nil
	}
	return []zap.Field{zap.Bool("dry_run", true)}
}

// audited makes a change and logs it.
func (a *API) audited(to access, who caller, next http.Handler, w http.ResponseWriter, r *http.Request) {
	began, noting := a.Now(), &changeWriter{ResponseWriter: w}
	returned := false
	defer func() {
		if !returned { // it panics; the server ends the connection
			noting.status = http.StatusInternalServerError
		}
		outcome := changeApplied
		if noting.status >= http.StatusBadRequest {
			outcome = changeFailed
		}
		fields := append(append(subjectOf(to.path, r), noting.subject...), noting.result...)
		if r.Context().Err() != nil {
			fields = append(fields, zap.Bool("caller_gone", true))
		}
		fields = append(fields, zap.Duration("took", a.Now().Sub(began)))
		a.audit(to.id, outcome, who, noting.status, fields...)
	}()
	next.ServeHTTP(noting, r)
	returned = true
}

// denied logs a change that a caller may not make.
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

// configured is the form of a name in the configuration. A text of another form names
// nothing that exists, and may be anything, so that it is not logged.
var configured = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)

func named(key, name string) []zap.Field {
	if !configured.MatchString(name) {
		return nil
	}
	return []zap.Field{zap.String(key, name)}
}

// subjectOf is what the path of a request says about what is to be changed, by the
// path of its route.
func subjectOf(route string, r *http.Request) (fields []zap.Field) {
	values := map[string]string{}
	written := strings.Split(r.URL.EscapedPath(), "/")
	for i, part := range strings.Split(route, "/") {
		if strings.HasPrefix(part, "{") && i < len(written) {
			values[strings.Trim(part, "{}")], _ = url.PathUnescape(written[i]) // the server has unescaped it before
		}
	}
	for _, key := range []string{"sink", "source", "seq"} {
		fields = append(fields, named(key, values[key])...)
	}
	id := values["id"]
	if letter, dead := parseAside(id); dead {
		return append(fields, append(named("sink", letter.Sink), zap.Uint64("seq", uint64(letter.Seq)))...)
	}
	if parsed, err := uuid.Parse(id); err == nil {
		fields = append(fields, zap.Stringer("id", parsed))
	}
	return fields
}

// resultOf is what an answer says about what was changed.
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
