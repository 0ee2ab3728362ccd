package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/forwarded"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// BasePath is where the API is on the admin port. Its description, OpenAPI
// 3.1, is at BasePath/openapi.json.
const BasePath = "/api/v1"

// API is what the API needs besides a Server's own.
type API struct {
	Journal interface {
		journal.Log
		journal.DeadLetterStore
		journal.QuarantineStore
		Usage() journal.Usage
		Check() error
	}
	Engine string // of the journal
	Name   string // of this process
	Relay  *relay.Relay
	// Understand reads a quarantined request again, as its source does
	// today.
	Understand func(journal.QuarantinedRequest) ([]event.Event, error)
	// Attributes are the attributes that events of the configured sources can
	// have, for filters.
	Attributes func() []string
	// Reconcile compares with a sender's history; its error wraps ErrNoHistory
	// where there is none.
	Reconcile   func(ctx context.Context, source string, from, to time.Time, dry bool) (reconcile.Report, error)
	Credentials *Credentials      // of the callers
	Proxies     forwarded.Proxies // whose word is taken for where a caller is
	Metrics     *Metrics
	Version     string
	Level       zap.AtomicLevel // of the log
	// Reload reads the configuration again, and returns what has changed.
	Reload func(ctx context.Context) ([]string, error)
	// Configuration is the one in effect; Sources are those of it, without what
	// they have received; Registration asks a sender where it sends.
	Configuration func() (Configuration, error)
	Sources       func() []Source
	Registration  func(ctx context.Context, source string) (Registration, error)
	History       *MetricsRing
	// AsyncAPI describes what the configuration in effect sends.
	AsyncAPI func() (map[string]any, error)
	Now      func() time.Time
	Log      *zap.Logger
	Scrub    *config.Scrubber // of the errors that are served
}

// handler serves the API and its description.
func (a *API) handler() http.Handler {
	mux, d := http.NewServeMux(), a.door()
	described := a.register(mux, d)
	a.Metrics.know(described)
	return &guard{d, mux, accesses(described), rooms()}
}

// described is the description of the API.
func (a *API) described() *huma.OpenAPI { return a.register(http.NewServeMux(), a.door()) }

// register puts all operations on a mux, and returns their description.
func (a *API) register(mux *http.ServeMux, d *door) *huma.OpenAPI {
	c := huma.DefaultConfig("Postwire admin API", a.Version)
	c.Info.Description = "What operators and their scripts ask of a running relay. Errors are RFC 9457 problems."
	c.OpenAPIPath = BasePath + "/openapi"
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	c.RejectUnknownQueryParameters = true
	c.Transformers = append(c.Transformers, a.scrubbed, noted)
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer":  {Type: "http", Scheme: "bearer", Description: "A token of the configuration: of an operator, admin.token or one of admin.tokens, for everything; of a viewer, admin.viewer_token or one of admin.tokens, for what changes nothing and shows no personal data. Without a token the API answers callers on the same machine only."},
		"session": {Type: "apiKey", In: "cookie", Name: cookieName, Description: "Of a browser that has signed in. What changes something needs the header X-CSRF-Token besides."},
	}
	c.Security = []map[string][]string{{"bearer": {}}, {"session": {}}}
	api := humago.New(mux, c)
	d.signIn(api)
	a.dlq(api)
	a.replays(api)
	a.tail(api)
	a.events(api)
	a.sinks(api)
	a.unconfigured(api)
	a.figures(api)
	a.sources(api)
	a.configuration(api)
	a.reconciling(api)
	a.status(api)
	a.logLevel(api)
	a.reload(api)
	a.asyncAPI(api)
	return api.OpenAPI()
}

// scrubbed takes secrets out of the problems that the API answers: they tell of
// the errors of clients and of the journal.
func (a *API) scrubbed(_ huma.Context, _ string, body any) (any, error) {
	p, ok := body.(*huma.ErrorModel)
	if !ok {
		return body, nil
	}
	clean := *p
	clean.Detail = a.Scrub.Text(p.Detail)
	clean.Errors = make([]*huma.ErrorDetail, len(p.Errors))
	for i, e := range p.Errors {
		clean.Errors[i] = &huma.ErrorDetail{Message: a.Scrub.Text(e.Message), Location: e.Location, Value: a.scrubbedValue(e.Value)}
	}
	return &clean, nil
}

// scrubbedValue is a value of a request that the answer shows: a text without
// secrets, a number or a truth value. Anything else may hold a secret in its depth,
// and is left out.
func (a *API) scrubbedValue(value any) any {
	switch v := value.(type) {
	case string:
		return a.Scrub.Text(v)
	case bool, int, int64, uint64, float64:
		return v
	}
	return nil
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(&huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: detail}) // nobody to tell
}

// failed turns an error of the journal or the relay into an answer.
func failed(err error) error {
	if _, ok := errors.AsType[huma.StatusError](err); ok || err == nil {
		return err
	}
	switch {
	case errors.Is(err, journal.ErrNotFound), errors.Is(err, relay.ErrNoSink):
		return huma.Error404NotFound(err.Error())
	case errors.Is(err, relay.ErrInvalid):
		return huma.Error422UnprocessableEntity(err.Error())
	case errors.Is(err, relay.ErrState):
		return huma.Error409Conflict(err.Error())
	case errors.Is(err, journal.ErrFull), errors.Is(err, journal.ErrUnavailable), errors.Is(err, journal.ErrClosed):
		return huma.Error503ServiceUnavailable(err.Error())
	}
	return huma.Error500InternalServerError(err.Error())
}

