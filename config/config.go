// Package config reads the configuration: one YAML document, strictly decoded
// into structs whose tags name, describe and exemplify each key. Everything
// that is wrong is reported at once, with line, column and what would be
// right. From the same tags come the JSON Schema and the reference page.
//
// It is the ground floor: it imports nothing of ours. What only one kind of
// source or sink understands stays an undecoded Block, which the kind itself
// decodes.
package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// Config is the whole document.
type Config struct {
	Server Server `yaml:"server" doc:"The HTTP server that takes the webhooks."`
	Admin  Admin  `yaml:"admin" doc:"The HTTP server for operators: health, metrics, API and console."`
	Log    Log    `yaml:"log" doc:"What is logged, and how. Logs go to standard error. Of one message, 100 a second are logged, and then each hundredth."`

	Telemetry Telemetry `yaml:"telemetry" doc:"What is told to collectors. Metrics are asked for, on admin.listen."`

	Journal Journal `yaml:"journal" doc:"The durable log between the webhooks and the sinks."`
	Dedupe  Dedupe  `yaml:"dedupe" doc:"How repeats of an event are recognized."`
	Schemas Schemas `yaml:"schemas" doc:"Where the schemas of the events are published."`
	Sources []Block `yaml:"sources" doc:"Who sends webhooks, and how a sender proves who it is. Each entry has a name, a type, and the keys of that type."`
	Sinks   []Block `yaml:"sinks" doc:"Where events go. Each entry has a name, a type, and the keys of that type. Every sink gets every event that its filter lets through."`

	root Block // the whole document
}

// Problem returns a problem at a key of the document, such as
// "journal.engine", with its place where the key is written.
func (c *Config) Problem(key, what, hint string) Problem { return c.root.Problem(key, what, hint) }

// Secrets returns the secrets that have been decoded so far, those of blocks
// and the credentials of URLs included, for a Scrubber.
func (c *Config) Secrets() []Secret {
	if c.root.doc == nil {
		return nil
	}
	return c.root.doc.private.known()
}

// Files returns the files that ${file:…} of the document names, sorted.
func (c *Config) Files() []string {
	if c.root.doc == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(c.root.doc.expander.files))
}

// Stamp is Stamp of Files as they were just before they were read: what is
// written meanwhile gives another one.
func (c *Config) Stamp() string {
	var stamp strings.Builder
	for _, path := range c.Files() {
		stamp.WriteString(c.root.doc.expander.files[path])
	}
	return stamp.String()
}

// Stamp returns a text that changes when one of the files does, also when one
// appears or goes. It follows the symbolic links by which Kubernetes swaps
// mounted secrets.
func Stamp(paths ...string) string {
	var stamp strings.Builder
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintln(&stamp, path, err)
			continue
		}
		fmt.Fprintln(&stamp, path, info.Size(), info.ModTime().UnixNano())
	}
	return stamp.String()
}

