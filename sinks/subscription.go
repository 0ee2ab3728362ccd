package sinks

import "github.com/postwire/postwire/config"

// Config is the block of one kind of sink: its own keys.
type Config interface {
	config.Settings

	// Subscription tells those who read events where this sink puts them, and
	// how to get there. Nothing of it is secret: no password, no token, no name
	// of a user. It opens nothing.
	Subscription() Subscription

	// Route returns how this sink chooses the destination of an event. It opens
	// nothing, and holds nothing secret. The block must be valid.
	Route() Route
}

// Subscription is where events can be read. The zero one is nowhere that
// a program could read from: a terminal, a chat.
type Subscription struct {
	Protocol    string // as AsyncAPI names it: nats, kafka, http
	ContentMode string // Binary, Structured, or one of the protocol's own
	Address     string // template of the subject, topic or path
	Servers     []Server
	Security    []Security
	Stream      string // of NATS, that stores the events; empty is none

	Partitions, Replicas int // of topics that the sink creates; below 1 is left to the brokers
}

// Server is one way in.
type Server struct {
	Protocol string // as AsyncAPI names it, where TLS makes another of it
	Host     string // host, or host:port
	TLS      bool
}

// Security is how a program proves who it is, in AsyncAPI's words.
type Security struct {
	Type string // userPassword, plain, scramSha256, scramSha512, X509, asymmetricEncryption, http, httpApiKey
	Name string // of the scheme or the header, where the type has one
}
