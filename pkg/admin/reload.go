package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// ReloadResult says what a reload has changed.
type ReloadResult struct {
	Changed []string `json:"changed" doc:"What is different now, such as 'sink kafka' or 'source hooks added'; empty where nothing is."`
}

func (a *API) reload(api huma.API) {
	huma.Register(api, operation("reload", http.MethodPost, "/reload", "Read the configuration again, and take over what has changed: all of it, or nothing", 422),
		func(ctx context.Context, _ *struct{}) (*struct{ Body ReloadResult }, error) {
			// Who asked may go; a change that has begun is ended.
			changed, err := a.Reload(context.WithoutCancel(ctx))
			if err != nil {
				return nil, huma.Error422UnprocessableEntity(err.Error())
			}
			return &struct{ Body ReloadResult }{ReloadResult{changed}}, nil
		})
}

// Reload lets the relay read its configuration again.
func (c *Client) Reload(ctx context.Context) (r ReloadResult, err error) {
	return r, c.ask(ctx, http.MethodPost, "/reload", nil, &r)
}
