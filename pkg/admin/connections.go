package admin

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"

	"github.com/postwire/postwire/internal/httpserver"
)

// connections limits the open connections of the admin port. At the limit, a new
// connection closes the connection without progress for the longest time: among
// strangers first, then among callers with a token. A client with many connections
// therefore locks out neither operators nor a kubelet, which would restart the process
// after failed health checks.
type connections struct {
	max     int
	evicted func() // called for every evicted connection

	mu sync.Mutex
	// Lists of *connection, the connection without progress for the longest time first.
	strangers, authenticated list.List
}

// connection is a counted connection.
type connection struct {
	net.Conn
	all *connections

	// Guarded by all.mu.
	in      *list.List    // nil after Close or eviction
	element *list.Element // in the list
}

func newConnections(limit int, evicted func()) *connections {
	return &connections{max: limit, evicted: evicted}
}

// limit returns l with the limit. Accept never blocks because of the limit.
func (c *connections) limit(l net.Listener) net.Listener { return &limited{l, c} }

type limited struct {
	net.Listener
	all *connections
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer) // an error means a closed connection, which the first read reports
	}
	return l.all.enter(conn), nil
}

func (c *connections) enter(conn net.Conn) *connection {
	entered := &connection{Conn: conn, all: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.strangers.Len()+c.authenticated.Len() >= c.max {
		oldest := c.strangers.Front()
		if oldest == nil {
			oldest = c.authenticated.Front()
		}
		leaving := oldest.Value.(*connection)
		leaving.move(nil)
		_ = leaving.Conn.Close() // the server notices on the next read
		c.evicted()
	}
	entered.move(&c.strangers)
	return entered
}

// move moves a connection to the end of a list; nil removes the connection. The caller
// holds all.mu.
func (c *connection) move(to *list.List) {
	if c.in != nil {
		c.in.Remove(c.element)
	}
	if c.in = to; to != nil {
		c.element = to.PushBack(c)
	}
}

// progress records the start or the end of a request on a connection; it is the
// ConnState of http.Server.
func (c *connections) progress(conn net.Conn, state http.ConnState) {
	counted := connectionOf(conn)
	if counted == nil || state != http.StateActive && state != http.StateIdle {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if counted.in != nil {
		counted.move(counted.in)
	}
}

// prove records that a caller on this connection has authenticated.
func (c *connection) prove() {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	if c.in == &c.all.strangers {
		c.move(&c.all.authenticated)
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.all.mu.Lock()
	c.move(nil)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

func connectionOf(conn net.Conn) *connection {
	c, _ := httpserver.Accepted(conn).(*connection)
	return c
}

type connectionKey struct{}

// remember stores the connection in the context of its requests; it is the ConnContext
// of http.Server.
func remember(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, connectionOf(conn))
}

// proven records that the caller of a request has authenticated.
func proven(r *http.Request) {
	if c, _ := r.Context().Value(connectionKey{}).(*connection); c != nil { // nil in tests without a server
		c.prove()
	}
}