// Server is the HTTP server that takes the webhooks.
type Server struct {
	Name              string         `yaml:"name" doc:"Name of this process where several share a journal; no other one may have it. Empty is the name of the machine." example:"${HOSTNAME}"`
	Listen            string         `yaml:"listen" doc:"Address to listen on, host:port. Without a host it is every address of the machine; port 0 takes any free port." example:"0.0.0.0:8443"`
	MaxBodyBytes      Size           `yaml:"max_body_bytes" doc:"Largest body of a request; larger ones are answered 413."`
	MaxHeaderBytes    Size           `yaml:"max_header_bytes" doc:"Largest header of a request, request line included; larger ones are answered 431."`
	ReadHeaderTimeout time.Duration  `yaml:"read_header_timeout" doc:"Longest time for a request's header to arrive."`
	ReadTimeout       time.Duration  `yaml:"read_timeout" doc:"Longest time for a whole request to arrive, header included."`
	WriteTimeout      time.Duration  `yaml:"write_timeout" doc:"Longest time from the end of a request's header to the end of its answer. It covers the synced write to the journal."`
	IdleTimeout       time.Duration  `yaml:"idle_timeout" doc:"How long a connection is kept open for the sender's next request."`
	MaxConnectionAge  time.Duration  `yaml:"max_connection_age" doc:"Greatest age of a connection; at random up to a tenth less. The first answer after it ends the connection (Connection: close, or GOAWAY), and requests under way end as they would: a sender that connects again is held to the certificate and the client CA of that moment."`
	MaxConnections    int            `yaml:"max_connections" doc:"Most connections open at once. One more makes one close: that of a sender who has proven nothing, or else one without a request, and of these the one on which nothing has been answered for the longest. A connection that was just accepted does not close, and while none can, the new one waits. While more than half are open, connections of one address that have proven nothing take at most a quarter. Lowered at start where the limit of open files leaves fewer beside the journal, the brokers and the admin port; a log line says so."`
	MaxInFlight       int            `yaml:"max_in_flight" doc:"Most verified requests under way at once; above it they are answered 503. Half of them is for whoever comes first, the other half is divided among the sources, so that none shuts another out."`
	MaxBufferedBytes  Size           `yaml:"max_buffered_bytes" doc:"Most memory that connections, headers and bodies take at once, divided as max_in_flight is. A connection counts 16 KiB, with TLS 40 KiB, with HTTP/2 32 KiB more. Where there is no room, requests that have been arriving for the longest are answered 503, and connections are closed, first those of senders who have proven nothing. While more than half is in use, what one address has not proven takes at most a quarter. At least eight times max_body_bytes and 128 times max_header_bytes, and 1 MiB more: with less a request that is alone may not fit."`
	ShutdownDelay     time.Duration  `yaml:"shutdown_delay" doc:"How long webhooks are still taken after the process was asked to end and /readyz says so, for load balancers to notice. At most half of shutdown_timeout, of which it is a part."`
	ShutdownTimeout   time.Duration  `yaml:"shutdown_timeout" doc:"Longest time for an orderly shutdown; keep it shorter than the grace period of whatever stops the process."`
	TrustedProxies    []netip.Prefix `yaml:"trusted_proxies" doc:"Networks of the proxies in front, as CIDRs. Only from these are X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host and Forwarded (RFC 7239) believed. Where a proxy names no address that can be read, or X-Forwarded-For and Forwarded name different ones, the sender is unknown, and no network of auth.ip_allow holds it." example:"[10.0.0.0/8]"`
	TLS               ServerTLS      `yaml:"tls" doc:"Serve HTTPS. The files are watched, and reloaded when they change."`
}

// ServerTLS are the files with which a server speaks TLS.
type ServerTLS struct {
	CertFile     string `yaml:"cert_file" doc:"Certificate chain, PEM. Empty serves plain HTTP." example:"/etc/postwire/tls/tls.crt"`
	KeyFile      string `yaml:"key_file" doc:"Private key of the certificate, PEM." example:"/etc/postwire/tls/tls.key"`
	ClientCAFile string `yaml:"client_ca_file" doc:"Certificates of the authorities whose clients may connect, PEM. Where it is set, every client needs a certificate of one of them." example:"/etc/postwire/tls/ca.crt"`
}

// Enabled reports whether the server speaks TLS.
func (t ServerTLS) Enabled() bool { return t.CertFile != "" }

