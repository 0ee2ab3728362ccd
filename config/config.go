// Package config reads the configuration: a YAML document, strictly decoded
// into structs whose tags name, describe and exemplify each key. All errors are
// reported at once, with line, column and a suggested fix. The JSON Schema and
// the reference page come from the same tags.
//
// Package config imports no other package of Postwire. The keys of a single
// kind of source or sink stay an undecoded Block, and the kind decodes the
// Block.
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
	Server Server `yaml:"server" doc:"HTTP server for webhooks."`
	Admin  Admin  `yaml:"admin" doc:"HTTP server for operators: health, metrics, API and console."`
	Log    Log    `yaml:"log" doc:"Logging. Logs go to standard error. Per second, the first 100 repetitions of a message are logged, then every hundredth."`

	Telemetry Telemetry `yaml:"telemetry" doc:"Trace export (push). Metrics are not pushed: scrape /metrics on admin.listen."`

	Journal Journal `yaml:"journal" doc:"Durable log between the webhooks and the sinks."`
	Dedupe  Dedupe  `yaml:"dedupe" doc:"Recognition of repeated events."`
	Schemas Schemas `yaml:"schemas" doc:"JSON Schemas of the events."`
	Sources []Block `yaml:"sources" doc:"Senders of webhooks and their authentication. Each entry has a name, a type, and the keys of that type."`
	Sinks   []Block `yaml:"sinks" doc:"Destinations of events. Each entry has a name, a type, and the keys of that type. Every sink gets every event that matches the filter of the sink."`

	root Block // the whole document
}

// Problem returns a problem at a key of the document, such as "journal.engine",
// with the position of the key in the file.
func (c *Config) Problem(key, what, hint string) Problem { return c.root.Problem(key, what, hint) }

// Secrets returns the secrets decoded so far, including secrets of blocks and
// credentials of URLs, for a Scrubber.
func (c *Config) Secrets() []Secret {
	if c.root.doc == nil {
		return nil
	}
	return c.root.doc.private.list()
}

// Files returns the files of all ${file:…} in the document, sorted.
func (c *Config) Files() []string {
	if c.root.doc == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(c.root.doc.expander.files))
}

// Stamp returns the Stamp of Files from just before the files were read, so
// that a later write changes the stamp.
func (c *Config) Stamp() string {
	var stamp strings.Builder
	for _, path := range c.Files() {
		stamp.WriteString(c.root.doc.expander.files[path])
	}
	return stamp.String()
}

// Stamp returns a text that changes when a file is written, created or removed.
// Stamp follows the symbolic links by which Kubernetes swaps mounted secrets.
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

