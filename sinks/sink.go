// Package sinks is the last of the five steps (ingress, source, journal,
// relay, sinks): it hands events to brokers. Each kind of broker is a package
// below this one; this package holds what they have in common.
package sinks

import (
	"context"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
)

// Sink hands events to one broker. It is open when it exists: there is no
// Start. Deliver is called by one goroutine at a time; Close may be called
// while it runs and makes it return.
type Sink interface {
	// Deliver returns when the broker has acknowledged or refused every
	// event, or ctx is done. Nil means that all were acknowledged. A
	// BatchError names those that were not; after any other error none
	// counts as delivered, and all may be sent again.
	//
	// A failure is transient, to be tried again for as long as the operator
	// allows, unless it is wrapped by Permanent. Only an event that the
	// broker refuses for what it is may be Permanent: an unknown error is
	// transient, because trying again loses nothing.
	//
	// Order: when an event fails transiently, no later event of the batch
	// with the same partition key may count as delivered.
	//
	// Deliver neither keeps nor changes batch.
	Deliver(ctx context.Context, batch []event.Event) error

	// Destination says where Deliver hands an event, or would. It asks nobody
	// and keeps nothing, and is called by the goroutine that calls Deliver.
	Destination(e event.Event) Destination

	// Close lets go of the connection. It does not flush: what Deliver has
	// not reported is sent again by the next process.
	Close() error
}

// Destination is where an event goes, as its broker calls it. The zero one is that
// of a sink which has but one place, without a name.
type Destination struct {
	Name     string // a subject, a topic; over HTTP, the receiver
	Template string // of the configuration, that made the name; empty where all events go to one place
}

// Route is how a sink chooses the destination of an event. The zero Route is that
// of a sink with one destination that has no name.
type Route struct {
	Noun     string              // what the broker calls a destination: subject, topic, receiver
	Key      string              // of the configuration that holds Template; empty where no template is involved
	Template event.Template      // of the destination's name
	Safe     func(string) string // makes a value part of a name; nil where Template is static
}

// Destination returns where an event goes.
func (r Route) Destination(e event.Event) Destination {
	if r.Template.Static() {
		return Destination{Name: r.Template.String()}
	}
	return Destination{Name: r.Template.Expand(e, r.Safe), Template: r.Template.String()}
}

// Env is what a sink gets besides its configuration: what tests replace.
type Env struct {
	Name string // the sink's name in the configuration
	Log  *zap.Logger
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Now  func() time.Time

	// DeadLetterOn are the statuses of a receiver over HTTP after which the
	// operator wants a dead letter (retry.dead_letter_on).
	DeadLetterOn []int

	// Opaque is called by Encode for each event whose data says that it is JSON
	// and is none that every reader can parse, so that structured mode holds it as
	// data_base64. Nil is not called.
	Opaque func()

	// Duplicate is called by Deliver for each event whose acknowledgement says
	// that the broker has stored a message of the same ID before. Such an event
	// counts as delivered. Nil is not called.
	Duplicate func(e event.Event)
}
