// Package http delivers events to any receiver of CloudEvents over HTTP:
// Knative, functions, a custom service.
//
// Requests are POSTs according to the HTTP binding of CloudEvents, in the modes
// binary, structured or batched. With signing, requests are signed according to
// Standard Webhooks, or in the format of the configuration; webhook-id stays equal when an event is sent again, and
// differs in a replay. The webhook-id of a batch is made from the events of the
// batch and differs if the events are grouped differently: for batches, compare
// source and id of each event.
//
// An event is delivered when the receiver answers 2xx. After 400, 409, 413 or
// 422, in binary mode also after 415, the event becomes a dead letter; of a
// batch, only the event that the receiver refuses alone. After 410 nothing more
// is sent until Postwire is restarted, and events stay pending. After any other
// response (redirects are not followed), or without a response, the event is
// retried: credentials (401, 403, 407) and a wrong url (404, 405) are for the
// operator to fix. Statuses in retry.dead_letter_on make dead letters instead.
//
// A response, or a timeout while waiting for a response, concerns only the
// events of the request. Three failures concern the whole sink: a connection
// that cannot be made, 410, and a request to wait, which is Retry-After with any
// status, at most an hour, and 429 or 503 without Retry-After, for a second.
//
// Response bodies and everything after the host in url are never logged.
// Proxies of the environment, such as HTTP_PROXY, are ignored; proxy names one.
package http

