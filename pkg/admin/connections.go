package admin

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"

	"github.com/postwire/postwire/internal/httpserver"
)

// connections are those that are open on the admin port, at most so many. One more
// makes another one close: of strangers the one that has made no progress for the
// longest, and only without strangers one of a caller who has shown a token. So
// whoever opens many connections shuts out neither the operators nor a kubelet, which
// would end a process whose health it cannot ask.
type connections struct {
	max     int
	evicted func() // is called for each that is closed

	mu               sync.Mutex
	strangers, known list.List // of *connection, the one without progress for the longest first
}

// connection is one that is counted.
type connection struct {
	net.Conn
	all *connections

	// Guarded by all.mu.
	in    *list.List    // nil when it is not counted any more
	place *list.Element // in that list
}

func newConnections(most int, evicted func()) *connections {
	return &connections{max: most, evicted: evicted}
}

// limit returns l with the limit. It never keeps a connection waiting.
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
		_ = tcp.SetWriteBuffer(sendBuffer) // it fails where the other end has gone, as the first read will
	}
	return l.all.enter(conn), nil
}

func (c *connections) enter(conn net.Conn) *connection {
	entered := &connection{Conn: conn, all: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.strangers.Len()+c.known.Len() >= c.max {
		oldest := c.strangers.Front()
		if oldest == nil {
			oldest = c.known.Front()
		}
		leaving := oldest.Value.(*connection)
		leaving.move(nil)
		_ = leaving.Conn.Close() // its server notices
		c.evicted()
	}
	entered.move(&c.strangers)
	return entered
}

// move puts a connection at the end of a list. The lock is held.
func (c *connection) move(to *list.List) {
	if c.in != nil {
		c.in.Remove(c.place)
	}
	if c.in = to; to != nil {
		c.place = to.PushBack(c)
	}
}

// progress notes that a connection has begun or ended a request; it is a ConnState of
// http.Server.
func (c *connections) progress(conn net.Conn, state http.ConnState) {
	known := connectionOf(conn)
	if known == nil || state != http.StateActive && state != http.StateIdle {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known.in != nil {
		known.move(known.in)
	}
}

// prove notes that a caller has shown a token on a connection.
func (c *connection) prove() {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	if c.in == &c.all.strangers {
		c.move(&c.all.known)
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

// remember lets a request find its connection; it is a ConnContext of http.Server.
func remember(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, connectionOf(conn))
}

// proven notes that the caller of a request has shown a token.
func proven(r *http.Request) {
	if c, _ := r.Context().Value(connectionKey{}).(*connection); c != nil { // nil in tests without a server
		c.prove()
	}
}
