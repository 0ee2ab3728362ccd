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

// Source is who sends webhooks.
type Source struct {
	Source   string            `json:"source"`
	Kind     string            `json:"kind" doc:"Type of the source in the configuration."`
	Paths    []string          `json:"paths"`
	Proven   bool              `json:"auth_required" doc:"Whether senders must authenticate."`
	Received map[string]uint64 `json:"received" doc:"Requests since this process began, by what became of them: accepted, duplicate, quarantined, unauthenticated, and so on."`
	Stored   uint64            `json:"stored" doc:"New events since this process began."`
	Repeats  uint64            `json:"repeats" doc:"Events that had been seen before and were dropped, since this process began."`

	Secret    *SecretAge       `json:"secret,omitempty" doc:"Of sources whose senders sign."`
	Reconcile *ReconcileStatus `json:"reconcile,omitempty" doc:"Of sources that know their sender's history."`
}

// SecretAge is how old the secret is by which senders sign.
type SecretAge struct {
	From    string     `json:"from" enum:"api,configuration" doc:"Where it comes from: the sender's API, or the configuration."`
	Known   bool       `json:"known" doc:"Whether there is one."`
	Since   *time.Time `json:"since,omitempty" doc:"Since when this process knows it; of one in the configuration, since when it goes by it."`
	Rotated bool       `json:"rotated,omitempty" doc:"Whether it has taken the place of another one since this process began."`
}

// ReconcileStatus is how the comparisons with a sender's history go.
type ReconcileStatus struct {
	Every     string            `json:"every,omitempty" doc:"How often; absent is by hand only."`
	Recovered uint64            `json:"recovered" doc:"Events that no webhook has told of, found since this process began."`
	Last      *time.Time        `json:"last,omitempty" doc:"When the last comparison was, by this process."`
	Report    *reconcile.Report `json:"report,omitempty" doc:"What it came to."`
	Problem   string            `json:"problem,omitempty" doc:"Why it failed."`
}

// Registration is what a sender's API says of where it sends webhooks.
type Registration struct {
	URL      string   `json:"url,omitempty" doc:"Where it sends them; what proves the sender is hidden. Absent is nowhere."`
	Channels []string `json:"channels" doc:"Ways of notification that are on."`
	Events   []string `json:"events" doc:"Events that are on; none is those of the service's default."`
	Here     bool     `json:"here" doc:"Whether the path of the URL is one of the source's."`
	Secret   bool     `json:"secret" doc:"Whether the service signs."`
}

// ErrNoSource is wrapped where there is no source of that name.
var ErrNoSource = errors.New("it is not in the configuration")

func (a *API) sources(api huma.API) {
	type all struct {
		Sources []Source `json:"sources"`
	}
	huma.Register(api, operation("list-sources", http.MethodGet, "/sources", "What each source has received, and how it stands with its sender"),
		func(context.Context, *struct{}) (*struct{ Body all }, error) {
			sources, values := a.Sources(), a.History.read()
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
	huma.Register(api, operation("show-registration", http.MethodGet, "/sources/{source}/registration", "Ask the sender's API where it sends webhooks", 404, 502),
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

// Sources asks what each source has received.
func (c *Client) Sources(ctx context.Context) ([]Source, error) {
	var all struct{ Sources []Source }
	err := c.ask(ctx, http.MethodGet, "/sources", nil, &all)
	return all.Sources, err
}

// Registration asks where a sender sends webhooks.
func (c *Client) Registration(ctx context.Context, source string) (r Registration, err error) {
	return r, c.ask(ctx, http.MethodGet, "/sources/"+url.PathEscape(source)+"/registration", nil, &r)
}
