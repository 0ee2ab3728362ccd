package sinks

import "github.com/postwire/postwire/config"

// Config is the block of a kind of sink: the keys of this kind.
type Config interface {
	config.Settings

	// Subscription returns how consumers can read the events of this sink. The
	// result contains no secret: no password, token or user name. Subscription
	// does no I/O.
	Subscription() Subscription

	// Route returns how this sink selects the destination of an event. The
	// result contains no secret. Route does no I/O. The block must be valid.
	Route() Route
}

// Subscription describes how to read events. The zero Subscription belongs to a
// destination that no program can read: a terminal, a chat.
type Subscription struct {
	Protocol    string // AsyncAPI's name: nats, kafka, http
	ContentMode string // Binary, Structured, or a mode of the protocol
	Address     string // template of the subject, topic or path
	Servers     []Server
	Security    []Security
	Stream      string // NATS stream of the events; empty without a stream

	Partitions, Replicas int // of created topics; below 1 uses the brokers' default
}

// Server is an address of a broker.
type Server struct {
	Protocol string // AsyncAPI's name, if different because of TLS
	Host     string // host, or host:port
	TLS      bool
}

// Security is the authentication of a consumer, in AsyncAPI's terms.
type Security struct {
	Type string // userPassword, plain, scramSha256, scramSha512, X509, asymmetricEncryption, http, httpApiKey
	Name string // name of the scheme or the header, depending on the type
}
