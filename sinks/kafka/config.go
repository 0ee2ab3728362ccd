package kafka

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
	"github.com/xdg-go/stringprep"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Config is the block of a sink of type kafka.
type Config struct {
	Brokers     []string `yaml:"brokers" required:"true" list:"commas" doc:"Bootstrap brokers, as host:port. A text may have several brokers, separated by commas, such as the value of one variable." example:"[kafka-0:9092, kafka-1:9092]"`
	Topic       string   `yaml:"topic" required:"true" doc:"Topic of an event. {attribute} stands for the attribute's value, or none if the event lacks the attribute. In a value, an underscore replaces every character except ASCII letters, digits, dots, underscores and dashes." example:"upload-post.events"`
	ContentMode string   `yaml:"content_mode" enum:"binary,structured" doc:"binary: attributes in headers, the payload as the record value. structured: the whole event as JSON."`
	Acks        string   `yaml:"acks" enum:"all,one" doc:"Acknowledgement of a write. all: by all in-sync replicas. one: by the leader alone; a crash of the leader loses acknowledged events."`
	Idempotence string   `yaml:"idempotence" enum:"auto,required,off" doc:"Idempotent producer: after a lost answer or a change of the leader, a batch is sent again with equal numbers, and the broker stores the batch once. auto: with one warning, events may be in the topic twice where the cluster forbids it, or with acks: one. required: the sink does not open where the cluster forbids it."`
	Compression string   `yaml:"compression" enum:"none,gzip,snappy,lz4,zstd" doc:"Compression of record batches."`

	Create            bool `yaml:"create" doc:"Create missing topics. Postwire never uses the auto-creation of the brokers, because the first write would fail."`
	Partitions        int  `yaml:"partitions" doc:"Number of partitions of a created topic; -1 uses the brokers' num.partitions. Choose carefully: when the number changes later, a key may move to another partition."`
	ReplicationFactor int  `yaml:"replication_factor" doc:"Number of replicas of a created topic; -1 uses the brokers' default.replication.factor."`

	MaxMessageBytes config.Size `yaml:"max_message_bytes" doc:"Maximum size of a batch, and so of a record, with headers and before compression. Larger events become dead letters. Must not exceed the topic's max.message.bytes."`

	SASL  SASL       `yaml:"sasl" doc:"SASL authentication."`
	TLS   config.TLS `yaml:"tls" doc:"TLS to the brokers. The files are read again for each connection, so a renewed certificate needs no reload."`
	Proxy Proxy      `yaml:"proxy" doc:"Proxy for all connections of the sink: to the brokers and to the token endpoint. The proxy resolves the host names. HTTP_PROXY and ALL_PROXY of the environment are not used."`
}

// SASL is how the relay logs in.
type SASL struct {
	Mechanism string        `yaml:"mechanism" enum:"none,plain,scram-sha-256,scram-sha-512,oauthbearer" doc:"SASL mechanism. oauthbearer authenticates with a token, see oauth."`
	Username  string        `yaml:"username" doc:"User name, for plain and scram."`
	Password  config.Secret `yaml:"password" doc:"Password, for plain and scram." example:"${KAFKA_PASSWORD}"`
	OAuth     OAuth         `yaml:"oauth" doc:"Token of mechanism oauthbearer."`
}

const (
	acksOne = "one"

	noSASL     = "none"
	plainSASL  = "plain"
	bearerSASL = "oauthbearer"
)

func defaults() Config {
	return Config{
		ContentMode: sinks.Binary, Acks: "all", Idempotence: idempotenceAuto, Compression: "none",
		Partitions: -1, ReplicationFactor: -1, MaxMessageBytes: 1 << 20,
		SASL: SASL{Mechanism: noSASL, OAuth: OAuth{Provider: clientCredentials}},
	}
}

// Validate implements config.Settings.
func (c Config) Validate() error {
	var p config.Invalids
	if len(c.Brokers) == 0 {
		p.Add("brokers", "is empty", "list at least one broker, for example localhost:9092")
	}
	for i, addr := range c.Brokers {
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			key := fmt.Sprintf("brokers[%d]", i)
			if strings.Contains(addr, "@") { // may be a password
				p.Add(key, "holds more than host:port", "for example localhost:9092; user and password stand under sasl")
				continue
			}
			p.Add(key, fmt.Sprintf("%q is not host:port", addr), "for example localhost:9092")
		}
	}
	if what, hint := checkTopic(c.Topic); what != "" {
		p.Add("topic", what, hint)
	}
	if c.Partitions != -1 && c.Partitions < 1 {
		p.Add("partitions", fmt.Sprintf("%d is out of range", c.Partitions), "use 1 or more, or -1 for the brokers' default")
	}
	if c.ReplicationFactor != -1 && c.ReplicationFactor < 1 {
		p.Add("replication_factor", fmt.Sprintf("%d is out of range", c.ReplicationFactor), "use 1 or more, or -1 for the brokers' default")
	}
	if c.MaxMessageBytes < 1024 {
		p.Add("max_message_bytes", fmt.Sprintf("%d is too small", int64(c.MaxMessageBytes)), "use 1KiB or more")
	}
	if c.Idempotence == idempotenceRequired && c.Acks == acksOne {
		p.Add("idempotence", "is required beside acks: one", "set acks: all, because a crash of the leader would lose what the leader alone has acknowledged")
	}
	p.Nest("sasl", c.SASL.validate())
	c.TLS.Check("tls", &p)
	p.Nest("proxy", c.Proxy.validate())
	return p.Err()
}

