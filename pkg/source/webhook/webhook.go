// Package webhook understands any webhook with a JSON body by its configuration: CEL
// expressions map attributes and identity from body, headers, path and query. Some senders
// have presets. Only the configuration names attributes; a request supplies values.
package webhook

import (
	_ "embed"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
)

// Config is the configuration of a source of type webhook.
type Config struct {
	Preset    auth.Preset `yaml:"preset" enum:"none,github,stripe,standard-webhooks,slack" doc:"Mapping and signature format of this sender. Keys you set override the preset's. postwire config print shows the preset as keys."`
	Event     Mapping     `yaml:"event" doc:"Event attributes, as CEL expressions over body, headers (by lower-case names), path and query. An attribute is omitted if its expression finds nothing; without a type, an id or a mapped source the webhook is malformed. See docs/webhooks.md."`
	Dedupe    []string    `yaml:"dedupe" doc:"Expressions for dedupe keys: two webhooks with an equal text from any expression are one event. At least one expression must find a text. Default is the id." example:"[\"body.id\"]"`
	Split     string      `yaml:"split" doc:"Location of a list in the body whose elements are separate events: body, or a field path below body. In expressions, body is then the element, and envelope is the whole body. The events are stored together or not at all, at most 1000." example:"body.events"`
	Form      string      `yaml:"form" doc:"Name of the form field with the JSON if a body is a form (application/x-www-form-urlencoded); * makes an object of all fields, as texts. Other bodies are JSON. Without form, every body is JSON." example:"payload"`
	Challenge string      `yaml:"challenge" doc:"Expression with the response text if the webhook is no event but a challenge, as Slack sends to verify a URL. The response has status 200." example:"body.?challenge"`
	Auth      auth.Auth   `yaml:"auth" required:"true" doc:"Authentication of the sender: the word none, or a mapping of methods; a request must pass every method."`
}

// Mapping configures the attributes of events.
type Mapping struct {
	Type         string            `yaml:"type" doc:"Expression for the type. Required without a preset." example:"'com.example.' + body.event"`
	Source       string            `yaml:"source" doc:"Expression for the source, a URI reference. Default is urn:postwire:source: followed by the name of this source."`
	Subject      string            `yaml:"subject" doc:"Expression for the subject."`
	ID           string            `yaml:"id" doc:"Expression for the id. Consumers drop a second event with an equal source and id, so the id must contain everything that dedupe distinguishes. Default is the digest of the JSON (sha256: and hex of the canonical form, with numbers as sent)."`
	Time         string            `yaml:"time" doc:"Expression for the time: RFC 3339 text with an offset, Unix seconds, or a timestamp."`
	PartitionKey string            `yaml:"partitionkey" doc:"Expression for the partition key. Events with equal keys keep their order."`
	Extensions   map[string]string `yaml:"extensions" doc:"Expressions for extension attributes, by name: lower-case letters and digits, at most 20." example:"{tenant: body.account.id}"`
}

// none is the preset of a source without a preset.
const none auth.Preset = "none"

// longestName is the maximum name length that CloudEvents recommends for extensions.
const longestName = 20

// reserved are attributes that Postwire sets, or that have configuration keys of their own.
func reserved() []string {
	return []string{
		"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data",
		event.PartitionKey, event.RecordedTime, event.TraceParent, event.SourceName, "tracestate",
	}
}

// Validate implements config.Settings.
func (c Config) Validate() error {
	_, err := c.compile()
	return config.Join(err, c.Auth.Validate())
}

// mapping is a Config with compiled expressions.
type mapping struct {
	typ, source, subject, id, time, partitionKey, challenge *expression // nil without an expression

	extensions []extension // sorted by name
	dedupe     []*expression

	split bool
	path  []string // set with split
}

type extension struct {
	name  string
	value *expression
}