// Server configures the HTTP server for webhooks.
type Server struct {
	Name              string         `yaml:"name" doc:"Name of this process among relays with a shared journal; must be unique. Empty uses the host name." example:"${HOSTNAME}"`
	Listen            string         `yaml:"listen" doc:"Listen address, host:port. Without a host, the server listens on every address of the machine; port 0 takes any free port." example:"0.0.0.0:8443"`
	MaxBodyBytes      Size           `yaml:"max_body_bytes" doc:"Maximum size of a request body; larger bodies are answered 413."`
	MaxHeaderBytes    Size           `yaml:"max_header_bytes" doc:"Maximum size of a request header, including the request line; larger headers are answered 431."`
	ReadHeaderTimeout time.Duration  `yaml:"read_header_timeout" doc:"Maximum time for a request header to arrive."`
	ReadTimeout       time.Duration  `yaml:"read_timeout" doc:"Maximum time for a whole request to arrive, including the header."`
	WriteTimeout      time.Duration  `yaml:"write_timeout" doc:"Maximum time from the end of the request header to the end of the response. Includes the synced write to the journal."`
	IdleTimeout       time.Duration  `yaml:"idle_timeout" doc:"Maximum idle time of a keep-alive connection."`
	MaxConnectionAge  time.Duration  `yaml:"max_connection_age" doc:"Maximum age of a connection; a random part of up to a tenth is subtracted. The first response after this age closes the connection (Connection: close, or GOAWAY), and requests in flight complete. A new connection is checked against the current certificate and client CA."`
	MaxConnections    int            `yaml:"max_connections" doc:"Maximum number of open connections. At this number, a new connection replaces an old connection: first of unauthenticated senders, and among these the connection that has waited the longest for a request or for the rest of a request. A connection with a verified request, and a connection accepted less than 250 ms ago, is never closed for this; then the new connection waits. While more than half are open, unauthenticated connections from one address get at most a quarter. Lowered at start, with a log line, if the limit of open files is too small for the journal, the brokers and the admin port as well."`
	MaxInFlight       int            `yaml:"max_in_flight" doc:"Maximum number of verified requests in flight; further requests are answered 503. Half of this limit is shared by all sources; the other half is reserved in equal parts for each source, so that no source can starve another."`
	MaxBufferedBytes  Size           `yaml:"max_buffered_bytes" doc:"Maximum memory for connections, headers and bodies, divided between sources like max_in_flight. A connection counts 16 KiB, with TLS 40 KiB, with HTTP/2 32 KiB more. When the memory is used up, the requests with the longest arrival time are answered 503 and connections are closed, first connections of unauthenticated senders. While more than half is in use, unauthenticated requests from one address get at most a quarter. Minimum: eight times max_body_bytes and 128 times max_header_bytes, plus 1 MiB; with less, a single request may not fit."`
	ShutdownDelay     time.Duration  `yaml:"shutdown_delay" doc:"Time between the termination signal and the end of accepting webhooks. During this time /readyz reports not ready, so that load balancers can remove the process, and every answer ends its connection (Connection: close, or GOAWAY on HTTP/2); idle connections stay open until the end. At most half of shutdown_timeout, and part of shutdown_timeout."`
	ShutdownTimeout   time.Duration  `yaml:"shutdown_timeout" doc:"Maximum time for a graceful shutdown. Keep shutdown_timeout shorter than the termination grace period of the service manager."`
	TrustedProxies    []netip.Prefix `yaml:"trusted_proxies" doc:"Networks of reverse proxies in front of Postwire, as CIDRs. X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host and Forwarded (RFC 7239) are believed only from these networks. If a proxy sends no readable address, or different addresses in X-Forwarded-For and Forwarded, the sender's address is unknown and matches no network of auth.ip_allow." example:"[10.0.0.0/8]"`
	TLS               ServerTLS      `yaml:"tls" doc:"HTTPS. Changed files are reloaded."`
}

// ServerTLS names the files for TLS on a server.
type ServerTLS struct {
	CertFile     string `yaml:"cert_file" doc:"Certificate chain, PEM. Empty serves plain HTTP." example:"/etc/postwire/tls/tls.crt"`
	KeyFile      string `yaml:"key_file" doc:"Private key of the certificate, PEM." example:"/etc/postwire/tls/tls.key"`
	ClientCAFile string `yaml:"client_ca_file" doc:"CA certificates for client certificates, PEM. If set, every client needs a certificate from one of these authorities." example:"/etc/postwire/tls/ca.crt"`
}

// Enabled reports whether the server speaks TLS.
func (t ServerTLS) Enabled() bool { return t.CertFile != "" }