// When is a moment as people say it: an RFC 3339 time, or how long ago, such
// as 2h; empty is the zero time.
type When string

// Time returns the moment, seen from now.
func (w When) Time(now time.Time) (time.Time, error) {
	if w == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, string(w)); err == nil {
		return t, nil
	}
	ago, err := time.ParseDuration(strings.TrimPrefix(string(w), "-"))
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 2h", string(w))
	}
	return now.Add(-ago), nil
}

// times reads moments, or answers which one makes no sense.
func (a *API) times(where map[string]When) (map[string]time.Time, error) {
	times := map[string]time.Time{}
	for name, w := range where {
		t, err := w.Time(a.Now())
		if err != nil {
			return nil, huma.Error422UnprocessableEntity(name + ": " + err.Error())
		}
		times[name] = t
	}
	return times, nil
}

func operation(id, method, path, summary string, statuses ...int) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: BasePath + path, Summary: summary,
		Errors: append(statuses, http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable),
	}
}

// attributes is a CloudEvent in JSON; without its data unless that is asked
// for, because it is personal.
func attributes(e event.Event, data bool) (json.RawMessage, error) {
	if !data {
		e.CloudEvent.DataEncoded = nil
	}
	body, _, err := event.Structured(e)
	return body, err
}

// ReplayRequest is the body of a request for a replay.
type ReplayRequest struct {
	Sink    string `json:"sink" minLength:"1" doc:"Name of the sink."`
	From    When   `json:"from" minLength:"1" doc:"Events accepted from this time on: RFC 3339, or how long ago, such as 2h." example:"2h"`
	To      When   `json:"to,omitempty" doc:"And before this one; empty is now." example:"1h"`
	Filter  string `json:"filter,omitempty" doc:"CEL expression over the attributes; the filter of the sink must match, too." example:"platform == \"instagram\""`
	Subject string `json:"subject,omitempty" doc:"Subject to use instead of the sink's, for sinks that have one."`
	Topic   string `json:"topic,omitempty" doc:"Topic to use instead of the sink's, for sinks that have one."`
	Rate    int    `json:"rate,omitempty" minimum:"1" default:"1000" doc:"Most events a second."`
	DryRun  bool   `json:"dry_run,omitempty" doc:"Only say what would be sent."`
}

// Resolve implements huma.Resolver.
func (r *ReplayRequest) Resolve(ctx huma.Context) []error {
	return note(ctx, named("sink", r.Sink), dry(r.DryRun))
}

type (
	replayInput struct {
		ID string `path:"id" doc:"ID of the replay."`
	}
	replayOutput struct{ Body relay.Replay }
)

func (a *API) replays(api huma.API) {
	huma.Register(api, operation("start-replay", http.MethodPost, "/replays", "Send stored events to one sink again, beside live traffic", 404, 422),
		func(ctx context.Context, in *struct{ Body ReplayRequest }) (*replayOutput, error) {
			spec, err := a.spec(in.Body)
			if err != nil {
				return nil, err
			}
			do := a.Relay.StartReplay
			if in.Body.DryRun {
				do = a.Relay.PlanReplay
			}
			re, err := do(ctx, spec)
			return &replayOutput{re}, failed(err)
		})
	huma.Register(api, operation("list-replays", http.MethodGet, "/replays", "The replays there are, the newest first"),
		func(context.Context, *struct{}) (*struct {
			Body struct {
				Replays []relay.Replay `json:"replays"`
			}
		}, error,
		) {
			var out struct {
				Body struct {
					Replays []relay.Replay `json:"replays"`
				}
			}
			out.Body.Replays = a.Relay.Replays()
			return &out, nil
		})
	huma.Register(api, operation("show-replay", http.MethodGet, "/replays/{id}", "How far a replay is", 404),
		func(_ context.Context, in *replayInput) (*replayOutput, error) {
			re, err := a.Relay.Replay(in.ID)
			return &replayOutput{re}, failed(err)
		})
	for word, do := range map[string]func(context.Context, string) (relay.Replay, error){
		"stop": a.Relay.StopReplay, "continue": a.Relay.ContinueReplay,
	} {
		huma.Register(api, operation(word+"-replay", http.MethodPost, "/replays/{id}/"+word, strings.ToUpper(word[:1])+word[1:]+" a replay", 404, 409),
			func(ctx context.Context, in *replayInput) (*replayOutput, error) {
				re, err := do(ctx, in.ID)
				return &replayOutput{re}, failed(err)
			})
	}
}

func (a *API) spec(r ReplayRequest) (relay.ReplaySpec, error) {
	times, err := a.times(map[string]When{"from": r.From, "to": r.To})
	if err != nil {
		return relay.ReplaySpec{}, err
	}
	if err := a.checkFilter(r.Filter); err != nil {
		return relay.ReplaySpec{}, huma.Error422UnprocessableEntity("validation failed", &huma.ErrorDetail{Message: err.Error(), Location: "body.filter"})
	}
	spec := relay.ReplaySpec{Sink: r.Sink, From: times["from"], To: times["to"], Filter: r.Filter, Rate: r.Rate, Keys: map[string]string{}}
	if spec.To.IsZero() {
		spec.To = a.Now()
	}
	if r.Subject != "" {
		spec.Keys["subject"] = r.Subject
	}
	if r.Topic != "" {
		spec.Keys["topic"] = r.Topic
	}
	return spec, nil
}
