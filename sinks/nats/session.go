package nats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/natsclient"
)

// session is a connection with its dependent objects. After a network error the
// client reconnects by itself, without limit; a session ends only on Close, or
// when the server sends an error that the client takes as final.
type session struct {
	conn   *nats.Conn
	js     jetstream.JetStream // nil in core mode
	idle   chan *publisher
	denied *denials
	ended  chan struct{} // closed when the connection is closed for good
	end    context.CancelFunc

	// accepted is set after the server stored a message of this connection.
	// Only then a forbidden subject is an error of the event; before, the
	// credentials may be wrong.
	accepted atomic.Bool
}

func (s *session) close() {
	s.conn.Close()
	<-s.ended
	s.end()
}

// connect makes a session, and returns as soon as ctx is done.
func (s *Sink) connect(ctx context.Context) (*session, error) {
	life, end := context.WithCancel(s.life)
	ses := &session{idle: make(chan *publisher, inFlight), denied: newDenials(), ended: make(chan struct{}), end: end}
	opts, err := s.options(life, ses) //nolint:contextcheck // a session outlives the attempt to connect
	if err != nil {
		end()
		return nil, err
	}
	stop := context.AfterFunc(ctx, end) // only until connected
	ses.conn, err = nats.Connect(s.config.URL.Reveal(), opts...)
	if !stop() && err == nil {
		ses.close()
		err = ctx.Err()
	}
	if err != nil {
		end()
		return nil, fmt.Errorf("connecting to %s: %w", s.config.URL, natsclient.Bare(err))
	}
	if s.config.Mode == modeCore {
		return ses, nil
	}
	if ses.js, err = jetstream.New(ses.conn); err != nil {
		ses.close()
		return nil, fmt.Errorf("setting up JetStream: %w", err)
	}
	return ses, nil
}

// publisher publishes messages to a stream for one delivery at a time. A
// publisher has a subscription of its own for acknowledgements.
type publisher struct {
	js   jetstream.JetStream
	acks *acks
}

// publisher returns an idle publisher, or makes a publisher.
func (s *session) publisher(window int) (*publisher, error) {
	select {
	case p := <-s.idle:
		p.acks.take() // drop the acks of an earlier delivery
		return p, nil
	default:
	}
	p := &publisher{acks: newAcks()}
	var err error
	p.js, err = jetstream.New(s.conn, jetstream.WithPublishAsyncTimeout(ackTimeout),
		jetstream.WithPublishAsyncAckHandler(func(_ jetstream.JetStream, msg *nats.Msg, a *jetstream.PubAck) {
			p.acks.add(ack{msg: msg, duplicate: a.Duplicate})
		}),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, msg *nats.Msg, err error) { p.acks.add(ack{msg: msg, err: err}) }),
		// Messages of a Deliver with a cancelled context stay pending until
		// their timeout.
		jetstream.WithPublishAsyncMaxPending(4*window))
	if err != nil {
		return nil, fmt.Errorf("setting up JetStream: %w", err)
	}
	return p, nil
}

// release makes a publisher idle after a delivery.
func (s *session) release(p *publisher) {
	select {
	case s.idle <- p:
	default:
		p.js.CleanupPublisher()
	}
}

func (s *Sink) options(life context.Context, ses *session) ([]nats.Option, error) {
	opts, err := s.config.login().Options()
	if err != nil {
		return nil, err
	}
	opts = append(opts,
		nats.Name("postwire/"+s.env.Name),
		nats.Timeout(ackTimeout),
		nats.PingInterval(10*time.Second), // detects dead connections
		nats.ReconnectWait(reconnectWait),
		nats.SetCustomDialer(&dialer{life, s.env.Dial}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if life.Err() == nil {
				s.log.Info("disconnected from NATS", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			s.log.Info("reconnected to NATS", zap.String("server", c.ConnectedUrlRedacted()))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if !ses.denied.handle(err) {
				s.log.Warn("NATS reports an error", zap.Error(err))
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(ses.ended) }),
	)
	return opts, nil
}

// dialer makes connections that end with their session, because the client has
// no context to cancel a hanging connection.
type dialer struct {
	life context.Context
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (d *dialer) Dial(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.life, ackTimeout)
	defer cancel()
	conn, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &sessionConn{conn, context.AfterFunc(d.life, func() { _ = conn.Close() })}, nil
}

// sessionConn is a connection that is closed with its session.
type sessionConn struct {
	net.Conn
	stop func() bool
}

func (m *sessionConn) Close() error {
	m.stop()
	return m.Conn.Close()
}

// denials notifies publishers that the server forbids their subject. The server
// reports a denial out of band and does not answer the message.
type denials struct {
	mu      sync.Mutex
	waiting map[string]*denial // by subject
	last    error              // the last handled error
	notifyC chan struct{}      // closed when last changes
}

type denial struct {
	denied  chan struct{}
	waiting int
}

func newDenials() *denials {
	return &denials{waiting: map[string]*denial{}, notifyC: make(chan struct{})}
}

// watch returns a channel that is closed when the server forbids subject.
func (d *denials) watch(subject string) (denied <-chan struct{}, release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.waiting[subject]
	if w == nil {
		w = &denial{denied: make(chan struct{})}
		d.waiting[subject] = w
	}
	w.waiting++
	return w.denied, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if w.waiting--; w.waiting == 0 && d.waiting[subject] == w {
			delete(d.waiting, subject)
		}
	}
}

// handle reports whether err is a publish denial, and notifies the watchers of
// the subject.
func (d *denials) handle(err error) bool {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return false
	}
	_, quoted, ok := strings.Cut(err.Error(), `Permissions Violation for Publish to `)
	if !ok {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if subject, unquote := strconv.Unquote(quoted); unquote == nil {
		if w := d.waiting[subject]; w != nil {
			delete(d.waiting, subject)
			close(w.denied)
		}
	}
	d.last = err
	close(d.notifyC)
	d.notifyC = make(chan struct{})
	return true
}

// changed returns a channel that is closed at the next denial.
func (d *denials) changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.notifyC
}

// waitHandled waits until the error handler has handled err, the last error of the
// connection.
func (d *denials) waitHandled(ctx context.Context, err error) error {
	for {
		d.mu.Lock()
		last, notifyC := d.last, d.notifyC
		d.mu.Unlock()
		if last == err { //nolint:errorlint // this very one, not one like it
			return nil
		}
		select {
		case <-notifyC:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
