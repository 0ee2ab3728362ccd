// Package natstest gives tests a NATS server with JetStream in this process.
package natstest

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Broker is a NATS server inside the test.
type Broker struct {
	opts   server.Options
	server *server.Server
}

// Start starts a server with JetStream that keeps its streams with the test.
func Start(t *testing.T, change func(*server.Options)) *Broker {
	t.Helper()
	b := &Broker{opts: server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: 64 << 10}}
	if change != nil {
		change(&b.opts)
	}
	b.Restart(t)
	t.Cleanup(func() { b.Stop(t) })
	return b
}

// Restart brings the server back after Stop.
func (b *Broker) Restart(t *testing.T) {
	t.Helper()
	opts := b.opts
	s, err := server.NewServer(&opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	b.server = s
	b.opts.Port = s.Addr().(*net.TCPAddr).Port // the same after a restart
}

// Stop takes the server away.
func (b *Broker) Stop(*testing.T) {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// URL is where the server is, or will be again.
func (b *Broker) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", b.opts.Port) }

// Connect connects to the server for the time of the test.
func (b *Broker) Connect(t *testing.T, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(b.URL(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Messages reads all messages of a stream. It waits until there are n.
func (b *Broker) Messages(t *testing.T, stream string, n int) []*nats.Msg {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	js := b.Connect(t)
	c, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	held, err := js.Stream(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	n = max(n, int(held.CachedInfo().State.Msgs))
	var all []*nats.Msg
	for len(all) < n {
		m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(all), n, err)
		}
		all = append(all, &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})
	}
	return all
}
