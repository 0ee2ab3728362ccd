package schema

import (
	"encoding/json"
	"net/http"
)

// Handler serves the schemas of the current library: the list at /schemas/, each schema at
// /schemas/<type>/<version>. The schemas are public.
func Handler(library func() *Library) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /schemas/{$}", func(w http.ResponseWriter, _ *http.Request) { list(w, library()) })
	mux.HandleFunc("GET /schemas/{type}/{version}", func(w http.ResponseWriter, r *http.Request) {
		text, ok := library().Text(Name{r.PathValue("type"), r.PathValue("version")})
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/schema+json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "max-age=300")
		_, _ = w.Write(text) // the client has disconnected
	})
	return mux
}

// list serves the list of schemas.
func list(w http.ResponseWriter, l *Library) {
	var out struct {
		Schemas []string `json:"schemas"`
	}
	for _, n := range l.Names() {
		out.Schemas = append(out.Schemas, "/schemas/"+n.String())
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the client has disconnected
}
