// Package uploadpost understands the webhooks of Upload-Post, which publishes to social
// networks: finished uploads, successful or failed, and changes of connected accounts.
// Deliveries may be signed (HMAC-SHA256 over timestamp and raw body). With `auth: none` the
// source accepts unsigned deliveries.
package uploadpost

import (
	_ "embed"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
	_ "time/tzdata" // time zones on a machine without a zone database

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/jsonbody"
	client "github.com/postwire/postwire/pkg/uploadpost"
)

// Headers of a delivery.
const (
	SignatureHeader = "X-Upload-Post-Signature"
	TimestampHeader = "X-Upload-Post-Timestamp"
	EventHeader     = "X-Upload-Post-Event"
	DeliveryHeader  = "X-Upload-Post-Delivery"
)

// Config is the configuration of a source of type uploadpost.
type Config struct {
	Timezone string    `yaml:"timezone" doc:"Time zone of created_at values without an offset, from the IANA database." example:"Europe/Berlin"`
	Auth     auth.Auth `yaml:"auth" required:"true" doc:"Authentication of the sender: the word none, or a mapping of methods; a request must pass every method."`

	API       API       `yaml:"api" doc:"API of Upload-Post, for the account of these webhooks."`
	Reconcile Reconcile `yaml:"reconcile" doc:"Backfill of uploads that are in the history of the API but for which no webhook arrived."`
}

// API configures access to the API of the service.
type API struct {
	Key config.Secret `yaml:"key" doc:"API key of the account." example:"${UPLOAD_POST_API_KEY}"`
	URL config.URL    `yaml:"url" doc:"URL of the API."`
}

// Reconcile configures when and how far back the history is compared.
type Reconcile struct {
	Interval time.Duration `yaml:"interval" doc:"Time between two reconciliations; 0 disables reconciliation." example:"5m"`
	Lookback time.Duration `yaml:"lookback" doc:"Period of history to compare. After an outage, the first reconciliation goes back to the last received event. At most journal.retention, because older received events are no longer known."`
	Settle   time.Duration `yaml:"settle" doc:"Minimum age of an upload to count as missed; the webhook of a younger upload may still arrive."`
}

// Validate implements source.Config.
func (c Config) Validate() error {
	var p config.Invalids
	if _, err := time.LoadLocation(c.Timezone); err != nil || c.Timezone == "" {
		p.Add("timezone", fmt.Sprintf("%q is not a time zone", c.Timezone), "use a name of the IANA database, such as UTC or Europe/Berlin")
	}
	if u, err := url.Parse(c.API.URL.Reveal()); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		p.Add("api.url", "is not the URL of an API", "for example "+client.DefaultBaseURL)
	}
	if c.Auth.Signature != nil && c.Auth.Signature.FromAPI && c.API.Key == "" {
		p.Add("api.key", "is missing, and auth.signature.from_api is set", "set it, for example ${UPLOAD_POST_API_KEY}")
	}
	switch r := c.Reconcile; {
	case r.Interval < 0 || r.Settle < 0:
		p.Add("reconcile", "has a time that is negative", "for example {interval: 5m, lookback: 48h, settle: 10m}")
	case r.Interval == 0:
	case c.API.Key == "":
		p.Add("api.key", "is missing, and reconcile.interval is set", "set it, for example ${UPLOAD_POST_API_KEY}")
	case r.Lookback <= r.Settle:
		p.Add("reconcile.lookback", fmt.Sprintf("is no longer than settle, %v", r.Settle), "use a longer one, for example 48h")
	}
	return config.Join(p.Err(), c.Auth.Validate())
}

//go:embed example.yaml
var example string

// Kind is the kind of source uploadpost.
func Kind() source.Kind {
	return source.Define("uploadpost", "Webhooks of Upload-Post: completed uploads, and changes of connected accounts.", example,
		func() Config {
			return Config{
				Timezone: "UTC", Auth: auth.Auth{Default: auth.UploadPost}, API: API{URL: client.DefaultBaseURL},
				Reconcile: Reconcile{Lookback: 48 * time.Hour, Settle: 10 * time.Minute},
			}
		},
		New)
}

// New returns a source.
func New(c Config, env source.Env) (source.Source, error) {
	location, err := time.LoadLocation(c.Timezone)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	// A configuration without Kind has the signature format of Upload-Post, too.
	c.Auth.Default = auth.UploadPost
	verifier, err := c.Auth.Verifier()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	s := &Source{env: env, verifier: verifier, location: location, contentType: jsonbody.ContentType, kinds: map[string]kind{}}
	for _, name := range slices.Concat(accountEvents, []string{uploadCompleted}) {
		s.kinds[name] = s.kindOf(name)
	}
	return s, nil
}

// Source implements source.Source.
type Source struct {
	env      source.Env
	verifier *auth.Verifier
	location *time.Location

	// shared by all events; never changed
	contentType string
	kinds       map[string]kind // known events by name
}

// Verify implements source.Source.
func (s *Source) Verify(r *source.Request) error { return s.verifier.Verify(r) }

// Proof implements source.Source.
func (s *Source) Proof() source.Proof { return s.verifier.Proof() }

// Attributes implements source.Source.
func (s *Source) Attributes() source.Attributes {
	return source.Attributes{Names: []string{
		event.Platform, event.MediaType, event.Profile, event.Outcome, event.PublishID, event.PartitionKey, event.CorrelationID, event.DeliveryID, event.Origin,
	}}
}

// Options implements source.Source: Upload-Post has no handshake.
func (s *Source) Options(*source.Request) (http.Header, bool) { return nil, false }
