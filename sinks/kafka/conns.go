package kafka

import (
	"context"
	"net"
	"sync"
)

// conns are the connections that are open. The client leaves one that waits
// for an answer alone until the request's time is up, even if nobody waits for
// the answer any more; closing it here ends the goroutine behind it.
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
		_ = t.Conn.Close() // it is given up, whatever it says
	}
	clear(c.open)
}
