package source

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/postwire/postwire/config"
)

// Settings are the keys of every kind of source. The ingress uses the settings; a source
// does not see them.
type Settings struct {
	Paths []string `yaml:"paths" required:"true" doc:"URL paths for requests of the sender. All paths of one source share their dedupe keys." example:"[/webhooks/upload-post]"`
	Rate  Rate     `yaml:"rate" doc:"Rate limit of this source; requests beyond the limit are answered 429."`

	MaxInFlight  int         `yaml:"max_in_flight" doc:"Maximum number of verified requests of this source in flight; further requests are answered 429. 0 uses only the limit server.max_in_flight."`
	MaxBodyBytes config.Size `yaml:"max_body_bytes" doc:"Maximum size of a request body of this source, after decompression too; larger bodies are answered 413. 0 uses server.max_body_bytes. server.max_buffered_bytes must be more than eight times as large."`

	Schema string `yaml:"schema" enum:"off,warn,quarantine" doc:"Check of event data against the JSON Schema that dataschema names, if the schema is built in or in schemas.dir. off: no check. warn: log a mismatch, without the data, and count the mismatch. quarantine: as warn, and quarantine the request. The built-in schemas accept all events that a source of type uploadpost understands."`
}

// Handling of data that does not match its schema.
const (
	SchemaOff        = "off"
	SchemaWarn       = "warn"
	SchemaQuarantine = "quarantine"
)

// Rate limits the requests of a source.
type Rate struct {
	PerSecond float64 `yaml:"per_second" doc:"Long-term requests per second; 0 disables the limit."`
	Burst     int     `yaml:"burst" doc:"Additional requests at once beyond per_second; 0 uses the value of per_second."`
}

// DefaultSettings returns the default settings.
func DefaultSettings() Settings { return Settings{Schema: SchemaOff} }

// Validate returns all errors of the settings.
func (s Settings) Validate() error {
	var p config.Invalids
	if len(s.Paths) == 0 {
		p.Add("paths", "is empty", "list at least one path, for example /webhooks/upload-post")
	}
	for i, path := range s.Paths {
		key := fmt.Sprintf("paths[%d]", i)
		switch {
		case !strings.HasPrefix(path, "/"):
			p.Add(key, fmt.Sprintf("%q does not begin with a slash", path), "use "+fmt.Sprintf("%q", "/"+path))
		case strings.ContainsAny(path, "{}*?#% \t"):
			p.Add(key, fmt.Sprintf("%q has a character that is not part of a plain path", path), "use letters, digits, dashes and slashes")
		case slices.Contains(s.Paths[:i], path):
			p.Add(key, fmt.Sprintf("%s is listed twice", path), "remove one of the two")
		}
	}
	if s.Rate.PerSecond < 0 {
		p.Add("rate.per_second", "is negative", "use 0 for no limit")
	}
	if s.MaxInFlight < 0 {
		p.Add("max_in_flight", "is negative", "use 0 for no limit")
	}
	if s.MaxBodyBytes < 0 || s.MaxBodyBytes > 0 && s.MaxBodyBytes < 1024 {
		p.Add("max_body_bytes", fmt.Sprintf("%v is out of range", s.MaxBodyBytes), "use 1KiB or more, or 0 for server.max_body_bytes")
	}
	if s.Rate.Burst < 0 {
		p.Add("rate.burst", "is negative", "use 0 for as many as per_second")
	}
	return p.Err()
}

// Env is the environment of a source besides its own configuration.
type Env struct {
	Name       string // name in the configuration; part of every identity key
	SchemaBase string // schemas.base_url without a slash at the end; may be empty
	Rate       Rate   // rate limit of the ingress, for handshakes
}

// Schema returns the dataschema of an event type.
func (e Env) Schema(eventType string) string {
	if e.SchemaBase != "" {
		return e.SchemaBase + "/" + url.PathEscape(eventType) + "/1"
	}
	return "urn:postwire:schema:" + url.PathEscape(eventType) + ":1"
}

// Warner is implemented by the configuration of a kind of source that reports valid but
// suspicious settings.
type Warner interface {
	// Warnings returns warnings about a valid configuration.
	Warnings() config.Invalids
}

// Opener makes a configured source.
type Opener func(env Env) (Source, error)

// Kind is a kind of source. Define makes kinds; package all lists the kinds.
type Kind = config.Kind[Settings, Opener]

// Registry finds kinds by name.
type Registry = config.Registry[Settings, Opener]

// Configured is the parsed configuration of a source.
type Configured = config.Plugin[Settings, Opener]

// Define returns a Kind: its name in the configuration, a line and an example for the
// reference page, its defaults and its opener.
func Define[C config.Settings](name, summary, example string, defaults func() C, open func(C, Env) (Source, error)) Kind {
	return DefineCompleted(name, summary, example, defaults, func(*C) {}, open)
}

// DefineCompleted is Define for a kind whose defaults depend on other keys: complete sets
// them after all keys are read.
func DefineCompleted[C config.Settings](name, summary, example string, defaults func() C, complete func(*C), open func(C, Env) (Source, error)) Kind {
	return config.DefineCompleted(name, summary, example, DefaultSettings, defaults, complete, func(c C) Opener {
		return func(env Env) (Source, error) { return open(c, env) }
	})
}
