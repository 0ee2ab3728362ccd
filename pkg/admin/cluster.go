package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
)

// Cluster is the embedded cluster of the journal.
type Cluster interface {
	Status(ctx context.Context) (embedded.ClusterStatus, error)
	// Remove removes a relay from the cluster. Lost removes a relay that does not run and
	// discards the events in its spill. An error wraps embedded.ErrUnknownPeer or
	// embedded.ErrRefused if nothing was changed. After other errors, a repeated call
	// continues.
	Remove(ctx context.Context, name string, lost bool) error
}

// removeTimeout is how long an answer about a removal takes, at most.
const removeTimeout = 45 * time.Second

type removeRelayInput struct {
	Name string `path:"name" doc:"Name of the relay."`
	Lost bool   `query:"lost" doc:"Discards the events in the spill of the relay. Required for a relay that does not run."`
}

func (a *API) cluster(api huma.API) {
	type output struct{ Body embedded.ClusterStatus }
	status := func(ctx context.Context) (*output, error) {
		if a.Cluster == nil {
			return nil, huma.Error404NotFound("the journal of this relay has no embedded cluster: journal.jetstream.embedded.peers is not set")
		}
		st, err := a.Cluster.Status(ctx)
		if err != nil {
			return nil, huma.Error503ServiceUnavailable(err.Error())
		}
		return &output{st}, nil
	}
	huma.Register(api, operation("show-cluster", http.MethodGet, "/cluster", "Show the relays of the embedded cluster", 404),
		func(ctx context.Context, _ *struct{}) (*output, error) { return status(ctx) })
	huma.Register(api, operation("remove-relay", http.MethodDelete, "/cluster/relays/{name}", "Remove a relay from the embedded cluster: move its replica of the journal to another relay, then remove the relay. The answer 503 means that the removal is not complete; a repeated request continues", 404, 409),
		func(ctx context.Context, in *removeRelayInput) (*struct{}, error) {
			if _, err := status(ctx); err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
			defer cancel()
			switch err := a.Cluster.Remove(ctx, in.Name, in.Lost); {
			case errors.Is(err, embedded.ErrUnknownPeer):
				return nil, huma.Error404NotFound(err.Error())
			case errors.Is(err, embedded.ErrRefused):
				return nil, huma.Error409Conflict(err.Error())
			case err != nil:
				return nil, huma.Error503ServiceUnavailable(err.Error())
			}
			return nil, nil //nolint:nilnil // 204
		})
}

// Cluster returns the relays of the embedded cluster.
func (c *Client) Cluster(ctx context.Context) (st embedded.ClusterStatus, err error) {
	return st, c.call(ctx, http.MethodGet, "/cluster", nil, &st)
}

// RemoveRelay removes a relay from the embedded cluster. After an error with status 503, a
// repeated call continues.
func (c *Client) RemoveRelay(ctx context.Context, name string, lost bool) error {
	query := ""
	if lost {
		query = "?lost=true"
	}
	resp, err := c.do(ctx, http.MethodDelete, "/cluster/relays/"+url.PathEscape(name)+query, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
