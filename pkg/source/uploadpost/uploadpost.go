// Package uploadpost understands the webhooks of Upload-Post, which publishes
// to social networks: uploads that ended, well or badly, and changes of the
// connected accounts. Deliveries may be signed (HMAC-SHA256 over the
// timestamp and the raw body); a sender that signs nothing is served in full
// where the configuration says `auth: none`.
package uploadpost

import (
	_ "embed"
	"fmt"
	"net/http"
	"time"
	_ "time/tzdata" // the sender's zone must be known on a machine without a zone database

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
)

// The headers of a delivery.
const (
	SignatureHeader = "X-Upload-Post-Signature"
	TimestampHeader = "X-Upload-Post-Timestamp"
	EventHeader     = "X-Upload-Post-Event"
	DeliveryHeader  = "X-Upload-Post-Delivery"
)

// Config is the block of a source of type uploadpost.
type Config struct {
	Timezone string    `yaml:"timezone" doc:"Zone in which created_at is read where it names none, as in the IANA database." example:"Europe/Berlin"`
	Auth     auth.Auth `yaml:"auth" required:"true" doc:"How the sender proves who it is: the word none, or the ways that must all pass."`
}

// Validate implements source.Config.
func (c Config) Validate() error {
	var p config.Invalids
	if _, err := time.LoadLocation(c.Timezone); err != nil || c.Timezone == "" {
		p.Add("timezone", fmt.Sprintf("%q is not a time zone", c.Timezone), "use a name of the IANA database, such as UTC or Europe/Berlin")
	}
	return config.Join(p.Err(), c.Auth.Validate())
}

//go:embed example.yaml
var example string

// Kind is the source of type uploadpost.
func Kind() source.Kind {
	return source.Define("uploadpost", "Webhooks of Upload-Post: uploads that ended, and changes of connected accounts.", example,
		func() Config { return Config{Timezone: "UTC", Auth: auth.Auth{Default: auth.UploadPost}} },
		New)
}

// New makes a source.
func New(c Config, env source.Env) (source.Source, error) {
	location, err := time.LoadLocation(c.Timezone)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	// A configuration that did not come through Kind signs as Upload-Post, too.
	c.Auth.Default = auth.UploadPost
	verifier, err := c.Auth.Verifier()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	return &Source{env: env, verifier: verifier, location: location}, nil
}

// Source implements source.Source.
type Source struct {
	env      source.Env
	verifier *auth.Verifier
	location *time.Location
}

// Verify implements source.Source.
func (s *Source) Verify(r *source.Request) error { return s.verifier.Verify(r) }

// Proof implements source.Source.
func (s *Source) Proof() source.Proof { return s.verifier.Proof() }

// Options implements source.Source: Upload-Post does not ask.
func (s *Source) Options(*source.Request) (http.Header, bool) { return nil, false }
