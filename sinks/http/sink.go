// Package http delivers events to any receiver of CloudEvents over HTTP:
// Knative, functions, a custom service.
//
// Requests are POSTs according to the HTTP binding of CloudEvents, in the modes
// binary, structured or batched. With signing, requests are signed according to
// Standard Webhooks; webhook-id stays equal when an event is sent again, and
// differs in a replay. The webhook-id of a batch is made from the events of the
// batch and differs if the events are grouped differently: for batches, compare
// source and id of each event.
//
// An event is delivered when the receiver answers 2xx. After 400, 409, 413 or
// 422, in binary mode also after 415, the event becomes a dead letter; of a
// batch, only the event that the receiver refuses alone. After 410 nothing more
// is sent until Postwire is restarted, and events stay pending. After any other
// response (redirects are not followed), or without a response, the event is
// retried, not before Retry-After, at most an hour later: credentials (401,
// 403, 407) and a wrong url (404, 405) are for the operator to fix. Statuses in
// retry.dead_letter_on make dead letters instead.
//
// Response bodies and everything after the host in url are never logged.
// Proxies are not supported, and HTTP_PROXY is ignored.
package http

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net"
	nethttp "net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

var errClosed = errors.New("the sink is closed")

const summary = "CloudEvents over HTTP: Knative, functions, a service of your own. A status 2xx acknowledges an event. " +
	"After 400, 409, 413, 422, or a status listed in retry.dead_letter_on, the event becomes a dead letter. " +
	"After 410, Postwire sends nothing more until Postwire is restarted. " +
	"After any other status, or without an answer, the event is retried, not before Retry-After. HTTP proxies are not supported."

//go:embed example.yaml
var example string

// Kind is the sink of type http.
func Kind() sinks.Kind {
	return sinks.Define("http", summary, example, defaults, open)
}

// Sink implements sinks.Sink.
//
// Order: all events of a partition key are in a single group, and a group never
// has more than one request in flight. Posting all events at once and repeating
// the failed events would let the second of two events arrive before the first.
// A failure holds back the rest of its group. Without batches, a group is a
// partition key, or an event without a key; with batches, a group combines
// several keys to fill its requests.
type Sink struct {
	config    Config
	env       sinks.Env
	log       *zap.Logger
	route     sinks.Route    // its name is the printable part of url
	header    nethttp.Header // constant headers of a request
	key       key            // nil: nothing is signed
	dialer    func(ctx context.Context, network, addr string) (net.Conn, error)
	transport *nethttp.Transport

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
	if c.Signing.Secret != "" {
		if s.key, err = parseKey(c.Signing.Secret); err != nil {
			return nil, fmt.Errorf("signing.secret: %w", err)
		}
	}
	addr, t, err := s.endpoint(u)
	if err != nil {
		return nil, err
	}
	s.life, s.end = context.WithCancel(context.Background()) // longer than ctx, until Close
	s.transport = s.newTransport(t)
	if err := s.check(ctx, addr, t); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
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
	s.transport.CloseIdleConnections()
	return nil
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	switch {
	case s.life.Err() != nil:
		return errClosed
	case s.stopped.Load():
		return errStopped
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	d := &delivery{sink: s, batch: batch, errs: make([]error, len(batch))}
	slots := make(chan struct{}, s.config.MaxInFlight)
	var groups sync.WaitGroup
	for _, group := range s.groups(batch) {
		slots <- struct{}{} // all requests end with ctx
		groups.Go(func() {
			defer func() { <-slots }()
			d.run(ctx, group)
		})
	}
	groups.Wait()
	return sinks.Outcome(d.errs)
}

// Destination implements sinks.Sink and returns the receiver without path and
// query, which may contain a secret.
func (s *Sink) Destination(e event.Event) sinks.Destination {
	return s.route.Destination(e)
}

// groups partitions the events of a batch into groups, as indexes. Different
// groups may be sent concurrently.
func (s *Sink) groups(batch []event.Event) [][]int {
	lines := sinks.Lines(batch)
	if s.config.ContentMode != batched {
		return lines
	}
	requests := (len(batch) + s.config.BatchSize - 1) / s.config.BatchSize
	groups := make([][]int, min(requests, s.config.MaxInFlight))
	for _, line := range lines {
		shortest := 0
		for i := range groups {
			if len(groups[i]) < len(groups[shortest]) {
				shortest = i
			}
		}
		groups[shortest] = append(groups[shortest], line...)
	}
	for _, group := range groups {
		slices.Sort(group)
	}
	return groups
}

// delivery is a call of Deliver.
type delivery struct {
	sink  *Sink
	batch []event.Event
	errs  []error               // outcome of each event; a single goroutine writes each index
	stop  atomic.Pointer[error] // why nothing more is sent before the next attempt
}

// run sends a group in order. A failure holds back the rest of the group.
func (d *delivery) run(ctx context.Context, group []int) {
	parts := make([]part, 0, len(group))
	for _, i := range group {
		p, err := encode(d.sink.env, d.batch[i], d.sink.config.ContentMode)
		if err != nil {
			d.errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		p.index = i
		parts = append(parts, p)
	}
	for len(parts) > 0 {
		n := d.sink.fit(parts)
		if err := d.send(ctx, parts[:n]); err != nil {
			d.hold(parts[n:], err)
			return
		}
		parts = parts[n:]
	}
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

// send sends parts in a single request. The error is the reason to hold back
// later parts. A refused batch is halved until the receiver refuses a single
// event, so that only this event fails.
func (d *delivery) send(ctx context.Context, parts []part) error {
	err := d.post(ctx, parts)
	_, refused := sinks.IsPermanent(err)
	if half := len(parts) / 2; refused && half > 0 {
		if err := d.send(ctx, parts[:half]); err != nil {
			d.hold(parts[half:], err)
			return err
		}
		return d.send(ctx, parts[half:])
	}
	for _, p := range parts {
		d.errs[p.index] = err
	}
	if refused {
		return nil
	}
	return err
}

func (d *delivery) hold(parts []part, err error) {
	for _, p := range parts {
		d.errs[p.index] = fmt.Errorf("held back behind an event that failed: %w", err)
	}
}

// post makes a request and judges the response.
func (d *delivery) post(ctx context.Context, parts []part) error {
	if stop := d.stop.Load(); stop != nil {
		return fmt.Errorf("not sent: %w", *stop)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := d.sink.request(ctx, parts)
	if err != nil {
		return err
	}
	answer, err := d.sink.transport.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("posting to %s: %w", d.sink.route.Template.String(), cause(err))
	}
	drop(answer, cancel)
	stop, err := d.sink.judge(answer)
	if err != nil {
		err = fmt.Errorf("posting to %s: %w", d.sink.route.Template.String(), err)
	}
	if stop {
		d.stop.CompareAndSwap(nil, &err)
	}
	return err
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
	return r, nil
}

// Limits implements sinks.Sink.
func (*Sink) Limits() sinks.Limits { return sinks.Limits{} }
