package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// Source is a configured source, with counts of its requests.
type Source struct {
	Source       string            `json:"source"`
	Kind         string            `json:"kind" doc:"Type of the source in the configuration."`
	Paths        []string          `json:"paths"`
	AuthRequired bool              `json:"auth_required" doc:"Whether senders must authenticate."`
	Received     map[string]uint64 `json:"received" doc:"Number of requests since the start of this process, by outcome: accepted, duplicate, quarantined, unauthenticated, and so on."`
	Stored       uint64            `json:"stored" doc:"Number of new events since the start of this process."`
	Repeats      uint64            `json:"repeats" doc:"Number of duplicates inside the dedupe window since the start of this process."`

	Secret    *SecretAge       `json:"secret,omitempty" doc:"Age of the signing secret; only for a source with signed webhooks."`
	Reconcile *ReconcileStatus `json:"reconcile,omitempty" doc:"State of reconcile; only for a source with a history."`
}

// SecretAge is the age of the signing secret of a source.
type SecretAge struct {
	From    string     `json:"from" enum:"api,configuration" doc:"Origin of the secret: the sender's API, or the configuration."`
	Known   bool       `json:"known" doc:"Whether the relay has a secret."`
	Since   *time.Time `json:"since,omitempty" doc:"Time at which this process read the secret, or applied the configuration with the secret."`
	Rotated bool       `json:"rotated,omitempty" doc:"Whether the secret was rotated since the start of this process."`
}

// ReconcileStatus is the state of reconcile for a source.
type ReconcileStatus struct {
	Every     string            `json:"every,omitempty" doc:"Interval of periodic reconciles; absent without reconcile.interval."`
	Recovered uint64            `json:"recovered" doc:"Number of events backfilled since the start of this process."`
	Last      *time.Time        `json:"last,omitempty" doc:"Time of the last reconcile by this process."`
	Report    *reconcile.Report `json:"report,omitempty" doc:"Report of the last successful reconcile."`
	Problem   string            `json:"problem,omitempty" doc:"Error of the last reconcile; absent after a success."`
}

// Registration is the webhook registration at a sender's API.
type Registration struct {
	URL         string   `json:"url,omitempty" doc:"Registered URL, with hidden secrets. Absent without a registered URL."`
	Channels    []string `json:"channels" doc:"Enabled notification channels."`
	Events      []string `json:"events" doc:"Enabled events; an empty list means the sender's default."`
	PathMatches bool     `json:"path_matches" doc:"Whether the path of the registered URL is a path of the source."`
	Secret      bool     `json:"secret" doc:"Whether the sender signs webhooks."`
}

// ErrNoSource is wrapped if no source has the name.
var ErrNoSource = errors.New("it is not in the configuration")

func (a *API) sources(api huma.API) {
	type all struct {
		Sources []Source `json:"sources"`
	}
	huma.Register(api, operation("list-sources", http.MethodGet, "/sources", "List sources with counts of requests, age of the secret and state of reconcile"),
		func(context.Context, *struct{}) (*struct{ Body all }, error) {
			sources, values := a.Sources(), a.Series.read()
			for i, s := range sources {
				s.Received = map[string]uint64{}
				for key, value := range values {
					switch {
					case key.name != s.Source:
					case key.metric == "postwire_received_total":
						s.Received[key.outcome] = uint64(value)
					case key.metric == "postwire_events_stored_total":
						s.Stored = uint64(value)
					case key.metric == "postwire_dedupe_hits_total":
						s.Repeats = uint64(value)
					}
				}
				sources[i] = s
			}
			return &struct{ Body all }{all{sources}}, nil
		})
	huma.Register(api, operation("show-registration", http.MethodGet, "/sources/{source}/registration", "Show the webhook registration at the sender's API", 404, 502),
		func(ctx context.Context, in *struct {
			Source string `path:"source" doc:"Name of the source."`
		},
		) (*struct{ Body Registration }, error) {
			r, err := a.Registration(ctx, in.Source)
			switch _, answered := errors.AsType[*uploadpost.Error](err); {
			case errors.Is(err, ErrNoHistory), errors.Is(err, ErrNoSource):
				return nil, huma.Error404NotFound(err.Error())
			case answered:
				return nil, huma.Error502BadGateway(err.Error())
			}
			return &struct{ Body Registration }{r}, failed(err)
		})
}

// Sources returns the sources with counts of requests.
func (c *Client) Sources(ctx context.Context) ([]Source, error) {
	var all struct{ Sources []Source }
	err := c.call(ctx, http.MethodGet, "/sources", nil, &all)
	return all.Sources, err
}

// Registration returns the webhook registration at the sender's API.
func (c *Client) Registration(ctx context.Context, source string) (r Registration, err error) {
	return r, c.call(ctx, http.MethodGet, "/sources/"+url.PathEscape(source)+"/registration", nil, &r)
}