// Admin is the HTTP server for operators.
type Admin struct {
	Listen string `yaml:"listen" doc:"Listen address, host:port, for /livez, /readyz, /metrics, /api and /console. Health and metrics need no token and contain no events."`
	Token  Secret `yaml:"token" doc:"Bearer token for /api, as a long random text from openssl rand -hex 32. The holder is an operator, called admin.token in the audit log. This token, or the token of an operator in tokens, is required unless admin.listen is a loopback address." example:"${POSTWIRE_ADMIN_TOKEN}"`

	ViewerToken Secret       `yaml:"viewer_token" doc:"Bearer token for viewers, called admin.viewer_token in the audit log. Viewers have read access without personal data: no event data and no request bodies. Requires the token of an operator. Empty disables this token." example:"${POSTWIRE_VIEWER_TOKEN}"`
	Tokens      []AdminToken `yaml:"tokens" doc:"Bearer tokens of named persons and machines, at most 100, so that the audit log names the author of a change. Removing or changing a token ends the sessions, tails and requests that use this token." example:"[{name: alice, role: operator, token: \"${file:/run/secrets/alice}\"}]"`
	AllowWeak   bool         `yaml:"allow_weak" doc:"Accept tokens shorter than 16 bytes. An attacker who guesses a token has the rights of the holder."`

	MaxConnectionAge time.Duration `yaml:"max_connection_age" doc:"Maximum age of a connection; a random part of up to a tenth is subtracted. The first response after this age closes the connection (Connection: close). A tail ends at this age with a message that contains the next sequence; the console and postwire tail continue there over a new connection."`
	TLS              ServerTLS     `yaml:"tls" doc:"HTTPS on admin.listen. Changed files are reloaded. With client_ca_file every request needs a client certificate, except requests to /livez and /readyz, because a kubelet has no client certificate."`
}

// AdminToken is a named bearer token of the admin API.
type AdminToken struct {
	Name  string `yaml:"name" doc:"Name of the holder in the audit log; at most 64 bytes." example:"alice"`
	Role  string `yaml:"role" enum:"operator,viewer" doc:"Role of the holder: an operator has full access, a viewer has read access without personal data." example:"operator"`
	Token Secret `yaml:"token" doc:"Bearer token of the holder, as a long random text from openssl rand -hex 32." example:"${file:/run/secrets/alice}"`
}

// Names of the tokens without a configured name. The names are also the keys of
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

// Credentials returns all tokens of the admin API, including admin.token and
// admin.viewer_token under these names. Without any token, every caller on the
// loopback address has access.
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

// Log configures logging.
type Log struct {
	Level  string `yaml:"level" enum:"debug,info,warn,error" doc:"Minimum level of log messages. postwire log-level changes the level of a running process."`
	Format string `yaml:"format" enum:"json,console" doc:"json: one JSON object per line. console: text for a person at a terminal."`
}

// Telemetry configures the export of traces.
type Telemetry struct {
	Traces Traces `yaml:"traces" doc:"Traces in the OpenTelemetry protocol (OTLP): a span for each accepted request, for its append to the journal, and for each delivery attempt."`
}

// Traces configures the trace collector.
type Traces struct {
	Endpoint    URL               `yaml:"endpoint" doc:"URL of the collector; http:// is not encrypted, https:// is encrypted. With protocol http and a URL without a path, /v1/traces is added. Empty disables traces." example:"http://otel-collector:4318"`
	Protocol    string            `yaml:"protocol" enum:"http,grpc" doc:"OTLP over HTTP, usually port 4318, or over gRPC, usually port 4317."`
	Headers     map[string]Secret `yaml:"headers" doc:"Headers of each request to the collector, by name." example:"{Authorization: \"Bearer ${OTLP_TOKEN}\"}"`
	SampleRatio float64           `yaml:"sample_ratio" doc:"Share of traces to send, from 0 to 1, for webhooks without a traceparent header. The sampling flag of a traceparent from an authenticated sender takes precedence."`
	CAFile      string            `yaml:"ca_file" doc:"CA certificates to trust, PEM, if endpoint is https://. Empty trusts the CA certificates of the system." example:"/etc/postwire/tls/ca.crt"`
}

// Enabled reports whether traces are sent.
func (t Traces) Enabled() bool { return t.Endpoint != "" }