// Admin is the HTTP server for operators.
type Admin struct {
	Listen string `yaml:"listen" doc:"Address to listen on, host:port, for /livez, /readyz, /metrics, /api and /console. Health and metrics are open to whoever reaches it; they hold no events."`
	Token  Secret `yaml:"token" doc:"Bearer token that callers of /api must show; a long random text, such as openssl rand -hex 32 makes. Its holder is an operator, called admin.token in the audit log. This token, or one of an operator in tokens, is required unless admin.listen is a loopback address." example:"${POSTWIRE_ADMIN_TOKEN}"`

	ViewerToken Secret       `yaml:"viewer_token" doc:"Bearer token of viewers, called admin.viewer_token in the audit log. Viewers may look and change nothing, and are shown no personal data: the data of events, the bodies of requests. Requires a token of an operator. Empty is no such token." example:"${POSTWIRE_VIEWER_TOKEN}"`
	Tokens      []AdminToken `yaml:"tokens" doc:"Bearer tokens of named persons and machines, 100 at most, so that the audit log names who made a change. A change of tokens ends the sessions, tails and requests of those that are gone." example:"[{name: alice, role: operator, token: \"${file:/run/secrets/alice}\"}]"`
	AllowWeak   bool         `yaml:"allow_weak" doc:"Accept tokens of less than 16 bytes. Whoever finds one by trying can do what its holder can."`

	MaxConnectionAge time.Duration `yaml:"max_connection_age" doc:"Greatest age of a connection; at random up to a tenth less. The first answer after it ends the connection (Connection: close). A tail ends at that age with a message that names the next sequence, and the console and postwire tail continue there over a new connection."`
	TLS              ServerTLS     `yaml:"tls" doc:"Serve HTTPS on admin.listen. The files are watched, and reloaded when they change. With client_ca_file every request needs a client certificate, except those for /livez and /readyz: a kubelet has none to show."`
}

// AdminToken is a bearer token of the admin API that has a name.
type AdminToken struct {
	Name  string `yaml:"name" doc:"Name of the holder in the audit log; 64 bytes at most." example:"alice"`
	Role  string `yaml:"role" enum:"operator,viewer" doc:"Role of the holder: an operator may do everything, a viewer may look." example:"operator"`
	Token Secret `yaml:"token" doc:"Bearer token of the holder; a long random text, such as openssl rand -hex 32 makes." example:"${file:/run/secrets/alice}"`
}

// Names of the tokens that have no name of their own. They are also the keys of
// those tokens in the document.
const (
	nameOfToken       = "admin.token"
	nameOfViewerToken = "admin.viewer_token"
)

// Roles of an AdminToken.
const (
	RoleOperator = "operator"
	RoleViewer   = "viewer"
)

// Credentials returns all tokens of the admin API, with admin.token and
// admin.viewer_token under these names. No token opens the API to every caller on
// the loopback address.
func (a Admin) Credentials() []AdminToken {
	var all []AdminToken
	if a.Token != "" {
		all = append(all, AdminToken{nameOfToken, RoleOperator, a.Token})
	}
	if a.ViewerToken != "" {
		all = append(all, AdminToken{nameOfViewerToken, RoleViewer, a.ViewerToken})
	}
	return append(all, a.Tokens...)
}

// Log says what is logged, and how.
type Log struct {
	Level  string `yaml:"level" enum:"debug,info,warn,error" doc:"Least important level that is logged. It can be changed while the process runs: postwire log-level."`
	Format string `yaml:"format" enum:"json,console" doc:"One JSON object a line, or text for a person at a terminal."`
}

// Telemetry is what is told to collectors.
type Telemetry struct {
	Traces Traces `yaml:"traces" doc:"Traces in OpenTelemetry's protocol, OTLP: a span for a request that is taken, for its append, and for each attempt to deliver an event."`
}

// Traces says where traces go.
type Traces struct {
	Endpoint    URL               `yaml:"endpoint" doc:"URL of the collector; http:// is not encrypted, https:// is. Where protocol is http and the URL has no path, /v1/traces is added. Empty turns traces off." example:"http://otel-collector:4318"`
	Protocol    string            `yaml:"protocol" enum:"http,grpc" doc:"OTLP over HTTP, usually port 4318, or over gRPC, usually port 4317."`
	Headers     map[string]Secret `yaml:"headers" doc:"Headers that each request to the collector has, by name." example:"{Authorization: \"Bearer ${OTLP_TOKEN}\"}"`
	SampleRatio float64           `yaml:"sample_ratio" doc:"Share of the traces that are sent, 0 to 1, of webhooks that do not come with a traceparent of their own. One that does decides itself, where its sender has proven who it is."`
	CAFile      string            `yaml:"ca_file" doc:"Certificates of the authorities to trust, PEM, where endpoint is https://. Empty trusts those of the system." example:"/etc/postwire/tls/ca.crt"`
}

