package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// ReloadResult is the result of a reload.
type ReloadResult struct {
	Changed []string `json:"changed" doc:"Changes that the relay applied, such as 'sink kafka' or 'source hooks added'; empty if the configuration had no change."`
}

func (a *API) reload(api huma.API) {
	huma.Register(api, operation("reload", http.MethodPost, "/reload", "Reload the configuration: apply the complete change, or nothing", 422),
		func(ctx context.Context, _ *struct{}) (*struct{ Body ReloadResult }, error) {
			// A reload is not canceled when the caller disconnects.
			changed, err := a.Reload(context.WithoutCancel(ctx))
			if err != nil {
				return nil, huma.Error422UnprocessableEntity(err.Error())
			}
			return &struct{ Body ReloadResult }{ReloadResult{changed}}, nil
		})
}

// Reload reloads the configuration of the relay.
func (c *Client) Reload(ctx context.Context) (r ReloadResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/reload", nil, &r)
}
