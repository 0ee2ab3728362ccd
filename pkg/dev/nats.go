// Package dev runs a NATS server with JetStream inside the process, to try Postwire on a
// machine without a broker.
package dev

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// NATS starts a server with its streams in dir, on the given port of the loopback interface
// or the next free port. The caller shuts the server down.
func NATS(dir string, port int) (*server.Server, error) {
	port, err := FreePort(port)
	if err != nil {
		return nil, fmt.Errorf("starting NATS: %w", err)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "postwire-dev", Host: "127.0.0.1", Port: port,
		JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, fmt.Errorf("starting NATS: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("starting NATS: it is not ready after 10 seconds")
	}
	return s, nil
}

// FreePort returns the first free port of the loopback interface, beginning at port.
func FreePort(port int) (int, error) {
	var errs error
	for p := port; p < port+100 && p < 1<<16; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err == nil {
			return p, l.Close()
		}
		errs = err
	}
	return 0, fmt.Errorf("no port from %d on is free: %w", port, errs)
}