// Enabled reports whether traces are sent.
func (t Traces) Enabled() bool { return t.Endpoint != "" }

// Journal is the durable log between the two halves of the relay.
type Journal struct {
	Engine       string        `yaml:"engine" enum:"local,jetstream" doc:"Where the journal is kept: local, in a folder of this machine; or jetstream, in a NATS JetStream cluster, so that several machines run Postwire and any of them may die."`
	Dir          string        `yaml:"dir" doc:"Folder of the local engine. It is created if it is missing. Relative to the working directory." example:"/var/lib/postwire"`
	Retention    time.Duration `yaml:"retention" doc:"How long events are kept, for replay. Events that a sink still waits for stay longer. 0 keeps none beyond that."`
	MaxBytes     Size          `yaml:"max_bytes" doc:"Size of the journal at which new events are refused with 503; what was accepted is kept. The local engine keeps to it however fast events come; while it compacts its files, those that it writes anew are on the disk twice. From four fifths of it on, events that every sink has passed are removed before their retention, the oldest first. The stream of the jetstream engine gets a sixteenth more (16MiB at least), for dead letters. 0 is no limit."`
	MinFreeBytes Size          `yaml:"min_free_bytes" doc:"Below this much free disk space new events are refused with 503, so that the journal never breaks off in mid-write. As much again is reserved in the file RESERVE where the disk has room for it several times over; a relay that starts on a full disk gives that up, to deliver what is stored. Used by the local engine; 0 turns the check and the reserve off."`
	Quarantine   Quarantine    `yaml:"quarantine" doc:"Bounds of the quarantine: authenticated requests that no source understood. One that was last received before retention is discarded, too, unless retention is 0."`
	JetStream    JetStream     `yaml:"jetstream" doc:"The cluster of the jetstream engine; unused by the other one."`
	Spill        Spill         `yaml:"spill" doc:"Where the jetstream engine keeps events while the cluster does not take them; unused by the other one."`
}

// Quarantine bounds what is kept of requests that no source understood.
type Quarantine struct {
	MaxBytesPerSource Size `yaml:"max_bytes_per_source" doc:"Discards the oldest quarantined requests of a source beyond this size, which a log line and postwire_quarantine_discarded_total record; the newest request is kept, whatever its size. Requests of a source with the same body are kept once, with a count. Each request counts for half a KiB more than its size, and for 4KiB more with the jetstream engine. 0 is a twentieth of journal.max_bytes, and 1GiB at most."`
}

// JetStream is the NATS cluster that keeps the journal.
type JetStream struct {
	URL      URL    `yaml:"url" doc:"Servers of the cluster, separated by commas; version 2.12 or newer. Needed where journal.engine is jetstream." example:"nats://nats-0:4222,nats://nats-1:4222"`
	Stream   string `yaml:"stream" doc:"Name of the stream, and the first token of its subjects. It is created if it is missing. Postwire alone writes to it."`
	Replicas int    `yaml:"replicas" doc:"Servers that keep a copy of each event, 1 to 5; of 3, any one may die."`
	Update   bool   `yaml:"update" doc:"Change the stream where its settings are not those of this configuration. Without it the process says what differs, and does not start."`

	CredentialsFile string `yaml:"credentials_file" doc:"File of a user's JWT and key, as made by nsc. It is read again at every connection." example:"/etc/postwire/nats.creds"`
	NKeyFile        string `yaml:"nkey_file" doc:"File of a user's NKey seed." example:"/etc/postwire/nats.nk"`
	User            string `yaml:"user" doc:"User name."`
	Password        Secret `yaml:"password" doc:"Password of user." example:"${NATS_PASSWORD}"`
	Token           Secret `yaml:"token" doc:"Token, where the server asks for one." example:"${NATS_TOKEN}"`
	TLS             TLS    `yaml:"tls" doc:"TLS to the servers."`
}