// Journal is the durable log between the two halves of the relay.
type Journal struct {
	Engine       string        `yaml:"engine" enum:"local,jetstream" doc:"Storage of the journal. local: a folder on this machine. jetstream: a NATS JetStream cluster, for several relays on several machines with failover."`
	Dir          string        `yaml:"dir" doc:"Folder of the local engine, created if missing. A relative path starts at the working directory." example:"/var/lib/postwire"`
	Retention    time.Duration `yaml:"retention" doc:"How long events stay in the journal, for replay. Events pending for a sink stay longer. 0 keeps only pending events."`
	MaxBytes     Size          `yaml:"max_bytes" doc:"Maximum size of the journal; at this size new events are refused with 503, and accepted events are kept. The local engine counts every event when it is accepted; on the disk it may take one segment of its log more, at most 16MiB. From four fifths of this size on, or when the disk has less than one and a half times min_free_bytes free, events without a pending delivery are removed before the end of retention, the oldest first. The stream of the jetstream engine gets a sixteenth more (at least 16MiB) for dead letters. 0 disables the limit."`
	MinFreeBytes Size          `yaml:"min_free_bytes" doc:"Minimum free disk space; below this, new events are refused with 503, so that no write to the journal stops in the middle. If the disk has several times this space free, the file RESERVE reserves the space once more; a relay that starts on a full disk deletes RESERVE to deliver the stored events. With the embedded cluster, a relay refuses new events while the disk of its own replica has less space free, without a reserve, and other relays still store events on this disk. Unused by relays over NATS servers, except for the spill. 0 disables the check and the reserve."`
	Quarantine   Quarantine    `yaml:"quarantine" doc:"Limits of the quarantine: authenticated requests that no source understood. Discards a request after retention, counted from its last repeat, unless retention is 0."`
	JetStream    JetStream     `yaml:"jetstream" doc:"NATS cluster of the jetstream engine; unused by the local engine."`
	Spill        Spill         `yaml:"spill" doc:"Local disk storage of the jetstream engine while the cluster is unavailable; unused by the local engine."`
}

// Quarantine limits the stored requests that no source understood.
type Quarantine struct {
	MaxBytesPerSource Size `yaml:"max_bytes_per_source" doc:"Discards the oldest quarantined requests of a source beyond this size; a log line and postwire_quarantine_discarded_total record the loss. The newest request is kept regardless of size. Requests of a source with equal bodies are stored once, with a count. Each request counts half a KiB more than its size, with its body in whole blocks of 4KiB; with the jetstream engine it counts 4KiB more than its size. 0 means a twentieth of journal.max_bytes, at most 1GiB."`
}

// JetStream configures the NATS cluster of the journal.
type JetStream struct {
	URL      URL    `yaml:"url" doc:"Servers of the cluster, separated by commas; NATS 2.12 or newer. Required if journal.engine is jetstream, unless embedded.peers is set." example:"nats://nats-0:4222,nats://nats-1:4222"`
	Stream   string `yaml:"stream" doc:"Name of the stream, and first token of its subjects. The stream is created if missing. No other application may publish to this stream."`
	Replicas int    `yaml:"replicas" doc:"Number of replicas of the stream, 1 to 5. With 3, one server may fail without loss."`
	Update   bool   `yaml:"update" doc:"Change the stream if its settings differ from this configuration. With false, Postwire reports the differences and does not start."`

	CredentialsFile string `yaml:"credentials_file" doc:"File with the JWT and key of a NATS user, as made by nsc. The file is read again at every connection." example:"/etc/postwire/nats.creds"`
	NKeyFile        string `yaml:"nkey_file" doc:"File with the NKey seed of a NATS user." example:"/etc/postwire/nats.nk"`
	User            string `yaml:"user" doc:"User name."`
	Password        Secret `yaml:"password" doc:"Password of user." example:"${NATS_PASSWORD}"`
	Token           Secret `yaml:"token" doc:"Authentication token of the server." example:"${NATS_TOKEN}"`
	TLS             TLS    `yaml:"tls" doc:"TLS to the servers."`

	Embedded Embedded `yaml:"embedded" doc:"Embedded cluster: every relay runs a NATS server, and these servers form the cluster of the journal. Replaces url and the login."`
}

