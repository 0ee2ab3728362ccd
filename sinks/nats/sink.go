// Package nats delivers events to NATS: to a JetStream stream, which
// acknowledges each one, or to core NATS, where whoever listens at that moment
// gets it. On JetStream each event carries a Nats-Msg-Id made of its CloudEvents
// source and id, so that the stream drops what a crash or a lost answer made
// Postwire send twice.
package nats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// ackTimeout is how long the stream may take to acknowledge. A lost answer is
// repeated with the same Nats-Msg-Id, so that a short wait costs nothing.
const ackTimeout = 5 * time.Second

// Kind is the sink of type nats.
func Kind() sinks.Kind {
	return sinks.Define("nats", "NATS: a JetStream stream, or core NATS.", defaults, open)
}

// Sink implements sinks.Sink.
//
// Order in JetStream: the server stores what it gets in the order it gets it,
// but of several messages on their way the first may be lost and the second
// stored; the repeat of the first then stands behind the second for good. So
// of one partition key there is never more than one message on its way. The
// window is filled by messages of different keys.
type Sink struct {
	config  Config
	log     *zap.Logger
	subject event.Template
	conn    *nats.Conn
	js      jetstream.JetStream // nil in core mode
	closed  chan struct{}
	slots   chan struct{} // one for each message on its way
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	subject, err := event.ParseTemplate(c.Subject)
	if err != nil {
		return nil, err
	}
	s := &Sink{config: c, log: env.Log, subject: subject, closed: make(chan struct{}), slots: make(chan struct{}, c.Window)}
	if s.conn, err = s.connect(ctx, env); err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", redact(c.URL), err)
	}
	if c.Mode == modeCore {
		return s, nil
	}
	if s.js, err = jetstream.New(s.conn, jetstream.WithPublishAsyncMaxPending(2*c.Window), jetstream.WithPublishAsyncTimeout(ackTimeout)); err == nil {
		err = s.checkStream(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// dialer lets the connection be made by Env.Dial.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

func (d dialer) Dial(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
	defer cancel()
	return d(ctx, network, addr)
}

func (s *Sink) connect(ctx context.Context, env sinks.Env) (*nats.Conn, error) {
	c := s.config
	timeout := ackTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	opts := []nats.Option{
		nats.Name("postwire/" + env.Name),
		nats.Timeout(timeout),
		nats.ReconnectBufSize(-1), // what is not sent must not look as if it were
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 500*time.Millisecond),
		nats.PingInterval(10 * time.Second), // a connection that is dead without saying so
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { s.log.Debug("disconnected", zap.Error(err)) }),
		nats.ReconnectHandler(func(c *nats.Conn) { s.log.Debug("connected again", zap.String("server", c.ConnectedUrlRedacted())) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.log.Warn("the server reports an error", zap.Error(err))
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(s.closed) }),
	}
	if env.Dial != nil {
		opts = append(opts, nats.SetCustomDialer(dialer(env.Dial)))
	}
	switch {
	case c.CredentialsFile != "":
		opts = append(opts, nats.UserCredentials(c.CredentialsFile))
	case c.NKeyFile != "":
		nkey, err := nats.NkeyOptionFromSeed(c.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the NKey: %w", err)
		}
		opts = append(opts, nkey)
	case c.User != "":
		opts = append(opts, nats.UserInfo(c.User, c.Password.Reveal()))
	case c.Token != "":
		opts = append(opts, nats.Token(c.Token.Reveal()))
	}
	if c.TLS.Enabled {
		t, err := c.TLS.Config()
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.Secure(t))
	}
	conn, err := nats.Connect(c.URL, opts...)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// redact hides the passwords in a list of URLs.
func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, text := range list {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			list[i] = "(a URL that cannot be read)"
			continue
		}
		if u.User != nil {
			u.User = url.User("***")
		}
		list[i] = u.String()
	}
	return strings.Join(list, ",")
}

// checkStream makes sure that the stream is there and takes our subjects.
func (s *Sink) checkStream(ctx context.Context) error {
	want := pattern(s.config.Subject)
	stream, err := s.js.Stream(ctx, s.config.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !s.config.Create {
			return s.missing()
		}
		_, err := s.js.CreateStream(ctx, jetstream.StreamConfig{Name: s.config.Stream, Subjects: []string{want}, Storage: jetstream.FileStorage})
		if err != nil {
			return fmt.Errorf("creating stream %s for %s: %w", s.config.Stream, want, err)
		}
		s.log.Info("stream created", zap.String("stream", s.config.Stream), zap.String("subjects", want))
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking up stream %s: %w", s.config.Stream, err)
	}
	subjects := stream.CachedInfo().Config.Subjects
	for _, subject := range subjects {
		if overlap(want, subject) {
			return nil
		}
	}
	return fmt.Errorf("stream %s takes %v, and no subject of %s is among them: change subject, or the stream", s.config.Stream, subjects, s.config.Subject)
}

