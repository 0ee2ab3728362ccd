package relay

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/postwire/postwire/pkg/journal"
)

// fence ends the writes of a sink at the deadline of the ownership. The context of a delivery
// ends there, too, but a process that was stopped or a machine that was suspended may go on
// with a write before its timers fire; by then another process may deliver. Outside of
// deliveries a connection may write: a client keeps its connection alive.
type fence struct {
	owns    func() bool  // whether this process owns the cursor now
	flights atomic.Int32 // deliveries that run
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dial returns a dialer of fenced connections.
func (f *fence) dial(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &fencedConn{conn, f}, nil
	}
}

type fencedConn struct {
	net.Conn
	fence *fence
}

// Write implements net.Conn. Its error wraps journal.ErrOwnershipLost after the end of the
// ownership.
func (c *fencedConn) Write(b []byte) (int, error) {
	if c.fence.flights.Load() > 0 && !c.fence.owns() {
		return 0, fmt.Errorf("writing to %s: %w", c.RemoteAddr(), journal.ErrOwnershipLost)
	}
	return c.Conn.Write(b)
}
