package admin

import (
	"context"
	"net/http"
	"regexp"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Configuration is the configuration in effect.
type Configuration struct {
	YAML  string    `json:"yaml" doc:"Configuration as YAML, with every default. Secrets and e-mail addresses are hidden."`
	File  string    `json:"file" doc:"Path of the configuration file."`
	Began time.Time `json:"began" doc:"Start time of the process."`
	// Last is nil before the first reload.
	Last *LastReload `json:"last,omitempty" doc:"Result of the last reload; absent before the first reload."`
}

// LastReload is the result of a reload.
type LastReload struct {
	At      time.Time `json:"at"`
	Applied bool      `json:"applied" doc:"Whether the relay applied the changed configuration. If not, the previous configuration stays in effect."`
	Changed []string  `json:"changed" doc:"Changed keys, sources and sinks."`
	Problem string    `json:"problem,omitempty" doc:"Errors of a refused reload, one per line."`
}

// address matches e-mail addresses.
var address = regexp.MustCompile(`[\w.+-]+@[\w-]+(\.[\w-]+)+`)

func (a *API) configuration(api huma.API) {
	huma.Register(api, operation("configuration", http.MethodGet, "/configuration", "Show the configuration in effect, without secrets, and the result of the last reload"),
		func(context.Context, *struct{}) (*struct{ Body Configuration }, error) {
			c, err := a.Configuration()
			c.YAML = address.ReplaceAllString(c.YAML, "***")
			if c.Last != nil {
				last := *c.Last
				last.Problem = address.ReplaceAllString(last.Problem, "***")
				c.Last = &last
			}
			return &struct{ Body Configuration }{c}, failed(err)
		})
}

// Configuration returns the configuration in effect.
func (c *Client) Configuration(ctx context.Context) (current Configuration, err error) {
	return current, c.call(ctx, http.MethodGet, "/configuration", nil, &current)
}
