// Package natstest runs a NATS server with JetStream in the process of a test.
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

// Broker is a NATS server in a test.
type Broker struct {
	opts   server.Options
	server *server.Server
}

// Start starts a server with JetStream. The test removes its streams.
func Start(t testing.TB, change ...func(*server.Options)) *Broker {
	t.Helper()
	b := &Broker{opts: server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}}
	for _, f := range change {
		f(&b.opts)
	}
	b.Restart(t)
	t.Cleanup(func() { b.Stop(t) })
	return b
}

// Restart restarts the server after Stop.
func (b *Broker) Restart(t testing.TB) {
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
	b.opts.Port = s.Addr().(*net.TCPAddr).Port // keeps the port after a restart
}

// Change changes the server configuration from the next Restart on.
func (b *Broker) Change(change func(*server.Options)) { change(&b.opts) }

// Stop stops the server.
func (b *Broker) Stop(testing.TB) {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// URL returns the URL of the server, also while it is stopped.
func (b *Broker) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", b.opts.Port) }

// Connect connects a client until the end of the test.
func (b *Broker) Connect(t testing.TB, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(b.URL(), append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	conn.SetClosedHandler(func(*nats.Conn) { close(ended) })
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Messages reads all messages of a stream.
func (b *Broker) Messages(t testing.TB, js jetstream.JetStream, stream string) (all []*nats.Msg) {
	t.Helper()
	b.Each(t, js, stream, func(m *nats.Msg, _ time.Time) { all = append(all, m) })
	return all
}

// Each calls f for each message of a stream, with the time of its storage.
func (b *Broker) Each(t testing.TB, js jetstream.JetStream, stream string, f func(*nats.Msg, time.Time)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	left := s.CachedInfo().State.Msgs
	if left == 0 {
		return
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	for ; left > 0; left-- {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatalf("reading %s with %d messages to come: %v", stream, left, err)
		}
		about, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		f(&nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}, about.Timestamp)
	}
}
