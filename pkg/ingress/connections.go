package ingress

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postwire/postwire/internal/forwarded"
	"github.com/postwire/postwire/internal/httpserver"
)

// limited is a listener that admits connections to the pool. Only one goroutine may call
// Accept. While Accept waits for room, new connections wait in the kernel's backlog.
type limited struct {
	net.Listener
	server *Server
	once   sync.Once
	closed chan struct{}
}

// limit returns a listener that admits the connections of l to the pool.
func (s *Server) limit(l net.Listener) net.Listener {
	return &limited{Listener: l, server: s, closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	pool := l.server.pool
	conn := &connection{Conn: raw, pool: pool, remote: forwarded.Address(raw.RemoteAddr().String())}
	trusted := l.server.proxies().Trust(conn.remote)
	for {
		entered, again := pool.enter(conn, trusted)
		if entered {
			return conn, nil
		}
		timer := time.NewTimer(again)
		select {
		case <-timer.C:
		case <-pool.freed:
		case <-l.closed:
			_ = conn.Close()
			return nil, net.ErrClosed
		}
		timer.Stop()
	}
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// connection is a connection of the pool.
type connection struct {
	net.Conn
	pool   *pool
	remote netip.Addr

	// Guarded by pool.mu.
	own          allocation
	request      allocation // of the HTTP/1 request in progress
	open         bool       // admitted to the pool
	http2        bool
	headerBytes  int64 // bytes since heading was set
	headerMemory int64 // memory for headerBytes
	requests     int   // requests in progress
	verified     int   // verified requests in progress

	heading atomic.Bool // the connection reads a header, or waits for one; changed under pool.mu
}

type connectionKey struct{}

// withConnection adds the connection to the context of its requests. It is the
// ConnContext of the http.Server.
func withConnection(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, httpserver.Accepted(conn))
}

// connectionOf returns the connection of a request.
func (s *Server) connectionOf(ctx context.Context) *connection {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		return c
	}
	return &connection{pool: s.pool} // ServeHTTP was called without a server
}

// Read implements net.Conn.
func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.heading.Load() {
		if full := c.pool.arrive(c, n); full != nil && err == nil {
			err = full
		}
	}
	return n, err
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.pool.mu.Lock()
	c.pool.leave(c)
	c.pool.mu.Unlock()
	return c.Conn.Close()
}
