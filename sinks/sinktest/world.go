package sinktest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// World is the network between a sink and its broker, where faults happen.
type World interface {
	// Dial replaces sinks.Env.Dial.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
	// Down closes open connections and refuses new connections, until Up.
	Down()
	Up()
	// Freeze makes the broker silent without hanging up, until Thaw.
	Freeze()
	Thaw()
	// Touched waits until the sink tries to send something, after Freeze.
	Touched(t *testing.T)
	// Break makes each step fail with probability rate, before, during or after
	// its effect, until Mend, which returns the number of failures.
	Break(r *rand.Rand, rate float64)
	Mend() int
}

// Network is the World of sinks with a network connection to the broker.
type Network struct {
	mu      sync.Mutex
	conns   map[*conn]struct{}
	down    bool
	frozen  bool
	touched bool
	rand    *rand.Rand // nil: nothing breaks
	rate    float64
	broken  int
}

var _ World = (*Network)(nil)

// NewNetwork returns a network without faults.
func NewNetwork() *Network { return &Network{conns: map[*conn]struct{}{}} }

var (
	errDown  = errors.New("connection refused, says the test")
	errBreak = errors.New("connection reset, says the test")
)

// Dial implements World.
func (n *Network) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	down, frozen := n.down, n.frozen
	n.touched = n.touched || frozen
	n.mu.Unlock()
	if frozen {
		<-ctx.Done() // packets get lost
		return nil, ctx.Err()
	}
	if down {
		return nil, errDown
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, of: n}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		_ = raw.Close()
		return nil, errDown
	}
	n.conns[c] = struct{}{}
	return c, nil
}

// Down implements World.
func (n *Network) Down() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	n.cut()
}

// Up implements World.
func (n *Network) Up() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// Freeze implements World.
func (n *Network) Freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen, n.touched = true, false
}

// Thaw implements World. Data sent while frozen is lost, so that the
// connections cannot continue.
func (n *Network) Thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen = false
	n.cut()
}

// Touched implements World.
func (n *Network) Touched(t *testing.T) {
	t.Helper()
	Until(t, "the sink sends something", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.touched
	})
}

// Break implements World.
func (n *Network) Break(r *rand.Rand, rate float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rand, n.rate, n.broken = r, rate, 0
}

// Mend implements World.
func (n *Network) Mend() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rand = nil
	return n.broken
}

// cut closes all connections. The caller holds the lock.
func (n *Network) cut() {
	for c := range n.conns {
		_ = c.Conn.Close()
	}
	clear(n.conns)
}

// conn is a connection with faults.
type conn struct {
	net.Conn
	of *Network
}

// fault is when a step breaks.
type fault int

const (
	never  fault = iota
	before       // without effect
	within       // with a partial effect
	after        // with the whole effect, but the caller gets an error
)

func (c *conn) next() (f fault, frozen bool) {
	n := c.of
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rand != nil && n.rand.Float64() < n.rate {
		n.broken++
		f = before + fault(n.rand.IntN(3))
	}
	return f, n.frozen
}

// Read reads; data that arrives while the network is frozen is lost.
func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil {
			return n, err
		}
		f, frozen := c.next()
		if f != never {
			_ = c.Close()
			return 0, errBreak
		}
		if !frozen {
			return n, nil
		}
	}
}

// Write writes; while the network is frozen, the data is lost without an error.
func (c *conn) Write(p []byte) (int, error) {
	f, frozen := c.next()
	if frozen {
		c.of.mu.Lock()
		c.of.touched = true
		c.of.mu.Unlock()
		return len(p), nil
	}
	switch f {
	case before:
		_ = c.Close()
		return 0, errBreak
	case within:
		n, _ := c.Conn.Write(p[:len(p)/2])
		_ = c.Close()
		return n, errBreak
	case after:
		n, err := c.Conn.Write(p)
		if err == nil {
			// The peer gets all data, and the response is lost.
			_ = c.SetReadDeadline(time.Now())
			c.of.release(c)
			time.AfterFunc(20*time.Millisecond, func() { _ = c.Conn.Close() })
			return n, errBreak
		}
		return n, err
	}
	return c.Conn.Write(p)
}

func (n *Network) release(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.release(c)
	return c.Conn.Close()
}
