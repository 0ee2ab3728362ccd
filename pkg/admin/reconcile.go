package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// ErrNoHistory is wrapped where there is no history to compare with.
var ErrNoHistory = errors.New("no history")

// ReconcileRequest is the body of a request to compare with a sender's history.
type ReconcileRequest struct {
	Source string `json:"source,omitempty" doc:"Name of the source; may be left out where one alone knows its sender's history."`
	From   When   `json:"from" minLength:"1" doc:"Uploads from this time on: RFC 3339, or how long ago, such as 48h." example:"48h"`
	To     When   `json:"to,omitempty" doc:"And before this one; empty is now." example:"10m"`
	DryRun bool   `json:"dry_run,omitempty" doc:"Only say what is missing."`
}

// Resolve implements huma.Resolver.
func (r *ReconcileRequest) Resolve(ctx huma.Context) []error {
	return note(ctx, named("source", r.Source), dry(r.DryRun))
}

func (a *API) reconciling(api huma.API) {
	huma.Register(api, operation("reconcile", http.MethodPost, "/reconcile", "Enter what a sender's history has and no webhook has told of", 404, 422, 502),
		func(ctx context.Context, in *struct{ Body ReconcileRequest }) (*struct{ Body reconcile.Report }, error) {
			times, err := a.times(map[string]When{"from": in.Body.From, "to": in.Body.To})
			if err != nil {
				return nil, err
			}
			from, to := times["from"], times["to"]
			if to.IsZero() {
				to = a.Now()
			}
			if !from.Before(to) {
				return nil, huma.Error422UnprocessableEntity("from, " + from.Format(time.RFC3339) + ", is not before to, " + to.Format(time.RFC3339))
			}
			report, err := a.Reconcile(ctx, in.Body.Source, from, to, in.Body.DryRun)
			switch _, answered := errors.AsType[*uploadpost.Error](err); {
			case errors.Is(err, ErrNoHistory):
				return nil, huma.Error404NotFound(err.Error())
			case answered:
				return nil, huma.Error502BadGateway(err.Error())
			}
			return &struct{ Body reconcile.Report }{report}, failed(err)
		})
}

// Reconcile compares with a sender's history.
func (c *Client) Reconcile(ctx context.Context, r ReconcileRequest) (report reconcile.Report, err error) {
	return report, c.ask(ctx, http.MethodPost, "/reconcile", r, &report)
}
