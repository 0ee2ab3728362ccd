// Package http delivers events to any receiver of CloudEvents over HTTP: Knative,
// functions, a service of one's own.
//
// Requests are POSTs that follow the HTTP binding of CloudEvents, in the modes
// binary, structured or batched. With signing they are signed as Standard
// Webhooks has it; webhook-id is then the same whenever an event is sent again,
// and another one in a replay. A batch's is made of its events, so that it is
// another one where they are grouped otherwise: there, compare each event's
// source and id.
//
// An event is delivered when the receiver answers with a 2xx. After 400, 409, 413
// or 422, in binary mode also after 415, the event becomes a dead letter; of a
// batch, only the event that the receiver refuses alone. After 410 nothing more
// is sent until Postwire is started again, and events wait. After any other
// answer (a redirect is not followed), or none, the event is tried again, and no
// sooner than Retry-After asks, up to an hour: credentials (401, 403, 407) and a
// wrong url (404, 405) are for the operator to correct. Statuses listed in
// retry.dead_letter_on make dead letters instead.
//
// Neither answers' bodies nor what follows the host in url is ever logged. There
// is no way through a proxy, and HTTP_PROXY is not heeded.
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
// Order: the events of one partition key are in one lane, and of a lane there is
// never more than one request on its way. The naive way, to post all at once
// and repeat what failed, lets the second of two events arrive before the first.
// A failure holds back the rest of its lane. Without batches a lane is one
// partition key, or one event without a key; with batches it is as many of those
// as make its requests full.
type Sink struct {
	config    Config
	env       sinks.Env
	log       *zap.Logger
	route     sinks.Route    // its name is what is shown of url
	header    nethttp.Header // of each request
	key       key            // nil: nothing is signed
	way       func(ctx context.Context, network, addr string) (net.Conn, error)
	transport *nethttp.Transport

	life context.Context // ends with Close
	end  context.CancelFunc

	gone atomic.Bool // the receiver has answered 410
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	u, err := url.Parse(c.URL.Reveal())
	if err != nil {
		return nil, errors.New("url is not a URL") // not wrapped: it would be shown
	}
	s := &Sink{config: c, env: env, log: env.Log, route: c.Route(), header: c.header(), way: env.Dial}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.way == nil {
		s.way = (&net.Dialer{}).DialContext
	}
	if c.RefusePrivateAddresses {
		s.way = guard{net.DefaultResolver.LookupNetIP, s.way}.Dial
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
	s.end() // and all connections with it
	s.transport.CloseIdleConnections()
	return nil
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	switch {
	case s.life.Err() != nil:
		return errClosed
	case s.gone.Load():
		return errGone
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	d := &delivery{sink: s, batch: batch, errs: make([]error, len(batch))}
	slots := make(chan struct{}, s.config.MaxInFlight)
	var lanes sync.WaitGroup
	for _, lane := range s.lanes(batch) {
		slots <- struct{}{} // each ends with ctx
		lanes.Go(func() {
			defer func() { <-slots }()
			d.run(ctx, lane)
		})
	}
	lanes.Wait()
	return sinks.Outcome(d.errs)
}

// Destination implements sinks.Sink: the receiver, without the path and the query of
// its URL, which may hold a secret.
func (s *Sink) Destination(e event.Event) sinks.Destination {
	return s.route.Destination(e)
}

// lanes sorts the events of a batch into lanes, by their indexes. What is in
// different lanes may go at once.
func (s *Sink) lanes(batch []event.Event) [][]int {
	lines := sinks.Lines(batch)
	if s.config.ContentMode != batched {
		return lines
	}
	requests := (len(batch) + s.config.BatchSize - 1) / s.config.BatchSize
	lanes := make([][]int, min(requests, s.config.MaxInFlight))
	for _, line := range lines {
		shortest := 0
		for i := range lanes {
			if len(lanes[i]) < len(lanes[shortest]) {
				shortest = i
			}
		}
		lanes[shortest] = append(lanes[shortest], line...)
	}
	for _, lane := range lanes {
		slices.Sort(lane)
	}
	return lanes
}

// delivery is one call of Deliver.
type delivery struct {
	sink  *Sink
	batch []event.Event
	errs  []error               // what became of each; each index is one goroutine's
	stop  atomic.Pointer[error] // why nothing more is sent before the next attempt
}

// run sends a lane in order. What fails holds back what is behind it.
func (d *delivery) run(ctx context.Context, lane []int) {
	parts := make([]part, 0, len(lane))
	for _, i := range lane {
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

// fit is how many of the parts go in one request.
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

// send sends parts in one request. Its error is why those behind them must wait.
// A batch that the receiver refuses is halved until the event is found that it
// refuses alone: the others are not to blame.
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

// post makes one request and judges its answer.
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

// request makes the request of one part, or of a batch.
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
		return nil, errors.New("url is not a URL") // not wrapped: it would be shown
	}
	r.Header = s.header.Clone()
	maps.Copy(r.Header, header)
	if s.key != nil {
		s.key.sign(r.Header, webhookID(parts), s.now(), body)
	}
	return r, nil
}