// Spill is the local journal of a process whose journal is in a cluster.
type Spill struct {
	Enabled  bool          `yaml:"enabled" doc:"Keep events here that the cluster has not taken after hold, answer them, and forward them when it takes them again. Without it they are answered 503."`
	Dir      string        `yaml:"dir" doc:"Folder of this process alone, on a disk that outlives it: while the cluster is away it holds the only copy of what was answered. It is created if it is missing." example:"/var/lib/postwire/spill"`
	Hold     time.Duration `yaml:"hold" doc:"How long an event waits for the cluster before it is kept here, or answered 503."`
	MaxBytes Size          `yaml:"max_bytes" doc:"Size at which no more is kept here, and events are answered 503. 0 is no limit."`
}

// Dedupe says how repeats of an event are recognized.
type Dedupe struct {
	Window time.Duration `yaml:"window" doc:"How long after an event was first seen a repeat of it is dropped. A repeat does not extend it."`
}

// Schemas says where the schemas of the events are published.
type Schemas struct {
	BaseURL string `yaml:"base_url" doc:"Start of the dataschema attribute of each event. Empty gives urn:postwire:schema:<type>:1." example:"https://example.com/schemas"`
	Dir     string `yaml:"dir" doc:"Folder of your own JSON Schemas, as <type>/<version>.json, beside the built-in ones: for the schema check of sources, and served with them on admin.listen below /schemas/, to whoever can reach it. Read at the start and when the configuration is reloaded." example:"/etc/postwire/schemas"`
}

// Default returns the configuration of a document that sets nothing.
func Default() Config {
	return Config{
		Server: Server{
			Listen:            ":8080",
			MaxBodyBytes:      1 << 20,
			MaxHeaderBytes:    64 << 10,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      15 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxConnectionAge:  time.Hour,
			MaxConnections:    10000,
			MaxInFlight:       4096,
			MaxBufferedBytes:  256 << 20,
			ShutdownDelay:     time.Second,
			ShutdownTimeout:   25 * time.Second,
		},
		Admin: Admin{Listen: "127.0.0.1:9090", MaxConnectionAge: time.Hour},
		Log:   Log{Level: "info", Format: "json"},

		Telemetry: Telemetry{Traces: Traces{Protocol: "http", SampleRatio: 1}},

		Journal: Journal{
			Engine:       "local",
			Dir:          "./data",
			Retention:    168 * time.Hour,
			MinFreeBytes: 64 << 20,
			JetStream:    JetStream{Stream: "postwire", Replicas: 3},
			Spill:        Spill{Enabled: true, Dir: "./spill", Hold: 3 * time.Second, MaxBytes: 1 << 30},
		},
		Dedupe: Dedupe{Window: 24 * time.Hour},
	}
}

