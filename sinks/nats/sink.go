// Package nats delivers events to NATS: to a JetStream stream, which
// acknowledges each event, or to core NATS, which forwards events to the
// current subscribers.
//
// Messages follow the NATS binding of CloudEvents. On JetStream each message
// has the event's MessageID as Nats-Msg-Id, so that within the stream's
// duplicate window (two minutes by default) the stream drops a stored event
// that was sent twice because of a crash or a lost response, and nothing else.
//
// An event becomes a dead letter if the event exceeds the server's max_payload
// or the stream's max_msg_size, and, if subject contains attributes, if the
// subject is not part of the stream or the user may not publish to the subject.
// All other failures are retried: a full subject alone (discard_new_per_subject),
// and a stream that is full or without a leader after a second in which the sink
// waits.
package nats

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// ackTimeout is the maximum time for an acknowledgement. A lost acknowledgement
// is repeated with an equal Nats-Msg-Id, so a short timeout is harmless.
const ackTimeout = 5 * time.Second

// reconnectWait is the wait between two attempts of the client to reconnect to
// all servers. The wait is short, because delivery should go on soon after the
// server is back, and a sink has a single connection.
const reconnectWait = 250 * time.Millisecond

// inFlight is the maximum number of concurrent deliveries to a stream.
const inFlight = 4

// Error codes of the server without a name in the client.
const (
	codeHeaderTooLarge jetstream.ErrorCode = 10097
	codeOtherStream    jetstream.ErrorCode = 10060 // a stream other than Nats-Expected-Stream stored the message
	codeStoreFailed    jetstream.ErrorCode = 10077 // the stream, or the subject, is full
)

// Status codes of errors of the server.
const (
	codeTooMany     = 429
	codeUnavailable = 503
)

// streamWait is the wait after a failure of the whole stream.
const streamWait = time.Second

var (
	errEnded  = errors.New("the server ended the connection")
	errDenied = errors.New("the server forbids this user to publish there")
)

//go:embed example.yaml
var example string

// Kind is the sink of type nats.
func Kind() sinks.Kind {
	return sinks.Define("nats", "NATS: a JetStream stream, or core NATS.", example, defaults, open)
}

// Sink implements sinks.Sink.
//
// Order in JetStream. A stream stores messages in the order in which its leader
// accepts messages, and only acknowledgements tell the order. Publishing a
// whole window regardless of keys is fast but wrong: if the first of two
// messages is lost (no leader at that moment, a limit, a reset between servers)
// and the second is stored, the repeat of the first is stored after the second,
// and nothing can undo this order. Therefore a partition key never has more
// than one message in flight, and the window is filled by different keys; a
// failure holds back only the rest of its key, and events without a key are
// independent.
//
// Measured on an embedded server (file store, loopback, 2 cores, batches of
// 512, BenchmarkDeliver), relative to events without a key, which use the whole
// window:
//
//	512 keys, one each       as fast
//	 64 keys                 0.94
//	  8 keys                 0.59
//	  1 key                  0.25
//
// Concurrent deliveries have keys of their own, and fill the time in which a
// delivery waits for acknowledgements. Relative to one delivery at a time, with a
// round trip of 10 ms:
//
//	            512 keys  64 keys  8 keys
//	2 deliveries     1.2      1.7     2.0
//	4 deliveries     1.7      2.7     3.7
//
// On loopback, where the CPU is the limit, 4 deliveries gain 2 % with 512 keys
// and 16 % with 8 keys.
//
// Only a sender with few profiles and a distant broker notices the order. Rejected
// alternatives: Nats-Expected-Last-Msg-Id and similar headers fail as soon as
// another publisher writes to the stream; atomic batches must first be enabled
// by the stream's owner.
//
// Order in core NATS: a single connection, in order; after a broken connection
// the whole batch is sent again.
type Sink struct {
	config Config
	env    sinks.Env
	log    *zap.Logger
	route  sinks.Route

	life context.Context // ends with Close
	end  context.CancelFunc

	mu      sync.Mutex
	session *session
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	s := &Sink{config: c, env: env, log: env.Log, route: c.Route()}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.env.Dial == nil {
		s.env.Dial = (&net.Dialer{}).DialContext
	}
	s.life, s.end = context.WithCancel(context.Background()) // longer than ctx, until Close
	ses, err := s.connected(ctx)
	if err == nil && c.Mode == modeJetStream {
		err = s.checkStream(ctx, ses)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// connected returns the session, or makes a new session after the last session
// ended.
func (s *Sink) connected(ctx context.Context) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		return nil, nats.ErrConnectionClosed
	}
	if s.session != nil {
		if !s.session.conn.IsClosed() {
			return s.session, nil
		}
		s.session.close()
		s.session = nil
	}
	ses, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	s.session = ses
	return ses, nil
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.end() // stops a connection attempt that has the lock
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.close()
		s.session = nil
	}
	return nil
}

// Destination implements sinks.Sink.
func (s *Sink) Destination(e event.Event) sinks.Destination {
	return s.route.Destination(e)
}

