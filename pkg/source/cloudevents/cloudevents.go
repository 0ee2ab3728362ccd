// Package cloudevents takes events that are CloudEvents already: from Knative,
// Azure Event Grid, another Postwire, or a service of one's own.
//
// Events of version 1.0 are read in the three modes of the HTTP binding: binary,
// structured (application/cloudevents+json) and batched
// (application/cloudevents-batch+json). Of a batch all events are stored or none:
// one that makes no sense makes no sense of the whole body. Other versions and
// other event formats are not understood, nor are batches of more than max_batch
// events.
//
// An event keeps its attributes. Postwire sets recordedtime, in place of one
// that the sender may have set, and nothing else; a time is passed on in UTC, and
// the content type that structured mode implies is written out
// (application/json, JSON format, section 3.1.2). What could not be passed on as
// it is, such as an attribute with control characters or of more than 1024
// bytes, is not understood, rather than changed. Data in binary mode is kept
// byte for byte; it goes out as bytes (data_base64) where a sink writes
// structured mode and it is neither JSON nor text as its type says.
//
// Two events are the same if they agree on source and id, as CloudEvents has it.
//
// A sender that asks with OPTIONS whether it may send, as in "HTTP 1.1 Web Hooks
// for Event Delivery", is let if allowed_origins names it; the rate it is let is
// that of rate. WebHook-Request-Callback is never followed: what a sender says
// must not choose whom Postwire talks to. The consent proves nothing, so an event
// without WebHook-Request-Origin is taken too if it passes auth.
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

// Config is the block of a source of type cloudevents.
type Config struct {
	AllowedOrigins []string  `yaml:"allowed_origins" doc:"Origins allowed in the CloudEvents webhook handshake (an OPTIONS request; Azure Event Grid needs the handshake), compared with WebHook-Request-Origin; \"*\" allows any origin. The response contains the rate of the source. Empty answers OPTIONS with 405. Not part of authentication: events are accepted from any origin that passes auth. WebHook-Request-Callback is never called." example:"[eventgrid.azure.net]"`
	ContentModes   []string  `yaml:"content_modes" enum:"binary,structured,batched" doc:"Accepted modes of the CloudEvents HTTP binding; an event in another mode is malformed. Default is all three modes; with auth.signature the default is structured and batched, because a signature does not cover the ce- headers of binary mode: an attacker with one signed request could repeat the request with different attributes. With binary beside auth.signature, two requests with equal signed content are one event, and an event without data is malformed unless the signature covers a header." example:"[structured]"`
	MaxBatch       int       `yaml:"max_batch" doc:"Maximum number of events per request in batched mode, 1 to 10000. A larger batch is malformed. A batch needs many times its size in memory."`
	Auth           auth.Auth `yaml:"auth" required:"true" doc:"Authentication of the sender: the word none, or a mapping of methods; a request must pass every method."`
}

// defaultBatch is ten times what the sink http sends by default.
const defaultBatch = 1000

// The modes of the HTTP binding.
const (
	modeBinary     = "binary" // attributes are in headers
	modeStructured = "structured"
	modeBatched    = "batched"
)

func allModes() []string { return []string{modeBinary, modeStructured, modeBatched} }

// anyOrigin is the origin that stands for all.
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

// Kind is the source of type cloudevents.
func Kind() source.Kind {
	return source.Define("cloudevents", "CloudEvents 1.0 over HTTP, in the modes binary, structured and batched: from Knative, Azure Event Grid, another Postwire, or a custom service. "+
		"An event keeps its attributes and data, except recordedtime, which Postwire sets. Two events with equal source and id are duplicates.", example,
		func() Config { return Config{MaxBatch: defaultBatch} }, New)
}

// New makes a source.
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
	modes    []string // in which events are taken
	origins  []string
	rate     string // in WebHook-Allowed-Rate
	maxBatch int
}

// Verify implements source.Source.
func (s *Source) Verify(r *source.Request) error { return s.verifier.Verify(r) }

// Proof implements source.Source.
func (s *Source) Proof() source.Proof { return s.verifier.Proof() }

// The headers of the handshake.
const (
	requestOrigin = "Webhook-Request-Origin"
	allowedOrigin = "Webhook-Allowed-Origin"
	allowedRate   = "Webhook-Allowed-Rate"
)

// Attributes implements source.Source: the sender names them. Those that
// Postwire and CloudEvents document are listed, so that a filter can use their
// names.
func (s *Source) Attributes() source.Attributes {
	return source.Attributes{Names: event.Extensions(), Any: true}
}

// Options implements source.Source: the handshake of "HTTP 1.1 Web Hooks for
// Event Delivery", section 4. Who may not send gets no header of it, and so no
// consent.
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

// perMinute is a rate as the handshake tells it: requests a minute, at least
// one, or no limit.
func perMinute(r source.Rate) string {
	if r.PerSecond == 0 {
		return "*"
	}
	return strconv.FormatInt(max(1, int64(min(r.PerSecond*60, 1<<53))), 10)
}
