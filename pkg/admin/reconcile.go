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

// ErrNoHistory is wrapped if the source has no history to compare with.
var ErrNoHistory = errors.New("no history")

// ReconcileRequest is the body of a request to reconcile.
type ReconcileRequest struct {
	Source string `json:"source,omitempty" doc:"Name of the source. Optional if only one source has a history."`
	From   When   `json:"from" minLength:"1" doc:"Start of the compared range: RFC 3339, or an age such as 48h." example:"48h"`
	To     When   `json:"to,omitempty" doc:"End of the compared range, exclusive: RFC 3339, or an age such as 10m. Empty means now." example:"10m"`
	DryRun bool   `json:"dry_run,omitempty" doc:"List missing events, and store nothing."`
}

// Resolve implements huma.Resolver.
func (r *ReconcileRequest) Resolve(ctx huma.Context) []error {
	return addSubject(ctx, named("source", r.Source), dry(r.DryRun))
}

func (a *API) reconcile(api huma.API) {
	huma.Register(api, operation("reconcile", http.MethodPost, "/reconcile", "Compare stored events with the sender's history, and backfill uploads without a webhook", 404, 422, 502),
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

// Reconcile compares stored events with a sender's history, and backfills missing
// events.
func (c *Client) Reconcile(ctx context.Context, r ReconcileRequest) (report reconcile.Report, err error) {
	return report, c.call(ctx, http.MethodPost, "/reconcile", r, &report)
}
