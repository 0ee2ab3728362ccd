package kafka

import (
	"context"
	"net"
	"sync"
)

// conns are the open connections. The client keeps a connection that waits for
// a response until the request's timeout, even without a waiting caller;
// closing the connection here ends the goroutine behind the connection.
type conns struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	mu   sync.Mutex
	open map[*tracked]struct{}
}

type tracked struct {
	net.Conn
	of *conns
}

func (c *conns) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	t := &tracked{conn, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[t] = struct{}{}
	return t, nil
}

// Close implements net.Conn.
func (t *tracked) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t)
	t.of.mu.Unlock()
	return t.Conn.Close()
}

func (c *conns) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.open {
		_ = t.Conn.Close() // the error of an abandoned connection is useless
	}
	clear(c.open)
}
