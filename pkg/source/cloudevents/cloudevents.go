// Package cloudevents accepts CloudEvents, for example from Knative, Azure Event Grid,
// another Postwire, or an internal service.
//
// The source accepts version 1.0 in the three modes of the HTTP binding: binary, structured
// (application/cloudevents+json) and batched (application/cloudevents-batch+json). The
// events of a batch are stored together; one malformed event makes the whole body
// malformed. Other versions and event formats are malformed, and so are batches of more
// than max_batch events.
//
// An event keeps its attributes, with three exceptions: Postwire sets recordedtime, a time
// is sent in UTC, and the content type that structured mode implies is set
// (application/json, JSON format, section 3.1.2). An event that cannot be sent unchanged is
// malformed, for example with control characters or with attributes of more than 1024
// bytes. Data in binary mode is kept byte for byte. A sink in structured mode sends it as
// bytes (data_base64) unless it is JSON or text of its media type.
//
// Two events are equal if they have equal source and id, as CloudEvents defines.
//
// The OPTIONS handshake of "HTTP 1.1 Web Hooks for Event Delivery" allows a sender if
// allowed_origins lists its origin, with the rate of the source. WebHook-Request-Callback
// is ignored, because a sender must not choose the servers that Postwire calls. The
// handshake is no authentication: an event without WebHook-Request-Origin is accepted, too,
// if it passes auth.
package cloudevents

import (
	"cmp"
	_ "embed"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
)

// Config is the configuration of a source of type cloudevents.
type Config struct {
	AllowedOrigins []string  `yaml:"allowed_origins" doc:"Origins allowed in the CloudEvents webhook handshake (an OPTIONS request; Azure Event Grid needs the handshake), compared with WebHook-Request-Origin; \"*\" allows any origin. The response contains the rate of the source. Empty answers OPTIONS with 405. Not part of authentication: events are accepted from any origin that passes auth. WebHook-Request-Callback is never called." example:"[eventgrid.azure.net]"`
	ContentModes   []string  `yaml:"content_modes" enum:"binary,structured,batched" doc:"Accepted modes of the CloudEvents HTTP binding; an event in another mode is malformed. Default is all three modes; with auth.signature the default is structured and batched, because a signature does not cover the ce- headers of binary mode: an attacker with one signed request could repeat the request with different attributes. With binary beside auth.signature, two requests with equal signed content are one event, and an event without data is malformed unless the signature covers a header." example:"[structured]"`
	MaxBatch       int       `yaml:"max_batch" doc:"Maximum number of events per request in batched mode, 1 to 10000. A larger batch is malformed. A batch needs many times its size in memory."`
	Auth           auth.Auth `yaml:"auth" required:"true" doc:"Authentication of the sender: the word none, or a mapping of methods; a request must pass every method."`
}

// defaultBatch is ten times the default batch of the sink http.
const defaultBatch = 1000

// Modes of the HTTP binding.
const (
	modeBinary     = "binary" // attributes in headers
	modeStructured = "structured"
	modeBatched    = "batched"
)

func allModes() []string { return []string{modeBinary, modeStructured, modeBatched} }

// anyOrigin allows every origin.
const anyOrigin = "*"

// Validate implements source.Config.
func (c Config) Validate() error {
	var p config.Invalids
	for i, origin := range c.AllowedOrigins {
		key := fmt.Sprintf("allowed_origins[%d]", i)
		switch {
		case origin == anyOrigin && len(c.AllowedOrigins) > 1:
			p.Add(key, "is \"*\", which is every origin, and there are others beside it", "leave out the others, or this one")
		case origin != anyOrigin && (origin == "" || !httpguts.ValidHostHeader(origin) || strings.Contains(origin, "*")):
			p.Add(key, fmt.Sprintf("%q is not an origin", origin), "use the name that the sender says in WebHook-Request-Origin, such as eventgrid.azure.net, or \"*\"")
		}
	}
	for i, mode := range c.ContentModes {
		if !slices.Contains(allModes(), mode) {
			p.Add(fmt.Sprintf("content_modes[%d]", i), fmt.Sprintf("%q is not a mode", mode), "use "+strings.Join(allModes(), ", "))
		}
	}
	if c.MaxBatch < 1 || c.MaxBatch > 10000 {
		p.Add("max_batch", fmt.Sprintf("%d is out of range", c.MaxBatch), "use 1 to 10000")
	}
	return config.Join(p.Err(), c.Auth.Validate())
}

//go:embed example.yaml
var example string

// Kind is the kind of source cloudevents.
func Kind() source.Kind {
	return source.Define("cloudevents", "CloudEvents 1.0 over HTTP, in the modes binary, structured and batched: from Knative, Azure Event Grid, another Postwire, or a custom service. "+
		"An event keeps its attributes and data, except recordedtime, which Postwire sets. Two events with equal source and id are duplicates.", example,
		func() Config { return Config{MaxBatch: defaultBatch} }, New)
}

// New returns a source.
func New(c Config, env source.Env) (source.Source, error) {
	verifier, err := c.Auth.Verifier()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	modes := c.ContentModes
	if len(modes) == 0 {
		modes = allModes()
		if c.Auth.Signature != nil {
			modes = modes[1:]
		}
	}
	return &Source{name: env.Name, verifier: verifier, proof: verifier.Proof(), modes: modes, origins: slices.Clone(c.AllowedOrigins), rate: perMinute(env.Rate), maxBatch: cmp.Or(c.MaxBatch, defaultBatch)}, nil
}

// Source implements source.Source.
type Source struct {
	name     string
	verifier *auth.Verifier
	proof    source.Proof
	modes    []string // accepted modes
	origins  []string
	rate     string // value of WebHook-Allowed-Rate
	maxBatch int
}

// Verify implements source.Source.
func (s *Source) Verify(r *source.Request) error { return s.verifier.Verify(r) }

// Proof implements source.Source.
func (s *Source) Proof() source.Proof { return s.verifier.Proof() }

// Headers of the handshake.
const (
	requestOrigin = "Webhook-Request-Origin"
	allowedOrigin = "Webhook-Allowed-Origin"
	allowedRate   = "Webhook-Allowed-Rate"
)

// Attributes implements source.Source. The sender names the attributes. The list has the
// attributes that Postwire and CloudEvents document, so that a filter can use their names.
func (s *Source) Attributes() source.Attributes {
	return source.Attributes{Names: event.Extensions(), Any: true}
}

// Options implements source.Source: the handshake of "HTTP 1.1 Web Hooks for Event
// Delivery", section 4. A sender that is not allowed gets no header of the handshake.
func (s *Source) Options(r *source.Request) (http.Header, bool) {
	asked := r.Header[requestOrigin]
	if len(asked) != 1 || asked[0] == "" || s.verifier.Reaches(r) != nil {
		return nil, false
	}
	for _, origin := range s.origins {
		if origin == anyOrigin {
			return http.Header{allowedOrigin: {anyOrigin}, allowedRate: {s.rate}}, true
		}
		if strings.EqualFold(origin, asked[0]) {
			return http.Header{allowedOrigin: {asked[0]}, allowedRate: {s.rate}}, true
		}
	}
	return nil, false
}

// perMinute returns a rate in requests per minute, at least 1, or no limit.
func perMinute(r source.Rate) string {
	if r.PerSecond == 0 {
		return "*"
	}
	return strconv.FormatInt(max(1, int64(min(r.PerSecond*60, 1<<53))), 10)
}
