package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
)

// probeTimeout limits the connection that asks a port what the port expects.
const probeTimeout = 1500 * time.Millisecond

// explain replaces the error of a connection that a broker closed without a
// word, or that a broker does not answer, by what the port of the broker expects. To learn what the port expects,
// explain makes at most two further connections, which send no credentials. All
// other errors, and errors without an explanation, are returned unchanged.
func (d *dialer) explain(ctx context.Context, addr string, err error) error {
	if ctx.Err() != nil || !speechless(err) {
		return err
	}
	if d.sasl == nil {
		if mechanisms, _ := d.probe(ctx, addr, d.connect); mechanisms != nil {
			return fmt.Errorf("the port expects SASL: %s offers %s: set sasl.mechanism and the credentials", addr, offered(mechanisms))
		}
	}
	if d.tls == nil {
		if d.answersTLS(ctx, addr) {
			return fmt.Errorf("the port expects TLS: %s answers a TLS client: set tls.enabled: true, or use the port that has no TLS", addr)
		}
	} else if _, plain := d.probe(ctx, addr, d.dial); plain {
		return fmt.Errorf("the port expects no TLS: %s answers without TLS: set tls.enabled: false, or use the port that has TLS", addr)
	}
	return err
}

// errHandshakeTimeout is the error of a broker that does not answer the first
// message of TLS. A port without TLS takes the message for the size of a large
// request, and waits for the request.
var errHandshakeTimeout = errors.New("no answer in time")

// speechless reports whether an error says that the peer closed the connection,
// or wrote something else than the protocol.
func speechless(err error) bool {
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	return noTLS || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, errHandshakeTimeout)
}

// probe asks a broker for a SASL mechanism that no broker has. A port with SASL
// answers with its mechanisms; answered reports whether a broker answered.
func (d *dialer) probe(ctx context.Context, addr string, dial dialFunc) (mechanisms []string, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, false
	}
	defer func() { _ = conn.Close() }() // nothing is left to say
	defer abort(ctx, conn)()
	pc, _, err := d.greet(conn)
	if err != nil {
		return nil, false
	}
	msg, err := pc.RoundTrip(&saslhandshake.Request{Mechanism: "POSTWIRE-PROBE"})
	if err != nil {
		return nil, true
	}
	res := msg.(*saslhandshake.Response)
	if kafka.Error(res.ErrorCode) == kafka.IllegalSASLState {
		return nil, true
	}
	return append([]string{}, res.Mechanisms...), true
}

// answersTLS reports whether a port speaks TLS. The certificate does not matter,
// because nothing is sent.
func (d *dialer) answersTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := d.dial(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }() // nothing is left to say
	host, _, _ := net.SplitHostPort(addr)
	spoke := false
	err = tls.Client(conn, &tls.Config{
		ServerName: host, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // only asks whether the port speaks TLS, and sends nothing
		VerifyConnection:   func(tls.ConnectionState) error { spoke = true; return nil },
	}).HandshakeContext(ctx)
	_, alert := errors.AsType[tls.AlertError](err)
	return err == nil || spoke || alert
}

// offered lists the mechanisms that a broker offers.
func offered(mechanisms []string) string {
	if len(mechanisms) == 0 {
		return "no mechanism"
	}
	return brief(strings.Join(mechanisms, ", "))
}
