package admin

import (
	"context"
	"net/http"
	"regexp"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Configuration is what the relay runs by.
type Configuration struct {
	YAML  string    `json:"yaml" doc:"All keys with their defaults. Secrets, and addresses of persons, are hidden."`
	File  string    `json:"file" doc:"Where it was read from."`
	Began time.Time `json:"began" doc:"When the process began."`
	// Last is nil where nothing has changed since the process began.
	Last *LastReload `json:"last,omitempty" doc:"The last time that it was read again."`
}

// LastReload is what came of reading the configuration again.
type LastReload struct {
	At      time.Time `json:"at"`
	Taken   bool      `json:"applied" doc:"Whether the relay applied the changed configuration. If not, the previous configuration stays in effect."`
	Changed []string  `json:"changed" doc:"What was different."`
	Problem string    `json:"problem,omitempty" doc:"Why it was refused, a line a problem."`
}

// address is what may be an address of a person's mailbox.
var address = regexp.MustCompile(`[\w.+-]+@[\w-]+(\.[\w-]+)+`)

func (a *API) configuration(api huma.API) {
	huma.Register(api, operation("configuration", http.MethodGet, "/configuration", "The configuration as it is in effect, without its secrets, and what came of the last reload"),
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

// Configuration asks what the relay runs by.
func (c *Client) Configuration(ctx context.Context) (now Configuration, err error) {
	return now, c.ask(ctx, http.MethodGet, "/configuration", nil, &now)
}