// Validate reports every value that is not accepted, as Invalids. It looks at
// values only; what the machine has or lacks shows when things are opened.
func (c Config) Validate() error {
	var p Invalids
	p.Nest("server", c.Server.validate())
	checkListen(&p, "admin.listen", c.Admin.Listen)
	if c.Admin.Listen == c.Server.Listen && !strings.HasSuffix(c.Server.Listen, ":0") {
		key, other := "admin.listen", "server.listen"
		if c.Admin.Listen == Default().Admin.Listen { // then it is the other one that is written
			key, other = other, key
		}
		p.Add(key, "is the same address as "+other, "use another port")
	}
	p.Nest("admin", c.Admin.validate())
	p.Nest("telemetry.traces", c.Telemetry.Traces.validate())
	p.Nest("journal", c.Journal.validate())
	if j := c.Journal; j.Engine == "jetstream" && j.Spill.Hold > 0 && j.Spill.Hold >= c.Server.WriteTimeout {
		p.Add("journal.spill.hold", fmt.Sprintf("%v is not shorter than server.write_timeout, %v", j.Spill.Hold, c.Server.WriteTimeout), "for example 3s: senders do not wait long for an answer")
	}
	if c.Dedupe.Window <= 0 {
		p.Add("dedupe.window", "must be longer than 0", "for example 24h")
	}
	if base := c.Schemas.BaseURL; base != "" {
		if u, err := url.Parse(base); err != nil || u.Scheme == "" || u.Host == "" {
			p.Add("schemas.base_url", "is not an absolute URL", "for example https://example.com/schemas")
		}
	}
	return p.Err()
}

// maxAdminTokens bounds admin.tokens: each may have sessions.
const maxAdminTokens = 100

func (a Admin) validate() error {
	var p Invalids
	all := a.Credentials()
	operators := slices.ContainsFunc(all, func(t AdminToken) bool { return t.Role == RoleOperator })
	switch {
	case operators:
	case len(all) > 0:
		key := "tokens"
		if a.ViewerToken != "" {
			key = "viewer_token"
		}
		p.Add(key, "is set, and no operator has a token: nobody could change anything", "set admin.token, or add a token with role: operator to admin.tokens")
	case !loopback(a.Listen):
		p.Add("token", "is missing, and admin.listen reaches beyond this machine", "set a token, for example ${POSTWIRE_ADMIN_TOKEN}, or listen on 127.0.0.1:9090")
	}
	if len(a.Tokens) > maxAdminTokens {
		p.Add("tokens", fmt.Sprintf("has %d entries", len(a.Tokens)), fmt.Sprintf("use %d at most", maxAdminTokens))
	}
	names, keys := map[string]bool{nameOfToken: true, nameOfViewerToken: true}, map[Secret]string{}
	check := func(key string, token Secret) {
		CheckProof(&p, key, len(token), MinProof, a.AllowWeak)
		if other, taken := keys[token]; taken {
			p.Add(key, "is the same as admin."+other+": nobody could tell the holders apart", "make another one, for example with openssl rand -hex 32")
		}
		keys[token] = key
	}
	if a.Token != "" {
		check("token", a.Token)
	}
	if a.ViewerToken != "" {
		check("viewer_token", a.ViewerToken)
	}
	for i, t := range a.Tokens {
		at := fmt.Sprintf("tokens[%d].", i)
		switch {
		case !isHolder(t.Name):
			p.Add(at+"name", "is not a name", "use 1 to 64 bytes of printable characters, without white space at the ends")
		case names[t.Name]:
			p.Add(at+"name", "is the name of another token", "give each token a name of its own")
		}
		names[t.Name] = true
		if t.Role == "" {
			p.Add(at+"role", "is missing", "use operator or viewer")
		}
		if t.Token == "" {
			p.Add(at+"token", "is empty", "make one with openssl rand -hex 32, or remove the entry")
			continue
		}
		check(at+"token", t.Token)
	}
	if a.MaxConnectionAge <= 0 {
		p.Add("max_connection_age", "must be longer than 0", "for example 1h")
	}
	p.Nest("tls", a.TLS.validate())
	return p.Err()
}

// isHolder reports whether a text can name the holder of a token in a log line.
func isHolder(name string) bool {
	return name != "" && len(name) <= 64 && utf8.ValidString(name) && strings.TrimSpace(name) == name &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}

