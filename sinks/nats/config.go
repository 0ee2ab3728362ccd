package nats

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/natsclient"
	"github.com/postwire/postwire/sinks"
)

// Modes of publishing.
const (
	modeJetStream = "jetstream"
	modeCore      = "core"
)

// Config is the block of a sink of type nats.
type Config struct {
	URL         config.URL `yaml:"url" doc:"URL of the server, or of several servers of one cluster, separated by commas. The schemes are nats, tls, and ws or wss for WebSocket." example:"nats://a:4222,nats://b:4222"`
	Subject     string     `yaml:"subject" required:"true" doc:"Subject of an event. {attribute} stands for the attribute's value, or none if the event lacks the attribute. In a value, an underscore replaces dots, wildcards, $, spaces and control characters, so that a value is always one token." example:"events.{platform}.{outcome}"`
	Mode        string     `yaml:"mode" enum:"jetstream,core" doc:"jetstream: publish to a stream, which acknowledges each event. core: publish to the current subscribers; an event counts as delivered when the server has read the event, and is lost without a subscriber."`
	Stream      string     `yaml:"stream" doc:"Stream of the subjects; required in mode jetstream. Postwire looks up the stream before the first event." example:"EVENTS"`
	Create      bool       `yaml:"create" doc:"Create a missing stream, with file storage, for the subjects of subject with * in place of attributes."`
	ContentMode string     `yaml:"content_mode" enum:"binary,structured" doc:"binary: attributes in headers, the payload as the message. structured: the whole event as JSON."`
	Window      int        `yaml:"window" doc:"Maximum number of events of one delivery without an acknowledgement of the stream, 1 to 10000; a sink has up to 4 deliveries at once. A partition key never has more than one such event. Not used in mode core."`

	CredentialsFile string        `yaml:"credentials_file" doc:"File with the JWT and key of a NATS user, as made by nsc." example:"/etc/postwire/nats.creds"`
	NKeyFile        string        `yaml:"nkey_file" doc:"File with the NKey seed of a NATS user." example:"/etc/postwire/nats.nk"`
	User            string        `yaml:"user" doc:"User name."`
	Password        config.Secret `yaml:"password" doc:"Password of user." example:"${NATS_PASSWORD}"`
	Token           config.Secret `yaml:"token" doc:"Authentication token of the server." example:"${NATS_TOKEN}"`
	TLS             TLS           `yaml:"tls" doc:"TLS to the server."`
}

// TLS configures the encryption of the connection to the server.
type TLS struct {
	config.TLS `yaml:",inline"`

	HandshakeFirst bool `yaml:"handshake_first" doc:"Begin with the TLS handshake, before the server sends its first line. For a server with handshake_first in its tls block: with true on the server, other clients cannot connect."`
}

func defaults() Config {
	return Config{URL: "nats://localhost:4222", Mode: modeJetStream, ContentMode: sinks.Binary, Window: 256}
}

// Validate implements config.Settings.
func (c Config) Validate() error {
	var p config.Invalids
	if !natsclient.ValidURLs(c.URL) {
		p.Add("url", "is not a list of URLs", "for example nats://a:4222,nats://b:4222") // not shown, because the value may contain a password
	}
	if what, hint := checkSubject(c.Subject); what != "" {
		p.Add("subject", what, hint)
	}
	if c.Mode == modeJetStream {
		switch {
		case c.Stream == "":
			p.Add("stream", "is missing", "name the stream that takes the subjects, or set mode: core")
		case strings.ContainsAny(c.Stream, ".*>/\\") || strings.ContainsFunc(c.Stream, unsafe):
			p.Add("stream", fmt.Sprintf("%q is not a name for a stream", c.Stream), "use no space, dot, star, > or slash, for example EVENTS")
		}
	} else {
		if c.Stream != "" {
			p.Add("stream", "has no effect in mode core", "set mode: jetstream, or remove it")
		}
		if c.Create {
			p.Add("create", "has no effect in mode core", "set mode: jetstream, or remove it")
		}
	}
	if c.Window < 1 || c.Window > 10000 {
		p.Add("window", fmt.Sprintf("%d is out of range", c.Window), "use 1 to 10000")
	}
	c.login().Check("", &p)
	return p.Err()
}

func (c Config) login() natsclient.Login {
	return natsclient.Login{CredentialsFile: c.CredentialsFile, NKeyFile: c.NKeyFile, User: c.User, Password: c.Password, Token: c.Token, TLS: c.TLS.TLS, HandshakeFirst: c.TLS.HandshakeFirst}
}

// checkSubject returns the error in a subject template.
func checkSubject(text string) (what, hint string) {
	const example = "for example events.{platform}.{outcome}"
	if text == "" {
		return "is empty", example
	}
	if _, err := event.ParseTemplate(text); err != nil {
		if e, ok := errors.AsType[*event.TemplateError](err); ok {
			return fmt.Sprintf("%q has, at offset %d, %s", text, e.Offset, e.What), e.Hint
		}
		return err.Error(), example
	}
	for token := range strings.SplitSeq(text, ".") {
		switch {
		case token == "":
			return fmt.Sprintf("%q has an empty token", text), "put one dot between two tokens, and none at the ends, " + example
		case strings.ContainsAny(token, "*>"):
			return fmt.Sprintf("%q has a wildcard, and an event is published to one subject", text), "use an attribute in its place, " + example
		case strings.ContainsFunc(token, unsafe):
			return fmt.Sprintf("%q has a space or another character that a subject may not have", text), example
		}
	}
	if strings.HasPrefix(text, "$") {
		return fmt.Sprintf("%q begins with $, which is the server's own", text), example
	}
	if len(text) > maxSubject {
		return fmt.Sprintf("is longer than %d bytes", maxSubject), example
	}
	return "", ""
}

// pattern returns the subjects of a template, with wildcards.
func pattern(text string) string {
	tokens := strings.Split(text, ".")
	for i, token := range tokens {
		if strings.Contains(token, "{") {
			tokens[i] = "*"
		}
	}
	return strings.Join(tokens, ".")
}

// overlap reports whether a subject can match both patterns.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(as) && i < len(bs); i++ {
		if as[i] == ">" || bs[i] == ">" {
			return true
		}
		if as[i] != "*" && bs[i] != "*" && as[i] != bs[i] {
			return false
		}
	}
	return len(as) == len(bs)
}

// maxSubject is the maximum length of a subject. A server that reads a line
// longer than max_control_line, 4096 bytes by default, closes the connection,
// and a single event would block all other events forever.
const maxSubject = 2048

func unsafe(r rune) bool { return r <= ' ' || r >= 0x7f && r <= 0xa0 || r == '\uFFFD' }

// safeToken makes a value a single token of a subject: characters that end the
// token, wildcards, and the prefix of the server's own subjects become
// underscores.
func safeToken(value string) string {
	if value == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		if unsafe(r) || strings.ContainsRune(".*>$", r) {
			return '_'
		}
		return r
	}, value)
}