// Embedded configures the NATS server inside the relay.
type Embedded struct {
	Peers   []string `yaml:"peers" list:"commas" doc:"Addresses of all relays for the traffic of the cluster, host:port, including this relay. Every relay has an equal list. Use names that stay valid when a relay restarts. 3 relays or more: the cluster accepts events while more than half of the relays are available. 1 relay runs without a cluster. Empty disables the embedded cluster." example:"[relay-0:6222, relay-1:6222, relay-2:6222]"`
	Listen  string   `yaml:"listen" doc:"Listen address for the other relays, host:port."`
	Dir     string   `yaml:"dir" doc:"Folder of the replica of this relay, on a persistent disk, created if missing. Belongs to the relay of this server.name." example:"/var/lib/postwire/cluster"`
	Cluster string   `yaml:"cluster" doc:"Name of the cluster. Relays with another name are refused."`
	Secret  Secret   `yaml:"secret" doc:"Shared secret of the relays, as a long random text from openssl rand -hex 32. Relays authenticate each other by this secret. Without tls, the secret also is the source of the keys by which the traffic between relays is encrypted. Required with several peers. A change needs a restart of all relays at once." example:"${POSTWIRE_CLUSTER_SECRET}"`
	TLS     PeerTLS  `yaml:"tls" doc:"Certificates for the traffic between relays, instead of certificates derived from secret."`
	Founder Founder  `yaml:"founder" doc:"Relay that creates the journal of the cluster. Needed to go from one relay with a journal to a cluster."`
}

// Founder names the relay that creates the journal of an embedded cluster.
type Founder struct {
	Relay string `yaml:"relay" doc:"server.name of the founder, equal on every relay. If journal.dir of the founder has a journal of the engine local, the founder copies that journal into the cluster first: events, dedupe entries, cursors, dead letters. No relay accepts or delivers events before the copy is complete. Every other relay waits for the journal of the cluster, and passes webhooks on to url. Empty lets any relay create the journal; a relay whose journal.dir has undelivered events then refuses to start." example:"relay-0"`
	URL   string `yaml:"url" doc:"URL of the founder's webhook port, without a path, with the host that the founder has in peers. With https, the founder must present the certificate of server.tls.cert_file of this relay." example:"http://relay-0:8080"`
}

// Enabled reports whether the relay runs a server of the cluster.
func (e Embedded) Enabled() bool { return len(e.Peers) > 0 }

// PeerTLS names the files for TLS between relays, on either end of a connection.
type PeerTLS struct {
	CertFile string `yaml:"cert_file" doc:"Certificate chain of this relay, PEM, for servers and clients. Must contain the host name of this relay in peers." example:"/etc/postwire/tls/tls.crt"`
	KeyFile  string `yaml:"key_file" doc:"Private key of the certificate, PEM." example:"/etc/postwire/tls/tls.key"`
	CAFile   string `yaml:"ca_file" doc:"CA certificates of the relays, PEM. Only relays with a certificate from one of these authorities may connect." example:"/etc/postwire/tls/ca.crt"`
}

// Spill configures the local storage of a relay with a journal in a cluster.
type Spill struct {
	Enabled  bool          `yaml:"enabled" doc:"Store events on the local disk if the cluster does not accept events within hold, acknowledge the events, and forward the events when the cluster is available again. With false, such events are answered 503."`
	Dir      string        `yaml:"dir" doc:"Folder on a persistent disk, for this process alone, created if missing. While the cluster is unavailable, this folder has the only copy of acknowledged events." example:"/var/lib/postwire/spill"`
	Hold     time.Duration `yaml:"hold" doc:"Time that an event waits for the cluster before Postwire spills the event or answers 503."`
	MaxBytes Size          `yaml:"max_bytes" doc:"Maximum size of the spill; beyond this, events are answered 503. 0 disables the limit."`
}

