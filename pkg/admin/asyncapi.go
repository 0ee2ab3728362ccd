package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// AsyncAPIPath is where the AsyncAPI document is, whatever the version of the
// API: the document has a version of its own.
const AsyncAPIPath = "/api/asyncapi"

func (a *API) asyncAPI(api huma.API) {
	huma.Register(api, operation("asyncapi", http.MethodGet, "/asyncapi", "What the configuration sends, for those who read it: an AsyncAPI 3.0 document, without secrets", 500),
		func(context.Context, *struct{}) (*struct{ Body map[string]any }, error) {
			document, err := a.AsyncAPI()
			return &struct{ Body map[string]any }{document}, failed(err)
		})
}

// latest answers at AsyncAPIPath what the newest version of the API does.
func latest(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = BasePath+"/asyncapi", ""
		api.ServeHTTP(w, r)
	})
}