// validate checks a login against the rules of the mechanism. A client library
// that refuses a password quotes the password, so an invalid password must not
// reach the library.
func (s SASL) validate() error {
	var p config.Invalids
	if s.Mechanism == bearerSASL {
		if s.Username != "" || s.Password != "" {
			p.Add("username", "has no effect with mechanism oauthbearer", "remove username and password")
		}
		p.Nest("oauth", s.OAuth.validate())
		return p.Err()
	}
	if !s.OAuth.empty() {
		p.Add("oauth", "has no effect with mechanism "+s.Mechanism, "set mechanism: oauthbearer, or remove oauth")
	}
	switch {
	case s.Mechanism == noSASL && (s.Username != "" || s.Password != ""):
		p.Add("mechanism", "is none beside a username or password", "use plain, scram-sha-256 or scram-sha-512")
	case s.Mechanism != noSASL && s.Username == "":
		p.Add("username", "is missing", "name the user")
	case s.Mechanism != noSASL && s.Password == "":
		p.Add("password", "is missing", "for example ${KAFKA_PASSWORD}")
	}
	for _, text := range []struct{ key, value string }{{"username", s.Username}, {"password", s.Password.Reveal()}} {
		switch prepared, err := stringprep.SASLprep.Prepare(text.value); {
		case !utf8.ValidString(text.value):
			p.Add(text.key, "is not text in UTF-8", "check the encoding of the variable or file it comes from")
		case strings.Contains(text.value, "\x00"):
			p.Add(text.key, "holds a zero byte (U+0000), which ends a name or password in SASL", "use another one")
		case s.Mechanism == noSASL || s.Mechanism == plainSASL:
		case err != nil:
			p.Add(text.key, unprepared(err)+", which SASLprep (RFC 4013) forbids for mechanism "+s.Mechanism, "use letters, digits and punctuation of ASCII, or set mechanism: plain over TLS")
		case prepared == "" && text.value != "":
			p.Add(text.key, "holds only characters that SASLprep (RFC 4013) removes", "use letters, digits and punctuation of ASCII")
		}
	}
	return p.Err()
}

// unprepared returns the error of SASLprep without the quoted text.
func unprepared(err error) string {
	e, ok := errors.AsType[stringprep.Error](err)
	switch {
	case !ok:
		return "cannot be prepared"
	case unicode.IsControl(e.Rune):
		return "holds a line break, a tab or another control character"
	case strings.HasPrefix(e.Msg, "BiDi"):
		return "mixes scripts that run to the left and to the right"
	}
	return "holds an emoji, or another character that is newer than Unicode 3.2 or no text"
}

// checkTopic returns the error in a topic template.
func checkTopic(text string) (what, hint string) {
	const example = "for example upload-post.events"
	if text == "" {
		return "is empty", example
	}
	t, err := event.ParseTemplate(text)
	if err != nil {
		if e, ok := errors.AsType[*event.TemplateError](err); ok {
			return fmt.Sprintf("%q has, at offset %d, %s", text, e.Offset, e.What), e.Hint
		}
		return err.Error(), example
	}
	// The constant part must be a legal name.
	literal := strings.NewReplacer("{", "", "}", "").Replace(text)
	switch {
	case literal != "" && literal != safeTopic(literal):
		return fmt.Sprintf("%q has a character that a topic may not have", text), "use letters, digits, dot, underscore and dash, " + example
	case t.Static() && (text == "." || text == ".."):
		return fmt.Sprintf("%q is not a name for a topic", text), example
	case t.Static() && len(text) > maxTopic:
		return fmt.Sprintf("is longer than %d characters", maxTopic), example
	}
	return "", ""
}

// maxTopic is the maximum length of a topic name in bytes.
const maxTopic = 249

// safeTopic makes a value part of a topic name: invalid characters become
// underscores.
func safeTopic(value string) string {
	if value == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '_'
	}, value)
}

func (c Config) acks() kafka.RequiredAcks {
	if c.Acks == acksOne {
		return kafka.RequireOne
	}
	return kafka.RequireAll
}

func (c Config) compression() kafka.Compression {
	return map[string]kafka.Compression{
		"gzip": compress.Gzip, "snappy": compress.Snappy, "lz4": compress.Lz4, "zstd": compress.Zstd,
	}[c.Compression]
}

// mechanism returns the mechanism of a user name and password, or nil.
func (s SASL) mechanism() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case plainSASL:
		return plain.Mechanism{Username: s.Username, Password: s.Password.Reveal()}, nil
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, s.Username, s.Password.Reveal())
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, s.Username, s.Password.Reveal())
	}
	return nil, nil //nolint:nilnil // nil is what the client takes for "no SASL"
}