import (
	"bytes"
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net"
	nethttp "net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

var errClosed = errors.New("the sink is closed")

const summary = "CloudEvents over HTTP: Knative, functions, a service of your own. A status 2xx acknowledges an event. " +
	"After 400, 409, 413, 422, or a status listed in retry.dead_letter_on, the event becomes a dead letter. " +
	"After 410, Postwire sends nothing more until Postwire is restarted. " +
	"After any other status, or without an answer, the event is retried, not before Retry-After."

//go:embed example.yaml
var example string

// Kind is the sink of type http.
func Kind() sinks.Kind {
	return sinks.Define("http", summary, example, defaults, open)
}

// Sink implements sinks.Sink.
//
// Deliver sends the requests of a batch one after another; the relay calls
// Deliver concurrently, up to max_in_flight. A failure holds back the later
// events of the batch with an equal partition key.
type Sink struct {
	config Config
	env    sinks.Env
	log    *zap.Logger
	route  sinks.Route    // its name is the printable part of url
	header nethttp.Header // constant headers of a request
	key    signer         // nil: nothing is signed
	aws    *awsSigner     // nil without aws
	dialer func(ctx context.Context, network, addr string) (net.Conn, error)
	tls    *tls.Config // nil for http
	proxy  *url.URL    // nil: connect directly
	tokens *tokens     // nil without oauth2

	mu        sync.Mutex
	transport *nethttp.Transport // of the next request
	made      time.Time          // when transport was made

	life context.Context // ends with Close
	end  context.CancelFunc

	stopped atomic.Bool // the receiver has answered 410
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	u, err := url.Parse(c.URL.Reveal())
	if err != nil {
		return nil, errors.New("url is not a URL") // not wrapped, because the error quotes the url
	}
	s := &Sink{config: c, env: env, log: env.Log, route: c.Route(), header: c.header(), dialer: env.Dial}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.dialer == nil {
		s.dialer = (&net.Dialer{}).DialContext
	}
	if c.RefusePrivateAddresses {
		s.dialer = guard{net.DefaultResolver.LookupNetIP, s.dialer}.Dial
	}
	if s.key, err = c.Signing.signer(); err != nil {
		return nil, fmt.Errorf("signing.secret: %w", err)
	}
	if c.AWS.used() {
		if s.aws, err = newAWSSigner(c.AWS, os.Getenv); err != nil {
			return nil, err
		}
	}
	if c.Proxy != "" {
		if s.proxy, err = url.Parse(c.Proxy.Reveal()); err != nil {
			return nil, errors.New("proxy is not a URL") // not wrapped, because the error quotes the URL
		}
	}
	addr, t, err := s.endpoint(u, c.TLS)
	if err != nil {
		return nil, err
	}
	s.life, s.end = context.WithCancel(context.Background()) // longer than ctx, until Close
	s.tls, s.transport, s.made = t, s.newTransport(t), time.Now()
	if err := s.openTokens(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.check(ctx, addr, t); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.tokens != nil { // wrong credentials are found before the first event
		if _, err := s.tokens.get(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// openTokens makes the tokens of oauth2. Nothing is asked yet.
func (s *Sink) openTokens() error {
	o := s.config.OAuth2
	if !o.used() {
		return nil
	}
	u, err := url.Parse(o.TokenURL.Reveal())
	if err != nil {
		return errors.New("oauth2.token_url is not a URL") // not wrapped, because the error quotes the URL
	}
	_, t, err := s.endpoint(u, o.TLS)
	if err != nil {
		return fmt.Errorf("oauth2: %w", err)
	}
	s.tokens = newTokens(o, s.newTransport(t))
	return nil
}

func (s *Sink) now() time.Time {
	if s.env.Now == nil {
		return time.Now()
	}
	return s.env.Now()
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.end() // closes all connections
	s.current().CloseIdleConnections()
	if s.tokens != nil {
		s.tokens.client.CloseIdleConnections()
	}
	return nil
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	switch {
	case s.life.Err() != nil:
		return errClosed
	case s.stopped.Load():
		return sinks.BatchError(slices.Repeat([]error{errStopped}, len(batch)))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	d := &delivery{sink: s, batch: batch, errs: make([]error, len(batch)), failed: map[string]error{}}
	for parts := d.encode(); len(parts) > 0; {
		n := s.fit(parts)
		d.send(ctx, parts[:n])
		parts = parts[n:]
	}
	if _, unconnected := errors.AsType[*connectError](d.stop); unconnected && !slices.Contains(d.errs, nil) {
		return d.stop
	}
	return sinks.Outcome(d.errs)
}

// Limits implements sinks.Sink.
func (s *Sink) Limits() sinks.Limits {
	if s.config.ContentMode == batched {
		return sinks.Limits{InFlight: s.config.MaxInFlight, Batch: s.config.BatchSize}
	}
	return sinks.Limits{InFlight: s.config.MaxInFlight, Batch: 1}
}

// Destination implements sinks.Sink and returns the receiver without path and
// query, which may contain a secret.
func (s *Sink) Destination(e event.Event) sinks.Destination {
	return s.route.Destination(e)
}

// delivery is a call of Deliver.
type delivery struct {
	sink   *Sink
	batch  []event.Event
	errs   []error          // outcome of each event
	failed map[string]error // transient failures, by partition key
	stop   error            // why nothing more is sent in this call
}

// encode returns the sendable events.
func (d *delivery) encode() []part {
	parts := make([]part, 0, len(d.batch))
	for i, e := range d.batch {
		p, err := encode(d.sink.env, e, d.sink.config.ContentMode)
		if err != nil {
			d.errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		p.index = i
		parts = append(parts, p)
	}
	return parts
}

// fit returns how many of the parts fit into a request.
func (s *Sink) fit(parts []part) int {
	if s.config.ContentMode != batched {
		return 1
	}
	n, size := 0, 0
	for n < min(len(parts), s.config.BatchSize) {
		if size += 1 + len(parts[n].body); n > 0 && size >= int(s.config.BatchBytes) {
			break
		}
		n++
	}
	return n
}

// send sends parts in a single request, except for parts behind a failure. A
// refused batch is halved until the receiver refuses a single event, so that
// only this event fails.
func (d *delivery) send(ctx context.Context, parts []part) {
	if parts = d.free(parts); len(parts) == 0 {
		return
	}
	err := d.post(ctx, parts)
	_, refused := sinks.IsPermanent(err)
	if half := len(parts) / 2; refused && half > 0 {
		d.send(ctx, parts[:half])
		d.send(ctx, parts[half:])
		return
	}
	for _, p := range parts {
		d.errs[p.index] = err
		if key, ok := d.batch[p.index].Attribute(event.PartitionKey); ok && err != nil && !refused {
			d.failed[key] = err
		}
	}
	if stops(ctx, err) {
		d.stop = err
	}
}

// free returns the parts that no failure holds back.
func (d *delivery) free(parts []part) []part {
	free := make([]part, 0, len(parts))
	for _, p := range parts {
		key, keyed := d.batch[p.index].Attribute(event.PartitionKey)
		switch err := d.failed[key]; {
		case d.stop != nil:
			d.errs[p.index] = fmt.Errorf("not sent: %w", d.stop)
		case keyed && err != nil:
			d.errs[p.index] = fmt.Errorf("held back behind an event that failed: %w", err)
		default:
			free = append(free, p)
		}
	}
	return free
}

// stops reports whether an error concerns all events of the sink.
func stops(ctx context.Context, err error) bool {
	_, unconnected := errors.AsType[*connectError](err)
	return unconnected || sinks.Wait(err) > 0 || errors.Is(err, errStopped) || ctx.Err() != nil
}

// post makes a request and judges the response. After a 401 to a token that the receiver has
// accepted before, post makes one more request with a new token.
func (d *delivery) post(ctx context.Context, parts []part) error {
	if d.sink.tokens == nil {
		_, err := d.try(ctx, parts, nil)
		return err
	}
	for again := true; ; again = false {
		token, err := d.sink.tokens.get(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			return &connectError{err} // concerns the whole sink
		}
		status, err := d.try(ctx, parts, token)
		if status == 0 || !d.sink.tokens.judge(token, status) || !again {
			return err
		}
	}
}

// try makes a request, with a token if there is one, and returns the status of the response,
// 0 without a response.
func (d *delivery) try(ctx context.Context, parts []part, token *oauth2.Token) (status int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var connected atomic.Bool
	r, err := d.sink.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}), parts)
	if err != nil {
		return 0, err
	}
	if token != nil {
		token.SetAuthHeader(r)
	}
	answer, err := d.sink.current().RoundTrip(r)
	if err != nil {
		_, dialing := errors.AsType[*connectError](err)
		unconnected := (dialing || !connected.Load()) && !errors.Is(err, context.Canceled)
		err = fmt.Errorf("posting to %s: %w", d.sink.route.Template.String(), cause(err))
		if unconnected {
			return 0, &connectError{err}
		}
		return 0, err
	}
	drop(answer, cancel)
	if err := d.sink.judge(answer); err != nil {
		return answer.StatusCode, fmt.Errorf("posting to %s: %w", d.sink.route.Template.String(), err)
	}
	return answer.StatusCode, nil
}

// request makes the request for a part, or for a batch.
func (s *Sink) request(ctx context.Context, parts []part) (*nethttp.Request, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	header, body := parts[0].header, parts[0].body
	if s.config.ContentMode == batched {
		header, body = list(parts)
	}
	r, err := nethttp.NewRequestWithContext(ctx, nethttp.MethodPost, s.config.URL.Reveal(), bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("url is not a URL") // not wrapped, because the error quotes the url
	}
	r.Header = s.header.Clone()
	maps.Copy(r.Header, header)
	if s.key != nil {
		s.key.sign(r.Header, webhookID(parts), s.now(), body)
	}
	if s.aws != nil {
		if err := s.aws.sign(ctx, r, body, s.now()); err != nil {
			return nil, err
		}
	}
	return r, nil
}
