package ingress

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// connections are those that are open, at most so many. One more makes the one
// that has been idle the longest close, so that whoever opens many and says
// nothing shuts nobody out. Only while none is idle a new one waits.
type connections struct {
	most    int
	metrics *Metrics

	mu      sync.Mutex
	open    int
	idle    list.List     // of *connection; the longest first
	waiting bool          // one more wants to be let in
	freed   chan struct{} // holds one word when there is room again
}

func newConnections(most int, m *Metrics) *connections {
	return &connections{most: most, metrics: m, freed: make(chan struct{}, 1)}
}

// limit is l with the limit.
func (c *connections) limit(l net.Listener) net.Listener {
	return &limited{Listener: l, all: c, closed: make(chan struct{})}
}

// limited is a listener. One goroutine accepts from it.
type limited struct {
	net.Listener
	all    *connections
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &connection{Conn: raw, all: l.all}
	for !l.all.enter(conn) {
		select {
		case <-l.all.freed:
		case <-l.closed:
			_ = raw.Close()
			return nil, net.ErrClosed
		}
	}
	return conn, nil
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// enter lets one in if there is room, or if room can be made.
func (c *connections) enter(conn *connection) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.most && !c.evict() {
		c.waiting = true
		return false
	}
	c.waiting = false
	c.open++
	c.metrics.connections.Inc()
	conn.place = c.idle.PushBack(conn) // it has said nothing yet
	return true
}

// evict closes the connection that has been idle the longest, and reports
// whether there was one. The lock is held.
func (c *connections) evict() bool {
	oldest := c.idle.Front()
	if oldest == nil {
		return false
	}
	conn := oldest.Value.(*connection)
	c.leave(conn)
	c.metrics.evicted.Inc()
	_ = conn.Conn.Close() // its server will notice
	return true
}

// leave takes a connection out of the count, once. The lock is held.
func (c *connections) leave(conn *connection) {
	conn.rest()
	if conn.gone {
		return
	}
	conn.gone = true
	c.open--
	c.metrics.connections.Dec()
	if c.waiting {
		select {
		case c.freed <- struct{}{}:
		default:
		}
	}
}

// state notes what a connection does; it is a ConnState of http.Server.
func (c *connections) state(conn net.Conn, now http.ConnState) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	known, ok := conn.(*connection)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch now {
	case http.StateActive:
		known.rest()
	case http.StateIdle:
		if known.gone {
			return
		}
		known.rest()
		known.place = c.idle.PushBack(known)
		if c.waiting {
			c.evict()
		}
	case http.StateClosed, http.StateHijacked:
		c.leave(known)
	case http.StateNew:
	}
}

// connection is one that is counted.
type connection struct {
	net.Conn
	all *connections

	// Guarded by all.mu.
	place *list.Element // among the idle; nil while it is not
	gone  bool
}

// rest takes it out of the idle ones. The lock is held.
func (c *connection) rest() {
	if c.place != nil {
		c.all.idle.Remove(c.place)
		c.place = nil
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.all.mu.Lock()
	c.all.leave(c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}