// delivery is a call of Deliver.
type delivery struct {
	*session
	sink     *Sink
	subjects func() ([]string, error) // the subjects of the stream, looked up once
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	ses, err := s.connected(ctx)
	if err != nil {
		return err
	}
	d := &delivery{session: ses, sink: s}
	if ses.js == nil {
		return d.core(ctx, batch)
	}
	d.subjects = sync.OnceValues(func() ([]string, error) { return s.subjects(ctx, ses) })
	return d.jetStream(ctx, batch)
}

// message encodes an event. All errors are Permanent.
func (s *Sink) message(e event.Event) (*nats.Msg, error) {
	subject := s.route.Destination(e).Name
	if len(subject) > maxSubject {
		return nil, sinks.Permanent(sinks.ReasonInvalid, fmt.Errorf("the subject has %d bytes, at most %d are sent", len(subject), maxSubject))
	}
	msg, err := encode(s.env, e, s.config.ContentMode, subject)
	if err != nil {
		return nil, sinks.Permanent(sinks.ReasonInvalid, err)
	}
	return msg, nil
}

// classify marks an error as permanent if the server refused the event's
// content. All other errors are transient: servers and streams come back, and a
// lost response is unknown. A full subject, and a subject that is not to be
// published, concern the destination. A stream that is full, overloaded or away
// concerns all subjects, so that the sink waits for streamWait.
func (d *delivery) classify(subject string, err error) error {
	api, _ := errors.AsType[*jetstream.APIError](err)
	err = fmt.Errorf("publishing to %s: %w", subject, err)
	static := d.sink.route.Template.Static()
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return sinks.Permanent(sinks.ReasonTooLarge, fmt.Errorf("%w of %d bytes", err, d.conn.MaxPayload()))
	case errors.Is(err, nats.ErrBadSubject) && !static:
		return sinks.Permanent(sinks.ReasonInvalid, err)
	case errors.Is(err, errDenied) && !static && d.accepted.Load():
		return sinks.Permanent(sinks.ReasonUnauthorized, err)
	case errors.Is(err, nats.ErrBadSubject), errors.Is(err, errDenied):
		return sinks.AtDestination(err)
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return d.refused(subject, err)
	case api == nil:
		return err
	}
	switch {
	case api.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum || api.ErrorCode == codeHeaderTooLarge:
		return sinks.Permanent(sinks.ReasonTooLarge, err)
	case api.ErrorCode == codeOtherStream:
		return d.refused(subject, err)
	case api.ErrorCode == codeStoreFailed && strings.Contains(api.Description, "per subject"):
		return sinks.AtDestination(d.full(err, api.Description)) // with discard_new_per_subject
	case api.ErrorCode == codeStoreFailed:
		return sinks.RetryAfter(streamWait, d.full(err, api.Description))
	case api.Code == codeUnavailable, api.Code == codeTooMany:
		return sinks.RetryAfter(streamWait, err)
	}
	return err
}

// core publishes the batch and waits until the server has read the whole batch.
// After a lost connection, the number of received events is unknown: all events
// are sent again.
func (d *delivery) core(ctx context.Context, batch []event.Event) error {
	errs := make([]error, len(batch))
	denied := make([]<-chan struct{}, len(batch))
	reconnects, lastError := d.conn.Stats().Reconnects, d.conn.LastError()
	for i, e := range batch {
		msg, err := d.sink.message(e)
		if err != nil {
			errs[i] = err
			continue
		}
		var release func()
		denied[i], release = d.denied.watch(msg.Subject)
		defer release()
		if err := d.conn.PublishMsg(msg); err != nil {
			err = d.classify(msg.Subject, err)
			if _, refused := sinks.IsPermanent(err); !refused {
				return err
			}
			errs[i] = err
		}
	}
	flush, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	if err := d.conn.FlushWithContext(flush); err != nil {
		return fmt.Errorf("waiting for the server to read the batch: %w", err)
	}
	if d.conn.Stats().Reconnects != reconnects {
		return errors.New("the connection was lost while events were on their way")
	}
	// The server sends denials before the answer to the flush, but the client
	// passes denials on through a queue.
	if err := d.conn.LastError(); err != lastError && errors.Is(err, nats.ErrPermissionViolation) { //nolint:errorlint // another one, even if it says the same
		if err := d.denied.waitHandled(flush, err); err != nil {
			return fmt.Errorf("waiting for the server's refusals: %w", err)
		}
		forbidden := func(i int) bool {
			select {
			case <-denied[i]: // nil, and so never ready, if nothing was published
				return true
			default:
				return false
			}
		}
		for i := range batch {
			if denied[i] != nil && !forbidden(i) {
				d.accepted.Store(true)
			}
		}
		for i, e := range batch {
			if forbidden(i) {
				errs[i] = d.classify(d.sink.route.Template.Expand(e, safeToken), errDenied)
			}
		}
	} else if len(batch) > 0 {
		d.accepted.Store(true)
	}
	return sinks.Outcome(errs)
}

// Limits implements sinks.Sink.
func (s *Sink) Limits() sinks.Limits {
	if s.config.Mode == modeCore {
		return sinks.Limits{}
	}
	return sinks.Limits{InFlight: inFlight}
}
