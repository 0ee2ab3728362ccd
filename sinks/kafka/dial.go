package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
)

const (
	clientID = "postwire"
	// maxReason limits the part of an error that a broker or a token endpoint
	// wrote, in bytes.
	maxReason = 300
	// handshakeTimeout limits the TLS handshake. The rest of dialTimeout is for
	// the explanation of a failure.
	handshakeTimeout = 3 * time.Second
	// renewTimeout limits a re-authentication.
	renewTimeout = 5 * time.Second
	// tokenWait limits the wait of a request for a token, while the old
	// authentication is good. The token is fetched in the background, for the
	// next request.
	tokenWait = 500 * time.Millisecond
)

// dialFunc connects to an address, as net.Dialer.DialContext.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer makes connections to brokers that are ready for requests: through the
// proxy, encrypted and authenticated. kafka-go's Transport can do TLS and SASL
// itself, but drops the lifetime of the authentication, which the broker sends,
// and the reason of a refusal.
type dialer struct {
	dial dialFunc // through the proxy
	tls  *clientTLS
	sasl sasl.Mechanism // nil without SASL
	life context.Context
}

// Dial connects to a broker. Dial implements kafka.Transport.Dial.
func (d *dialer) Dial(ctx context.Context, network, addr string) (*brokerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.connect(ctx, network, addr)
	if err != nil {
		return nil, d.explain(ctx, addr, err)
	}
	c := &brokerConn{Conn: conn, dialer: d, network: network, addr: addr}
	if d.sasl == nil {
		return c, nil
	}
	defer abort(ctx, conn)()
	if c.kafka, c.versions, err = d.greet(conn); err != nil {
		err = d.explain(ctx, addr, fmt.Errorf("asking broker %s for its API versions: %w", addr, err))
	} else {
		err = c.authenticate(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// connect connects to a broker and, if configured, agrees on TLS.
func (d *dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	settings := d.tls.forHost(addr)
	if settings == nil {
		return conn, nil
	}
	encrypted := tls.Client(conn, settings)
	limited, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := encrypted.HandshakeContext(limited); err != nil {
		_ = conn.Close()
		if limited.Err() != nil && ctx.Err() == nil {
			err = errHandshakeTimeout
		}
		return nil, fmt.Errorf("agreeing with broker %s on TLS: %w", addr, err)
	}
	return encrypted, nil
}

// greet asks a broker for the versions of its API.
func (d *dialer) greet(conn net.Conn) (*protocol.Conn, map[protocol.ApiKey]int16, error) {
	pc := protocol.NewConn(conn, clientID)
	msg, err := pc.RoundTrip(new(apiversions.Request))
	if err != nil {
		return nil, nil, err
	}
	res := msg.(*apiversions.Response)
	if res.ErrorCode != 0 {
		return nil, nil, kafka.Error(res.ErrorCode)
	}
	versions := make(map[protocol.ApiKey]int16, len(res.ApiKeys))
	for _, each := range res.ApiKeys {
		key := protocol.ApiKey(each.ApiKey)
		versions[key] = key.SelectVersion(each.MinVersion, each.MaxVersion)
	}
	pc.SetVersions(versions)
	return pc, versions, nil
}

// abort interrupts reads and writes of conn when ctx ends, until the returned
// function is called.
func abort(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// brokerConn is a connection to a broker. The authentication of the connection
// is renewed in time: a broker closes a connection after the lifetime of its
// authentication.
//
// A client sends a request only after the response to the request before, so
// the first Write after a Read begins a request. There, and only there, the
// authentication is renewed.
type brokerConn struct {
	dialer        *dialer
	network, addr string

	net.Conn                           // replaced under mu
	kafka    *protocol.Conn            // of Conn; nil without SASL
	versions map[protocol.ApiKey]int16 // of the API of the broker
	writing  bool                      // a request is being written
	requests int                       // begun
	deadline time.Time                 // of the request
	renewAt  time.Time                 // when to renew the authentication; zero for never
	expires  time.Time                 // when the broker closes the connection; zero for never

	mu     sync.Mutex // guards Conn against Close
	closed bool
}

// Write implements net.Conn.
func (c *brokerConn) Write(p []byte) (int, error) {
	if !c.writing {
		if err := c.renew(); err != nil {
			return 0, err
		}
		c.writing = true
		c.requests++
	}
	return c.Conn.Write(p)
}

// Read implements net.Conn. A broker that expects something else of its clients
// than configured closes the connection in answer to the first request, or to
// the first request after the API versions. Then the error says what the broker
// expects.
func (c *brokerConn) Read(p []byte) (int, error) {
	c.writing = false
	n, err := c.Conn.Read(p)
	if err != nil && n == 0 && c.requests <= 2 && c.kafka == nil && c.dialer.life.Err() == nil && !errors.Is(err, net.ErrClosed) {
		ctx, cancel := context.WithTimeout(c.dialer.life, renewTimeout)
		defer cancel()
		err = c.dialer.explain(ctx, c.addr, err)
	}
	return n, err
}

// SetDeadline implements net.Conn. The deadline of a request stays when another
// connection replaces the connection.
func (c *brokerConn) SetDeadline(t time.Time) error {
	c.deadline = t
	return c.Conn.SetDeadline(t)
}

// Close implements net.Conn.
func (c *brokerConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.Conn.Close()
}

// authenticate authenticates the connection and notes the lifetime of the
// authentication.
func (c *brokerConn) authenticate(ctx context.Context) error {
	state, message, err := c.dialer.start(ctx, c.addr)
	if err != nil {
		return err
	}
	return c.finish(ctx, state, message)
}

// start begins an authentication before anything is sent, and gets a token if
// the mechanism needs a token.
func (d *dialer) start(ctx context.Context, addr string) (sasl.StateMachine, []byte, error) {
	metadata := &sasl.Metadata{}
	if host, port, err := net.SplitHostPort(addr); err == nil {
		metadata.Host = host
		metadata.Port, _ = strconv.Atoi(port)
	}
	state, message, err := d.sasl.Start(sasl.WithMetadata(ctx, metadata))
	if err != nil {
		return nil, nil, fmt.Errorf("SASL %s: %w", d.sasl.Name(), err)
	}
	return state, message, nil
}

// finish exchanges the messages of an authentication with the broker.
func (c *brokerConn) finish(ctx context.Context, state sasl.StateMachine, message []byte) error {
	name := c.dialer.sasl.Name()
	if err := c.handshake(name); err != nil {
		return err
	}
	for {
		sent := time.Now()
		msg, err := c.kafka.RoundTrip(&saslauthenticate.Request{AuthBytes: message})
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("broker %s closed the connection during SASL %s: check the credentials: %w", c.addr, name, kafka.SASLAuthenticationFailed)
		}
		if err != nil {
			return fmt.Errorf("SASL %s with broker %s: %w", name, c.addr, err)
		}
		res := msg.(*saslauthenticate.Response)
		if res.ErrorCode != 0 {
			return fmt.Errorf("broker %s refuses the credentials (SASL %s): %w%s", c.addr, name, kafka.Error(res.ErrorCode), reasons(state, res.ErrorMessage))
		}
		done, next, err := state.Next(ctx, res.AuthBytes)
		if err != nil {
			return fmt.Errorf("SASL %s with broker %s: %w", name, c.addr, err)
		}
		if done {
			c.note(sent, time.Duration(res.SessionLifetimeMs)*time.Millisecond)
			return nil
		}
		message = next
	}
}

// handshake agrees with the broker on the mechanism.
func (c *brokerConn) handshake(name string) error {
	msg, err := c.kafka.RoundTrip(&saslhandshake.Request{Mechanism: name})
	if err != nil {
		return fmt.Errorf("starting SASL %s with broker %s: %w", name, c.addr, err)
	}
	res := msg.(*saslhandshake.Response)
	switch err := kafka.Error(res.ErrorCode); {
	case err == kafka.IllegalSASLState:
		return fmt.Errorf("illegal SASL state: this listener has no SASL: remove sasl, or use the port of %s that has SASL: %w", c.addr, err)
	case err == kafka.UnsupportedSASLMechanism:
		return fmt.Errorf("broker %s does not support SASL mechanism %s, but %s: change sasl.mechanism: %w", c.addr, name, offered(res.Mechanisms), err)
	case err != 0:
		return fmt.Errorf("starting SASL %s with broker %s: %w", name, c.addr, err)
	}
	return nil
}

// reasons returns what the broker wrote about a refusal. A broker may quote the
// token, so the state hides the token.
func reasons(state sasl.StateMachine, message string) string {
	texts := []string{message}
	b, isBearer := state.(*bearerState)
	if isBearer {
		texts = append(texts, b.challenge)
	}
	var text strings.Builder
	for _, each := range texts {
		if isBearer {
			each = b.hide(each)
		}
		if each = brief(each); each != "" && !strings.Contains(text.String(), each) {
			text.WriteString(": " + each)
		}
	}
	return text.String()
}

// brief shortens a text from a server and removes control characters.
func brief(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text))
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}

// note sets when to renew an authentication that was sent at a time: after 80 %
// of the lifetime. A lifetime of 0 has no end.
func (c *brokerConn) note(sent time.Time, lifetime time.Duration) {
	c.renewAt, c.expires = time.Time{}, time.Time{}
	if lifetime > 0 {
		c.renewAt, c.expires = sent.Add(lifetime/5*4), sent.Add(lifetime)
	}
}

// renew authenticates again if 80 % of the lifetime have passed. If the lifetime
// itself has passed, or the connection breaks, another connection replaces the
// connection. A failure to get a token is no error before the lifetime ends.
func (c *brokerConn) renew() error {
	now := time.Now()
	if c.renewAt.IsZero() || now.Before(c.renewAt) {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.dialer.life, renewTimeout)
	defer cancel()
	if now.After(c.expires) {
		return c.replace(ctx)
	}
	wait, stopWait := context.WithTimeout(ctx, tokenWait)
	defer stopWait()
	state, message, err := c.dialer.start(wait, c.addr)
	if err != nil {
		c.renewAt = time.Now().Add(c.expires.Sub(now) / 4)
		return nil // the authentication is still good, and the next request tries again
	}
	stop := abort(ctx, c.Conn)
	err = c.finish(ctx, state, message)
	stop()
	if err != nil {
		return c.replace(ctx)
	}
	return nil
}

// replace replaces the connection by another connection to the broker.
func (c *brokerConn) replace(ctx context.Context) error {
	other, err := c.dialer.Dial(ctx, c.network, c.addr)
	if err != nil {
		return &dialError{err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		_ = other.Conn.Close()
		return net.ErrClosed
	case !maps.Equal(c.versions, other.versions): // the client has agreed on versions of the API
		_ = other.Conn.Close()
		return fmt.Errorf("broker %s has other API versions than before", c.addr)
	}
	_ = c.Conn.Close()
	if err := other.Conn.SetDeadline(c.deadline); err != nil {
		_ = other.Conn.Close()
		return err
	}
	c.Conn, c.kafka, c.renewAt, c.expires = other.Conn, other.kafka, other.renewAt, other.expires
	return nil
}

// clientTLS are the TLS settings for connections to brokers. The files are read
// again for each connection, so that a renewed certificate needs no reload.
type clientTLS struct {
	files config.TLS
	log   *zap.Logger

	mu      sync.Mutex
	current *tls.Config // of the last successful reading
	failure string      // of the last reading
}

func newClientTLS(files config.TLS, log *zap.Logger) (*clientTLS, error) {
	c, err := files.Config()
	if err != nil || c == nil {
		return nil, err
	}
	return &clientTLS{files: files, log: log, current: c}, nil
}

// forHost returns the settings for a connection to an address, or nil without
// TLS. If the files cannot be read, the certificates of the last reading stay.
func (t *clientTLS) forHost(addr string) *tls.Config {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if next, err := t.files.Config(); err == nil {
		t.current, t.failure = next, ""
	} else if err.Error() != t.failure {
		t.failure = err.Error()
		t.log.Error("the certificate files have changed and cannot be loaded; the old certificate stays in use", zap.Error(err))
	}
	c := t.current.Clone()
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return c
}

// newDialer makes the dialer of the configuration.
func (s *Sink) newDialer() (*dialer, error) {
	d := &dialer{life: s.life}
	var err error
	if d.dial, err = s.config.Proxy.through(s.env.Dial); err != nil {
		return nil, err
	}
	if d.tls, err = newClientTLS(s.config.TLS, s.log); err != nil {
		return nil, err
	}
	if s.config.SASL.Mechanism == bearerSASL {
		b, err := s.config.SASL.OAuth.newBearer(s.life, d.dial)
		if err != nil {
			return nil, err
		}
		d.sasl = b
		return d, nil
	}
	if d.sasl, err = s.config.SASL.mechanism(); err != nil {
		return nil, fmt.Errorf("sasl: %w", err)
	}
	return d, nil
}