// compile compiles the expressions, or reports all errors.
func (c Config) compile() (*mapping, error) {
	var p config.Invalids
	if _, ok := preset(c.Preset); !ok && c.Preset != none && c.Preset != "" {
		p.Add("preset", fmt.Sprintf("%q is not a preset", string(c.Preset)), "use none, github, stripe, standard-webhooks or slack")
	}
	l, err := newLanguage(c.Split != "")
	if err != nil {
		return nil, err
	}
	m := &mapping{split: c.Split != ""}
	if m.split {
		path, fault := l.splitPath(c.Split)
		if fault != nil {
			p.Add("split", fault.What, fault.Hint)
		}
		m.path = path
	}
	compile := func(l language, key, text string, w want) *expression {
		x, fault := l.compile(key, text, w)
		if fault != nil {
			p.Add(key, fault.What, fault.Hint)
		}
		return x
	}
	if c.Event.Type == "" {
		p.Add("event.type", "is missing, and there is no preset", `say where the type is, for example "'com.example.' + body.event"`)
	}
	for _, x := range []struct {
		to        **expression
		key, text string
		want      want
	}{
		{&m.typ, "event.type", c.Event.Type, wantText()},
		{&m.source, "event.source", c.Event.Source, wantText()},
		{&m.subject, "event.subject", c.Event.Subject, wantText()},
		{&m.id, "event.id", c.Event.ID, wantText()},
		{&m.time, "event.time", c.Event.Time, wantTime()},
		{&m.partitionKey, "event.partitionkey", c.Event.PartitionKey, wantText()},
	} {
		if x.text != "" {
			*x.to = compile(l, x.key, x.text, x.want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Event.Extensions)) {
		key := "event.extensions." + name
		if what, hint := unfitName(name); what != "" {
			p.Add(key, what, hint)
			continue
		}
		m.extensions = append(m.extensions, extension{name, compile(l, key, c.Event.Extensions[name], wantText())})
	}
	for i, text := range c.Dedupe {
		m.dedupe = append(m.dedupe, compile(l, fmt.Sprintf("dedupe[%d]", i), text, wantText()))
	}
	if c.Challenge != "" {
		whole, err := newLanguage(false) // a challenge is evaluated before the body is split
		if err != nil {
			return nil, err
		}
		m.challenge = compile(whole, "challenge", c.Challenge, wantText())
	}
	return m, p.Err()
}

// unfitName returns why an extension cannot have a name.
func unfitName(name string) (what, hint string) {
	switch {
	case slices.Contains(reserved(), name):
		hint = "name it otherwise"
		if slices.Contains([]string{"id", "source", "type", "subject", "time", event.PartitionKey}, name) {
			hint = "write it beside extensions, as event." + name
		}
		return "is an attribute that is set already", hint
	case name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "":
		return fmt.Sprintf("%q is not the name of an attribute", name), "use lower case letters and digits only"
	case len(name) > longestName:
		return fmt.Sprintf("is longer than the %d characters that every receiver takes", longestName), "shorten it"
	}
	return "", ""
}

//go:embed example.yaml
var example string

// Kind is the kind of source webhook.
func Kind() source.Kind {
	return source.DefineCompleted("webhook", "JSON webhooks of any sender, mapped to events by expressions. See [webhooks.md](../webhooks.md).", example,
		func() Config { return Config{Preset: none} },
		func(c *Config) { *c = c.completed() },
		New)
}

// New returns a source.
func New(c Config, env source.Env) (source.Source, error) {
	c = c.completed() // Kind has completed its configurations before
	m, err := c.compile()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	verifier, err := c.Auth.Verifier()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", env.Name, err)
	}
	s := &Source{env: env, verifier: verifier, proof: verifier.Proof(), form: c.Form, mapping: m}
	if signs := s.proof.Signs; signs != nil {
		for _, x := range append([]*expression{m.typ, m.source, m.id}, m.dedupe...) {
			s.digest = s.digest || x.uses(signs)
		}
	}
	return s, nil
}

// Source implements source.Source.
type Source struct {
	env      source.Env
	verifier *auth.Verifier
	proof    source.Proof
	form     string
	mapping  *mapping
	digest   bool // identity parts are not signed, so that the signed parts also identify the event
}

// Verify implements source.Source.
func (s *Source) Verify(r *source.Request) error { return s.verifier.Verify(r) }

// Proof implements source.Source.
func (s *Source) Proof() source.Proof { return s.verifier.Proof() }

// Attributes implements source.Source: the names of the mapping.
func (s *Source) Attributes() source.Attributes {
	var a source.Attributes
	if s.mapping.partitionKey != nil {
		a.Names = append(a.Names, event.PartitionKey)
	}
	for _, x := range s.mapping.extensions {
		a.Names = append(a.Names, x.name)
	}
	return a
}

// Options implements source.Source: webhooks have no handshake.
func (s *Source) Options(*source.Request) (http.Header, bool) { return nil, false }