// LeastBuffered returns the smallest max_buffered_bytes with which a body of so many
// bytes is taken from a sender that is alone. An address has a quarter for what is not
// proven: the body, which may be held twice while it arrives in chunks or compressed, and
// the header, which takes 32 times its size while it arrives, on a connection. One half is
// for whoever comes first: there the events have a copy of the body.
func (s Server) LeastBuffered(body Size) Size {
	return 4*(2*body+32*s.MaxHeaderBytes) + 1<<20
}

func (s Server) validate() error {
	var p Invalids
	checkListen(&p, "listen", s.Listen)
	for _, size := range []struct {
		key   string
		value Size
	}{{"max_body_bytes", s.MaxBodyBytes}, {"max_header_bytes", s.MaxHeaderBytes}} {
		if size.value < 1024 || size.value > 1<<30 {
			p.Add(size.key, fmt.Sprintf("%v is out of range", size.value), "use 1KiB to 1GiB")
		}
	}
	for _, timeout := range []struct {
		key     string
		value   time.Duration
		example string
	}{
		{"read_header_timeout", s.ReadHeaderTimeout, "5s"},
		{"read_timeout", s.ReadTimeout, "10s"},
		{"write_timeout", s.WriteTimeout, "15s"},
		{"idle_timeout", s.IdleTimeout, "2m"},
		{"max_connection_age", s.MaxConnectionAge, "1h"},
		{"shutdown_timeout", s.ShutdownTimeout, "25s"},
	} {
		if timeout.value <= 0 {
			p.Add(timeout.key, "must be longer than 0", "for example "+timeout.example)
		}
	}
	if s.ShutdownDelay < 0 {
		p.Add("shutdown_delay", "is negative", "use 0 for none, or a time such as 1s")
	}
	if s.MaxConnections < 1 {
		p.Add("max_connections", fmt.Sprintf("%d is out of range", s.MaxConnections), "use 1 or more")
	}
	if s.MaxInFlight < 1 {
		p.Add("max_in_flight", fmt.Sprintf("%d is out of range", s.MaxInFlight), "use 1 or more")
	}
	if least := s.LeastBuffered(s.MaxBodyBytes); s.MaxBufferedBytes < least {
		p.Add("max_buffered_bytes", fmt.Sprintf("%v is too little for a body of max_body_bytes, %v, and a header of max_header_bytes, %v", s.MaxBufferedBytes, s.MaxBodyBytes, s.MaxHeaderBytes), fmt.Sprintf("use %v or more", least))
	}
	p.Nest("tls", s.TLS.validate())
	return p.Err()
}

func (t ServerTLS) validate() error {
	var p Invalids
	switch {
	case t.CertFile != "" && t.KeyFile == "":
		p.Add("cert_file", "has no key_file beside it", "name the private key of the certificate")
	case t.CertFile == "" && t.KeyFile != "":
		p.Add("key_file", "has no cert_file beside it", "name the certificate of the key")
	case t.CertFile == "" && t.ClientCAFile != "":
		p.Add("client_ca_file", "has no cert_file and key_file beside it", "client certificates need HTTPS: name the server's own certificate and key")
	}
	return p.Err()
}

// minJournal is the smallest journal.max_bytes. The engine's own logs take up
// to a few memtables.
const minJournal = Size(128 << 20)

func (t Traces) validate() error {
	var p Invalids
	if t.Endpoint != "" {
		switch u, err := url.Parse(t.Endpoint.Reveal()); {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			p.Add("endpoint", "is not a URL that begins with http:// or https://", "for example http://otel-collector:4318")
		case u.User != nil:
			p.Add("endpoint", "holds a user or a password", "use headers")
		case t.Protocol == "grpc" && strings.Trim(u.Path, "/") != "":
			p.Add("endpoint", "has a path, and gRPC has none", "for example http://otel-collector:4317")
		case t.CAFile != "" && u.Scheme != "https":
			p.Add("ca_file", "is set, and endpoint is not https://", "use https://")
		}
	}
	if !(t.SampleRatio >= 0 && t.SampleRatio <= 1) {
		p.Add("sample_ratio", fmt.Sprintf("%v is out of range", t.SampleRatio), "use 0 to 1, for example 0.05")
	}
	for _, name := range slices.Sorted(maps.Keys(t.Headers)) {
		value := t.Headers[name]
		switch {
		case !httpguts.ValidHeaderFieldName(name): // it may be a whole header, with its secret
			p.Add("headers", "holds a name that no header has", "write a name such as Authorization, a colon, and the value")
		case !httpguts.ValidHeaderFieldValue(value.Reveal()):
			p.Add("headers."+name, "has a character that no header can hold", "look for a line break in the file or variable it comes from")
		}
	}
	return p.Err()
}

