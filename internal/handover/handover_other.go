//go:build !unix

// Package handover passes listening sockets between processes, which this operating system
// cannot do.
package handover

import (
	"context"
	"errors"
	"net"
)

// Listener is a listening socket.
type Listener struct {
	Name, Address string
	TCP           *net.TCPListener
}

// Offer offers nothing.
type Offer struct{}

// Open returns an offer of nothing.
func Open(string) (*Offer, error) { return &Offer{}, nil }

// Serve waits for the end of ctx.
func (*Offer) Serve(ctx context.Context, _ []Listener) error {
	<-ctx.Done()
	return ctx.Err()
}

// Close does nothing.
func (*Offer) Close() error { return nil }

// Inherited are the listeners of a running process.
type Inherited struct{}

// Take fails.
func Take(context.Context, string) (*Inherited, error) { return nil, errors.ErrUnsupported }

// Wait does nothing.
func (*Inherited) Wait(context.Context) error { return nil }

// Listener returns nil.
func (*Inherited) Listener(_, _ string) net.Listener { return nil }

// Close does nothing.
func (*Inherited) Close() error { return nil }
