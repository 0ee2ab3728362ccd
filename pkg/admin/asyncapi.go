package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// AsyncAPIPath is the path of the AsyncAPI document. The path does not depend on the
// version of the API, because the document has a version of its own.
const AsyncAPIPath = "/api/asyncapi"

func (a *API) asyncAPI(api huma.API) {
	huma.Register(api, operation("asyncapi", http.MethodGet, "/asyncapi", "Show the AsyncAPI 3.0 document of the configuration, for consumers, without secrets", 500),
		func(context.Context, *struct{}) (*struct{ Body map[string]any }, error) {
			document, err := a.AsyncAPI()
			return &struct{ Body map[string]any }{document}, failed(err)
		})
}

// latest serves AsyncAPIPath by the newest version of the API.
func latest(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = BasePath+"/asyncapi", ""
		api.ServeHTTP(w, r)
	})
}