func (j Journal) validate() error {
	var p Invalids
	if j.Engine == "local" && j.Dir == "" {
		p.Add("dir", "is empty", "name a folder, for example ./data")
	}
	if j.Retention < 0 {
		p.Add("retention", "is negative", "use 0 to keep nothing beyond delivery, or a time such as 168h")
	}
	if j.MaxBytes != 0 && j.MaxBytes < minJournal {
		p.Add("max_bytes", fmt.Sprintf("%v is too small", j.MaxBytes), fmt.Sprintf("use %v or more, or 0 for no limit", minJournal))
	}
	if j.Quarantine.MaxBytesPerSource < 0 {
		p.Add("quarantine.max_bytes_per_source", "is negative", "use 0 for a twentieth of journal.max_bytes, or a size such as 100MiB")
	}
	if q := j.Quarantine.MaxBytesPerSource; j.MaxBytes > 0 && q >= j.MaxBytes {
		p.Add("quarantine.max_bytes_per_source", fmt.Sprintf("%v is not smaller than journal.max_bytes, %v: one source could fill the journal", q, j.MaxBytes), "use 0 for a twentieth of journal.max_bytes, or a small part of it")
	}
	if j.MinFreeBytes < 0 {
		p.Add("min_free_bytes", "is negative", "use 0 for no check, or a size such as 64MiB")
	}
	if j.Engine == "jetstream" && j.JetStream.URL == "" {
		p.Add("jetstream.url", "is missing, and journal.engine is jetstream", "name the servers, for example nats://localhost:4222")
	}
	if s := j.JetStream.Stream; s == "" || strings.ContainsAny(s, ". \t\r\n*>/\\") {
		p.Add("jetstream.stream", fmt.Sprintf("%q is not a name of a stream", s), "use letters, digits, dashes and underscores")
	}
	if r := j.JetStream.Replicas; r < 1 || r > 5 {
		p.Add("jetstream.replicas", fmt.Sprintf("%d is out of range", r), "use 1 to 5, best an odd number")
	}
	if s := j.Spill; s.Enabled && s.Dir == "" {
		p.Add("spill.dir", "is empty", "for example ./spill, or set journal.spill.enabled: false")
	}
	if j.Spill.Hold < 500*time.Millisecond {
		p.Add("spill.hold", fmt.Sprintf("%v is too short: a cluster that is well may take longer", j.Spill.Hold), "for example 3s")
	}
	if s := j.Spill.MaxBytes; s != 0 && s < minJournal {
		p.Add("spill.max_bytes", fmt.Sprintf("%v is too small", s), fmt.Sprintf("use %v or more, or 0 for no limit", minJournal))
	}
	return p.Err()
}

// loopback reports whether addr reaches this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return true // which is a problem of its own
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// checkListen notes whether addr is not an address to listen on.
func checkListen(p *Invalids, key, addr string) {
	if addr == "" {
		p.Add(key, "is empty", "use host:port or :port, for example :8080")
		return
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		p.Add(key, fmt.Sprintf("%q is not host:port", addr), "use host:port or :port, for example :8080")
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.Add(key, fmt.Sprintf("%q has no port from 0 to 65535", addr), "use host:port or :port, for example :8080")
	}
}
