// Package sinks is the last of the five steps (ingress, source, journal, relay,
// sinks): sinks deliver events to brokers. Each kind of broker is a package
// below this package; this package contains the common parts.
package sinks

import (
	"context"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
)

// Sink delivers events to a broker. An existing Sink is open: there is no
// Start. Several goroutines may call Deliver and Destination, within Limits.
// Close may be called during Deliver and makes Deliver return.
type Sink interface {
	// Limits returns how the relay may call Deliver. The limits of a sink never
	// change.
	Limits() Limits

	// Deliver returns when the broker has acknowledged or refused every event,
	// or ctx is done. Nil means that all events were acknowledged. A BatchError
	// names the events that were not acknowledged; after any other error no
	// event counts as delivered, and all events may be sent again.
	//
	// A failure is transient, to be retried as long as the operator allows,
	// unless the error is wrapped by Permanent. Only refuse an event as
	// Permanent because of the event's content: an unknown error is transient,
	// because a retry loses nothing.
	//
	// A transient failure of an event says something about this event only: the
	// relay holds back the later events of the same partition key and goes on
	// with all others. A failure of a whole destination is wrapped by
	// AtDestination: the relay then holds back all events of the destination. A
	// failure of the connection, or of the whole broker, is an error that is no
	// BatchError. RetryAfter holds back all events of the sink.
	//
	// Order: if an event fails transiently, no later event of the batch with an
	// equal partition key may count as delivered.
	//
	// Deliver does not keep and does not change batch.
	Deliver(ctx context.Context, batch []event.Event) error

	// Destination returns the destination of an event without delivering the
	// event. Destination does no I/O and keeps no reference to e.
	Destination(e event.Event) Destination

	// Close closes the connection without flushing: the next process sends
	// again every event that Deliver has not reported.
	Close() error
}

// Limits limit the calls of Deliver. The zero Limits are one call at a time, with
// up to Settings.Batch events.
type Limits struct {
	// InFlight is the maximum number of concurrent calls; 0 is 1. Two concurrent
	// calls never have events of the same partition key.
	InFlight int
	// Batch is the maximum number of events of a call; 0 is Settings.Batch.
	Batch int
	// PerDestination restricts a call to events of one destination, and each
	// destination to one call at a time.
	PerDestination bool
}

// Destination is the destination of an event, in the broker's terms. The zero
// Destination belongs to a sink with a single, unnamed destination.
type Destination struct {
	Name     string // a subject, a topic; over HTTP, the receiver
	Template string // template of the name in the configuration; empty for a sink with a single destination

	Partition int // partition of a topic; 0 for a broker without partitions
}

// Route selects the destination of an event. The zero Route belongs to a sink
// with a single, unnamed destination.
type Route struct {
	Noun     string              // the broker's term for a destination: subject, topic, receiver
	Key      string              // configuration key of Template; empty without a template
	Template event.Template      // of the destination's name
	Safe     func(string) string // makes a value part of a name; nil for a static Template
}

// Destination returns the destination of an event.
func (r Route) Destination(e event.Event) Destination {
	if r.Template.Static() {
		return Destination{Name: r.Template.String()}
	}
	return Destination{Name: r.Template.Expand(e, r.Safe), Template: r.Template.String()}
}

// Env contains the dependencies of a sink besides its configuration, so that
// tests can replace the dependencies.
type Env struct {
	Name string // the sink's name in the configuration
	Log  *zap.Logger
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Now  func() time.Time

	// DeadLetterOn are the additional HTTP statuses that make an event a dead
	// letter (retry.dead_letter_on).
	DeadLetterOn []int

	// Opaque is called by Encode for each event with a JSON content type but
	// invalid JSON data, which structured mode encodes as data_base64. May be
	// nil.
	Opaque func()

	// Duplicate is called by Deliver for each event whose acknowledgement says
	// that the broker already had a message with an equal ID. Such an event
	// counts as delivered. May be nil.
	Duplicate func(e event.Event)

	// Memory is what the sink remembers while it is closed and opened again with
	// another configuration. May be nil: nothing is remembered.
	Memory *Memory
}

// Memory keeps a value for a sink of one name. Only an open sink uses its Memory.
type Memory struct{ Value any }