// Dedupe says how repeats of an event are recognized.
type Dedupe struct {
	Window time.Duration `yaml:"window" doc:"Dedupe window: repeats of an event are dropped for this time after the first arrival. A repeat does not extend the window."`
}

// Schemas configures the JSON Schemas of events.
type Schemas struct {
	BaseURL string `yaml:"base_url" doc:"Base URL of the dataschema attribute of each event. Empty gives urn:postwire:schema:<type>:1." example:"https://example.com/schemas"`
	Dir     string `yaml:"dir" doc:"Folder of your own JSON Schemas, as <type>/<version>.json, in addition to the built-in schemas. The schema check of sources uses these files, and /schemas/ on admin.listen serves the files without a token. Read at start and at each reload." example:"/etc/postwire/schemas"`
}

// Default returns the configuration of an empty document.
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
			JetStream:    JetStream{Stream: "postwire", Replicas: 3, Embedded: Embedded{Listen: ":6222", Dir: "./cluster", Cluster: "postwire"}},
			Spill:        Spill{Enabled: true, Dir: "./spill", Hold: 3 * time.Second, MaxBytes: 1 << 30},
		},
		Dedupe: Dedupe{Window: 24 * time.Hour},
	}
}

// Validate reports every invalid value, as Invalids. Validate checks values
// only; missing files or a port in use show when the resource is opened.
func (c Config) Validate() error {
	var p Invalids
	p.Nest("server", c.Server.validate())
	checkListen(&p, "admin.listen", c.Admin.Listen)
	if c.Admin.Listen == c.Server.Listen && !strings.HasSuffix(c.Server.Listen, ":0") {
		key, other := "admin.listen", "server.listen"
		if c.Admin.Listen == Default().Admin.Listen { // then server.listen is the written key
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
	if j := c.Journal; j.Engine == "jetstream" && j.JetStream.Embedded.Enabled() && strings.ContainsFunc(c.Server.Name, unicode.IsSpace) {
		p.Add("server.name", "contains white space, and is the name of this relay in journal.jetstream.embedded", "for example relay-0")
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

// maxAdminTokens limits admin.tokens, because each token may have sessions.
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
		p.Add(key, "is set without the token of an operator, so that no caller could change anything", "set admin.token, or add a token with role: operator to admin.tokens")
	case !loopback(a.Listen):
		p.Add("token", "is required, because admin.listen is not a loopback address", "set a token, for example ${POSTWIRE_ADMIN_TOKEN}, or listen on 127.0.0.1:9090")
	}
	if len(a.Tokens) > maxAdminTokens {
		p.Add("tokens", fmt.Sprintf("has %d entries", len(a.Tokens)), fmt.Sprintf("use %d at most", maxAdminTokens))
	}
	names, keys := map[string]bool{nameOfToken: true, nameOfViewerToken: true}, map[Secret]string{}
	check := func(key string, token Secret) {
		CheckProof(&p, key, len(token), MinProof, a.AllowWeak)
		if other, taken := keys[token]; taken {
			p.Add(key, "equals admin."+other+", so that the audit log could not distinguish the holders", "make a new token, for example with openssl rand -hex 32")
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
			p.Add(at+"token", "is empty", "make a token with openssl rand -hex 32, or remove the entry")
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

// LeastBuffered returns the smallest max_buffered_bytes that lets a single
// sender send a body of the given size. Unauthenticated requests of an address
// get a quarter: for the body, which may be in memory twice while the body
// arrives in chunks or compressed; for the header, which takes 32 times its
// size while the header arrives; and for the connection. The half that is
// shared by all sources must hold the copy of the body in the events.
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

// minJournal is the smallest journal.max_bytes: in a smaller journal, segments and index
// would leave little room for events.
const minJournal = Size(128 << 20)

func (t Traces) validate() error {
	var p Invalids
	if t.Endpoint != "" {
		switch u, err := url.Parse(t.Endpoint.Reveal()); {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			p.Add("endpoint", "is not a URL that begins with http:// or https://", "for example http://otel-collector:4318")
		case u.User != nil:
			p.Add("endpoint", "contains a user or a password", "use headers")
		case t.Protocol == "grpc" && strings.Trim(u.Path, "/") != "":
			p.Add("endpoint", "has a path, but gRPC uses no path", "for example http://otel-collector:4317")
		case t.CAFile != "" && u.Scheme != "https":
			p.Add("ca_file", "is set, but endpoint is not https://", "use https://")
		}
	}
	if !(t.SampleRatio >= 0 && t.SampleRatio <= 1) {
		p.Add("sample_ratio", fmt.Sprintf("%v is out of range", t.SampleRatio), "use 0 to 1, for example 0.05")
	}
	for _, name := range slices.Sorted(maps.Keys(t.Headers)) {
		value := t.Headers[name]
		switch {
		case !httpguts.ValidHeaderFieldName(name): // may be a whole header, including the secret
			p.Add("headers", "contains an invalid header name", "write a name such as Authorization, a colon, and the value")
		case !httpguts.ValidHeaderFieldValue(value.Reveal()):
			p.Add("headers."+name, "contains a character that is invalid in a header", "look for a line break in the file or variable of the value")
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
		p.Add("retention", "is negative", "use 0 to keep only pending events, or a time such as 168h")
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
	if j.Engine == "jetstream" && j.JetStream.URL == "" && !j.JetStream.Embedded.Enabled() {
		p.Add("jetstream.url", "is required if journal.engine is jetstream", "name the servers, for example nats://localhost:4222, or run the cluster inside the relays with journal.jetstream.embedded.peers")
	}
	p.Nest("jetstream", j.JetStream.checkEmbedded())
	if j.Engine == "jetstream" && j.JetStream.Embedded.Enabled() && j.MaxBytes == 0 {
		p.Add("max_bytes", "is required with journal.jetstream.embedded: a replica whose disk is full stores nothing until the relay restarts", "use half of the disk of journal.jetstream.embedded.dir")
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
		p.Add("spill.hold", fmt.Sprintf("%v is too short: a healthy cluster may take longer", j.Spill.Hold), "for example 3s")
	}
	if s := j.Spill.MaxBytes; s != 0 && s < minJournal {
		p.Add("spill.max_bytes", fmt.Sprintf("%v is too small", s), fmt.Sprintf("use %v or more, or 0 for no limit", minJournal))
	}
	return p.Err()
}

// isClusterName reports whether a text can name a cluster of NATS servers.
func isClusterName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsPrint(r) || strings.ContainsRune(" .*>/\\", r)
	})
}

// checkFounder adds the problems of the founder.
func (e Embedded) checkFounder(p *Invalids) {
	f := e.Founder
	switch {
	case f == Founder{}:
		return
	case f.Relay == "":
		p.Add("embedded.founder.relay", "is missing", "use server.name of the relay that has the journal, for example relay-0")
	case f.URL == "":
		p.Add("embedded.founder.url", "is missing", "name the webhook port of the founder, for example http://relay-0:8080")
		return
	}
	u, err := url.Parse(f.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		p.Add("embedded.founder.url", "is not the URL of a port", "for example http://relay-0:8080")
	case e.FounderPeer() == "":
		p.Add("embedded.founder.url", fmt.Sprintf("has the host %s, which is in no entry of embedded.peers", u.Hostname()), "use the host of the founder in embedded.peers")
	}
}

// FounderAddr returns host and port of the founder's URL.
func (e Embedded) FounderAddr() string {
	u, err := url.Parse(e.Founder.URL)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme // a name that net.Dial knows
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// FounderPeer returns the entry of Peers with the host of the founder, or an empty text.
func (e Embedded) FounderPeer() string {
	u, err := url.Parse(e.Founder.URL)
	if err != nil {
		return ""
	}
	for _, peer := range e.Peers {
		if host, _, err := net.SplitHostPort(peer); err == nil && strings.EqualFold(host, u.Hostname()) {
			return peer
		}
	}
	return ""
}

// checkEmbedded returns the problems of the embedded cluster.
func (j JetStream) checkEmbedded() error {
	var p Invalids
	e := j.Embedded
	if !e.Enabled() {
		if e.Secret != "" || e.TLS != (PeerTLS{}) {
			p.Add("embedded.peers", "is missing", "list the addresses of all relays, for example [relay-0:6222, relay-1:6222, relay-2:6222]")
		}
		return p.Err()
	}
	for _, other := range []struct {
		key string
		set bool
	}{
		{"url", j.URL != ""},
		{"credentials_file", j.CredentialsFile != ""},
		{"nkey_file", j.NKeyFile != ""},
		{"user", j.User != ""},
		{"password", j.Password != ""},
		{"token", j.Token != ""},
		{"tls", j.TLS != TLS{}},
	} {
		if other.set {
			p.Add(other.key, "is for the servers of another cluster, and embedded.peers is set", "remove it, or remove embedded")
		}
	}
	peers := map[string]bool{}
	for i, peer := range e.Peers {
		key := fmt.Sprintf("embedded.peers[%d]", i)
		host, port, err := net.SplitHostPort(peer)
		n, portErr := strconv.ParseUint(port, 10, 16)
		switch {
		case err != nil || host == "" || strings.ContainsAny(host, "/@ "):
			p.Add(key, fmt.Sprintf("%q is not host:port", peer), "for example relay-0:6222")
		case portErr != nil || n == 0:
			p.Add(key, fmt.Sprintf("%q has no port from 1 to 65535", peer), "for example relay-0:6222")
		case peers[peer]:
			p.Add(key, fmt.Sprintf("%s is listed twice", peer), "list each relay once")
		}
		peers[peer] = true
	}
	switch n := len(e.Peers); {
	case n == 2:
		p.Add("embedded.peers", "has 2 relays: without one of them, the other accepts no events", "use 3 relays, or 1 relay")
	case j.Replicas > n:
		p.Add("replicas", fmt.Sprintf("%d is more than the number of embedded.peers, %d", j.Replicas, n), fmt.Sprintf("use %d or less", n))
	case n > 2 && j.Replicas == 2:
		p.Add("replicas", "2 does not accept events while one of the two is unavailable", "use 3")
	}
	e.checkFounder(&p)
	if len(e.Peers) > 1 {
		checkListen(&p, "embedded.listen", e.Listen)
		if n := len(e.Secret); n < MinProof {
			p.Add("embedded.secret", fmt.Sprintf("has %d bytes, but a secret shorter than %d bytes can be guessed", n, MinProof), "make a secret with openssl rand -hex 32, and give every relay the same secret")
		}
	}
	if e.Dir == "" {
		p.Add("embedded.dir", "is empty", "for example ./cluster")
	}
	if !isClusterName(e.Cluster) {
		p.Add("embedded.cluster", fmt.Sprintf("%q is not a name of a cluster", e.Cluster), "use letters, digits, dashes and underscores")
	}
	p.Nest("embedded.tls", e.TLS.validate())
	return p.Err()
}

func (t PeerTLS) validate() error {
	var p Invalids
	for _, file := range []struct{ key, path string }{{"cert_file", t.CertFile}, {"key_file", t.KeyFile}, {"ca_file", t.CAFile}} {
		if file.path == "" && t != (PeerTLS{}) {
			p.Add(file.key, "is missing: TLS between relays needs cert_file, key_file and ca_file", "name the file, or remove tls to use certificates derived from secret")
		}
	}
	return p.Err()
}

// loopback reports whether addr reaches this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return true // reported as a separate problem
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
