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

// BasePath is the path of the API on the admin port. The OpenAPI 3.1 document is at
// BasePath/openapi.json.
const BasePath = "/api/v1"

// API has the dependencies of the admin API.
type API struct {
	Journal interface {
		journal.Log
		journal.DeadLetterStore
		journal.QuarantineStore
		Usage() journal.Usage
		Check() error
	}
	Engine string // of the journal
	Name   string // of this relay
	Relay  *relay.Relay
	// Renormalize converts a quarantined request again, by the current settings of its
	// source.
	Renormalize func(journal.QuarantinedRequest) ([]event.Event, error)
	// Attributes are the names of attributes that the configured sources can set, for
	// checks of filters.
	Attributes func() []string
	// Reconcile compares stored events with a sender's history. An error wraps
	// ErrNoHistory if the source has no history.
	Reconcile   func(ctx context.Context, source string, from, to time.Time, dry bool) (reconcile.Report, error)
	Credentials *Credentials
	Proxies     forwarded.Proxies // trusted for the address of a caller
	Metrics     *Metrics
	Version     string
	Level       zap.AtomicLevel // of the log
	// Reload reloads the configuration, and returns the changes.
	Reload func(ctx context.Context) ([]string, error)
	// Configuration returns the configuration in effect.
	Configuration func() (Configuration, error)
	// Sources returns the configured sources, without counts of requests.
	Sources func() []Source
	// Registration returns the webhook settings from the sender's API.
	Registration func(ctx context.Context, source string) (Registration, error)
	Series       *MetricsRing
	Cluster      Cluster // nil without an embedded cluster
	// AsyncAPI returns the AsyncAPI document of the configuration in effect.
	AsyncAPI func() (map[string]any, error)
	Now      func() time.Time
	Log      *zap.Logger
	Scrub    *config.Scrubber // for served errors
}

// handler serves the API and its OpenAPI document.
func (a *API) handler() http.Handler {
	mux, d := http.NewServeMux(), a.door()
	described := a.register(mux, d)
	a.Metrics.initChanges(described)
	return &guard{d, mux, accesses(described), rooms()}
}

// described returns the OpenAPI document of the API.
func (a *API) described() *huma.OpenAPI { return a.register(http.NewServeMux(), a.door()) }

// register adds every operation to a mux, and returns the OpenAPI document.
func (a *API) register(mux *http.ServeMux, d *door) *huma.OpenAPI {
	c := huma.DefaultConfig("Postwire admin API", a.Version)
	c.Info.Description = "API of a running relay for operators and scripts. Errors are RFC 9457 problems."
	c.OpenAPIPath = BasePath + "/openapi"
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	c.RejectUnknownQueryParameters = true
	c.Transformers = append(c.Transformers, a.scrubbed, recordResult)
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer":  {Type: "http", Scheme: "bearer", Description: "A token of the relay's configuration. Operators (admin.token, or admin.tokens with role operator) may call every operation. Viewers (admin.viewer_token, or admin.tokens with role viewer) may call operations without changes and without personal data. Without a configured token, the API answers callers on the relay's machine only."},
		"session": {Type: "apiKey", In: "cookie", Name: cookieName, Description: "Session cookie of a browser. An operation that changes something also requires the header X-CSRF-Token."},
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
	a.stats(api)
	a.sources(api)
	a.configuration(api)
	a.reconcile(api)
	a.status(api)
	a.cluster(api)
	a.logLevel(api)
	a.reload(api)
	a.asyncAPI(api)
	return api.OpenAPI()
}

// scrubbed is a huma.Transformer that removes secrets from problems, because problems
// contain errors of clients and of the journal.
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

// scrubbedValue returns a value of a request for a problem: a text without secrets, a
// number or a boolean. Other values may contain a nested secret, and are omitted.
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
	_ = json.NewEncoder(w).Encode(&huma.ErrorModel{Title: http.StatusText(status), Status: status, Detail: detail}) // the caller has disconnected
}

// failed maps an error of the journal or the relay to an HTTP error.
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

// When is an RFC 3339 time, or an age such as 2h; empty is the zero time.
type When string

// Time returns the time; an age counts back from now.
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

// times parses times by name. An error names the invalid parameter.
func (a *API) times(in map[string]When) (map[string]time.Time, error) {
	times := map[string]time.Time{}
	for name, w := range in {
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

// attributes returns an event as CloudEvents JSON. Without data, the JSON omits the
// data of the event, which may be personal.
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
	From    When   `json:"from" minLength:"1" doc:"Start of the range of acceptance times: RFC 3339, or an age such as 2h." example:"2h"`
	To      When   `json:"to,omitempty" doc:"End of the range of acceptance times, exclusive: RFC 3339, or an age such as 1h. Empty means now." example:"1h"`
	Filter  string `json:"filter,omitempty" doc:"CEL expression over attributes that selects events. The filter of the sink applies, too." example:"platform == \"instagram\""`
	Subject string `json:"subject,omitempty" doc:"NATS subject, instead of the subject of the sink."`
	Topic   string `json:"topic,omitempty" doc:"Kafka topic, instead of the topic of the sink."`
	Rate    int    `json:"rate,omitempty" minimum:"1" default:"1000" doc:"Maximum number of events per second."`
	DryRun  bool   `json:"dry_run,omitempty" doc:"Count the events, and deliver nothing."`
}

// Resolve implements huma.Resolver.
func (r *ReplayRequest) Resolve(ctx huma.Context) []error {
	return addSubject(ctx, named("sink", r.Sink), dry(r.DryRun))
}

type (
	replayInput struct {
		ID string `path:"id" doc:"ID of the replay."`
	}
	replayOutput struct{ Body relay.Replay }
)

func (a *API) replays(api huma.API) {
	huma.Register(api, operation("start-replay", http.MethodPost, "/replays", "Start a replay: deliver stored events to one sink again, beside live traffic", 404, 422),
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
	huma.Register(api, operation("list-replays", http.MethodGet, "/replays", "List replays, newest first"),
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
	huma.Register(api, operation("show-replay", http.MethodGet, "/replays/{id}", "Show a replay and its progress", 404),
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