func (s *Sink) missing() error {
	return fmt.Errorf("stream %s does not exist: create it, or set create: true", s.config.Stream)
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	if s.js == nil {
		return s.deliverCore(ctx, batch)
	}
	errs := make([]error, len(batch))
	var lines sync.WaitGroup
	for _, line := range sinks.Lines(batch) {
		lines.Go(func() {
			var failed error // the rest of the line must not overtake
			for _, i := range line {
				if failed != nil {
					errs[i] = fmt.Errorf("held back behind an event of its partition key: %w", failed)
					continue
				}
				errs[i] = s.publish(ctx, batch[i])
				if _, refused := sinks.IsPermanent(errs[i]); !refused {
					failed = errs[i]
				}
			}
		})
	}
	lines.Wait()
	return sinks.Outcome(errs)
}

// publish sends one event to the stream and waits for its acknowledgement.
func (s *Sink) publish(ctx context.Context, e event.Event) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	subject := s.subject.Expand(e, safeToken)
	msg, err := encode(ctx, e, s.config.ContentMode, subject)
	if err != nil {
		return sinks.Permanent(sinks.ReasonInvalid, err)
	}
	future, err := s.js.PublishMsgAsync(msg,
		jetstream.WithMsgID(e.CloudEvent.Source()+" "+e.CloudEvent.ID()),
		jetstream.WithExpectStream(s.config.Stream), jetstream.WithRetryAttempts(0))
	if err != nil {
		return s.classify(ctx, subject, err)
	}
	select {
	case <-future.Ok():
		return nil
	case err := <-future.Err():
		return s.classify(ctx, subject, err)
	case <-s.closed:
		return nats.ErrConnectionClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// classify says whether an event was refused for what it is. All else passes.
func (s *Sink) classify(ctx context.Context, subject string, err error) error {
	err = fmt.Errorf("publishing to %s: %w", subject, err)
	switch {
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum):
		return sinks.Permanent(sinks.ReasonTooLarge, err)
	case errors.Is(err, nats.ErrBadSubject), errors.Is(err, jetstream.ErrInvalidSubject):
		return sinks.Permanent(sinks.ReasonInvalid, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return s.noStream(ctx, subject, err)
	}
	return err
}

// noStream finds out why no stream answered for a subject. A stream that is
// gone may come back, and is created again where that is allowed. A subject
// that a stream which is there does not take is refused for good, unless all
// events go to that one subject: then it is the sink that is configured wrong.
func (s *Sink) noStream(ctx context.Context, subject string, err error) error {
	stream, lookup := s.js.Stream(ctx, s.config.Stream)
	if errors.Is(lookup, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w (%w)", err, s.checkStream(ctx))
	}
	if lookup != nil {
		return err
	}
	for _, taken := range stream.CachedInfo().Config.Subjects {
		if overlap(subject, taken) {
			return err // its leader is away, or it came back just now
		}
	}
	err = fmt.Errorf("%w: stream %s does not take this subject", err, s.config.Stream)
	if s.subject.Static() {
		return err
	}
	return sinks.Permanent(sinks.ReasonNoDestination, err)
}

// deliverCore publishes the batch and waits for the server's word that it has
// read it all. A connection that was lost meanwhile leaves unknown how much of
// it arrived: all is sent again.
func (s *Sink) deliverCore(ctx context.Context, batch []event.Event) error {
	errs := make([]error, len(batch))
	before := s.conn.Stats().Reconnects
	for i, e := range batch {
		subject := s.subject.Expand(e, safeToken)
		msg, err := encode(ctx, e, s.config.ContentMode, subject)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		if err := s.conn.PublishMsg(msg); err != nil {
			err = s.classify(ctx, subject, err)
			if _, refused := sinks.IsPermanent(err); !refused {
				return err
			}
			errs[i] = err
		}
	}
	flush, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	if err := s.conn.FlushWithContext(flush); err != nil {
		return fmt.Errorf("flushing: %w", err)
	}
	if s.conn.Stats().Reconnects != before {
		return errors.New("the connection was lost while events were on their way")
	}
	return sinks.Outcome(errs)
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.conn.Close()
	<-s.closed
	return nil
}
