// Package ingress is the first step (ingress, source, journal, relay, sinks):
// the HTTP server for webhooks. The ingress routes a path to a source, enforces every
// limit, and answers 2xx only after the event is on stable storage. No sender is named in
// this package.
package ingress

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/forwarded"
	"github.com/postwire/postwire/internal/httpserver"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/telemetry"
)

// Route assigns paths to a source.
type Route struct {
	Name     string
	Source   source.Source
	Settings source.Settings
}

// Options of a Server. Journal, Log and Metrics are needed.
type Options struct {
	Config  config.Server
	Routes  []Route
	Journal journal.Appender
	Log     *zap.Logger
	Metrics *Metrics
	Traces  *telemetry.Traces // nil disables tracing
	Now     func() time.Time  // nil is time.Now

	// OnUnknownSecret is called when the signature of a request matches no secret of
	// its source. The function starts a refresh of the secrets, and returns how long
	// the request waits for Replace. With nil such a request is refused at once.
	OnUnknownSecret func(source string) time.Duration
}

// maxStreams is the maximum number of concurrent requests of an HTTP/2 connection, the
// least that RFC 9113 recommends.
const maxStreams = 100

// Server is the HTTP server for webhooks. Its methods may be called concurrently.
type Server struct {
	opts    Options
	log     *zap.Logger
	http    *http.Server
	pool    *pool
	closing atomic.Bool
	// draining: answers end their connections.
	draining atomic.Bool
	warned   atomic.Bool // about an untrusted proxy

	routes           atomic.Pointer[map[string]*route] // by path; a reload stores a new map
	exchanging       sync.Mutex
	requests, memory *quotaPool
	deadlines        deadlines
}

// route is the source of a path, with its limits.
type route struct {
	name             string
	settings         source.Settings
	current          atomic.Pointer[sourceVersion]
	maxBody          int64
	limiter          *rate.Limiter
	handshakeLimiter *rate.Limiter // of OPTIONS handshakes
	metrics          *sourceMetrics

	inFlight *quota // verified requests
	memory   *quota // bytes of headers and bodies
}

// sourceVersion is one version of a source: a reload or a new secret makes another.
type sourceVersion struct {
	source.Source
	proof    source.Proof
	replaced chan struct{} // closed when a newer version is in use
}

func open(src source.Source) *sourceVersion {
	return &sourceVersion{src, src.Proof(), make(chan struct{})}
}

// New makes a server; Serve runs it.
func New(opts Options) (*Server, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	c := opts.Config
	s := &Server{
		opts: opts, log: opts.Log,
		requests: newQuotaPool(int64(c.MaxInFlight), len(opts.Routes)), memory: newQuotaPool(int64(c.MaxBufferedBytes), len(opts.Routes)),
	}
	s.routes.Store(&map[string]*route{})
	if err := s.SetRoutes(opts.Routes); err != nil {
		return nil, err
	}
	s.pool = newPool(s.memory, c.MaxConnections, int64(c.MaxHeaderBytes), c.TLS.Enabled(), opts.Metrics)
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: c.ReadHeaderTimeout,
		ReadTimeout:       c.ReadTimeout,
		WriteTimeout:      c.WriteTimeout,
		IdleTimeout:       c.IdleTimeout,
		MaxHeaderBytes:    int(c.MaxHeaderBytes),
		ConnContext:       withConnection,
		// net/http allocates a whole frame when the frame's header arrives, and queues
		// control frames for a client that does not read.
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 16 << 10, WriteByteTimeout: 5 * time.Second},
	}
	httpserver.LimitHeaderValues(s.http)
	httpserver.LimitAge(s.http, c.MaxConnectionAge)
	// Strangers cause most errors of connections, so the level is debug.
	var err error
	if s.http.ErrorLog, err = zap.NewStdLogAt(opts.Log, zap.DebugLevel); err != nil {
		return nil, fmt.Errorf("making a log for the server: %w", err)
	}
	if c.TLS.CertFile != "" {
		certificates, err := httpserver.LoadCertificates(c.TLS, opts.Log)
		if err != nil {
			return nil, fmt.Errorf("server.tls: %w", err)
		}
		s.http.TLSConfig = certificates.Config()
		opts.Metrics.served.Store(certificates)
	}
	return s, nil
}

// SetRoutes replaces the sources for new requests. Requests under way complete with the
// old version. A source in both configurations keeps its rate limiter and its quota.
// After an error the old sources stay in use.
func (s *Server) SetRoutes(routes []Route) error {
	s.exchanging.Lock()
	defer s.exchanging.Unlock()
	before := map[string]*route{}
	for _, rt := range *s.routes.Load() {
		before[rt.name] = rt
	}
	taken := map[string]string{}
	for _, r := range routes {
		for _, path := range r.Settings.Paths {
			if _, ok := taken[path]; ok {
				return fmt.Errorf("two sources are on path %s", path)
			}
			taken[path] = r.Name
		}
	}
	next, used := map[string]*route{}, map[*quota]bool{}
	for _, r := range routes {
		old := before[r.Name]
		delete(before, r.Name)
		rt := old
		if old == nil || !reflect.DeepEqual(old.settings, r.Settings) {
			rt = s.route(r, old)
		}
		if old != nil {
			// Requests may wait for newer secrets at the old version.
			close(old.current.Swap(open(r.Source)).replaced)
		}
		for _, path := range r.Settings.Paths {
			next[path] = rt
		}
		used[rt.inFlight], used[rt.memory] = true, true
	}
	s.requests.divide(len(routes), used)
	s.memory.divide(len(routes), used)
	s.routes.Store(&next)
	for name := range before {
		s.opts.Metrics.deleteSource(name)
	}
	return nil
}

// route returns the route of a source, with the quotas of the old route if there is one.
func (s *Server) route(r Route, old *route) *route {
	rt := &route{name: r.Name, settings: r.Settings, maxBody: int64(cmp.Or(r.Settings.MaxBodyBytes, s.opts.Config.MaxBodyBytes)), metrics: s.opts.Metrics.of(r.Name)}
	rt.current.Store(open(r.Source))
	if old == nil {
		rt.inFlight, rt.memory = s.requests.quotaOf(int64(r.Settings.MaxInFlight)), s.memory.quotaOf(0)
	} else {
		rt.inFlight, rt.memory = old.inFlight, old.memory
		rt.inFlight.setLimit(int64(r.Settings.MaxInFlight))
	}
	if old != nil && old.settings.Rate == r.Settings.Rate {
		rt.limiter, rt.handshakeLimiter = old.limiter, old.handshakeLimiter
	} else {
		rt.limiter, rt.handshakeLimiter = newLimiter(r.Settings.Rate), newLimiter(r.Settings.Rate)
	}
	return rt
}

// Replace replaces a source by a version with other secrets, for new requests and for
// requests that wait for newer secrets. Paths and settings stay.
func (s *Server) Replace(name string, src source.Source) error {
	s.exchanging.Lock()
	defer s.exchanging.Unlock()
	found := false
	for _, rt := range *s.routes.Load() {
		if rt.name == name {
			close(rt.current.Swap(open(src)).replaced)
			found = true
		}
	}
	if !found {
		return fmt.Errorf("there is no source %s", name)
	}
	return nil
}

func newLimiter(r source.Rate) *rate.Limiter {
	if r.PerSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	burst := r.Burst
	if burst == 0 {
		burst = int(math.Ceil(r.PerSecond))
	}
	return rate.NewLimiter(rate.Limit(r.PerSecond), burst)
}

// Serve accepts connections from l until Shutdown, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	l = s.limit(l)
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(l, "", "")
	} else {
		err = s.http.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving webhooks: %w", err)
}

// Drain asks the clients to end their connections: from now on every answer says
// Connection: close, and on HTTP/2 a GOAWAY follows the answer. The server goes on to accept
// connections and requests, and closes no idle connection, because a request may be on its
// way there.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown stops accepting connections and waits for the requests under way. If ctx ends
// first, Shutdown closes their connections.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Store(true)
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("waiting for requests under way: %w", err), s.http.Close())
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	start := s.opts.Now()
	id := newRequestID()
	w.Header().Set("X-Request-Id", id)
	if hr.ProtoMajor == 1 && len(hr.TransferEncoding) > 0 {
		// The request may also have a Content-Length, which net/http removes. A proxy
		// that used the Content-Length sees another end of this request and would
		// take the bytes after it for the next request (RFC 9112, section 6.1).
		w.Header().Set("Connection", "close")
	}
	if s.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	name := ""
	var memory *quota
	rt, token := s.find(hr.URL)
	if rt != nil {
		name, memory = rt.name, rt.memory
	}
	log := func() *zap.Logger { return s.log.With(zap.String("request_id", id), zap.String("source", name)) }
	peer := forwarded.Peer(hr)
	trusted := s.proxies().Trust(peer)
	remote := s.proxies().Remote(peer, hr)
	s.warn(peer, trusted, hr)
	size, values := headerSize(hr.Header)
	request, full := s.pool.begin(s.connectionOf(hr.Context()), w, hr, remote, memory, size)
	last := false
	defer func() { s.pool.end(request, last) }()
	a := s.guarded(log, func() answer {
		switch {
		case values > httpserver.MaxHeaderValues:
			if hr.ProtoMajor == 2 && !trusted {
				// HPACK encodes each value in one byte, so the connection can carry
				// many more such headers: close the connection before they are decoded.
				s.pool.cut(request)
			}
			return refuse(outcomeHeader)
		case rt == nil:
			return refuse(outcomeNotFound)
		case full != nil:
			return refuse(outcomeOverloaded)
		}
		return s.receive(hr, rt, token, remote, request, start, log)
	})
	if duration := s.opts.Now().Sub(start); rt != nil {
		rt.metrics.received(a.outcome, duration)
	} else {
		s.opts.Metrics.unrouted(a.outcome, duration)
	}
	refused := answers[a.outcome].status >= http.StatusBadRequest
	if !a.proven && (refused && !trusted || hr.ProtoMajor < 2 && s.pool.isEvicted(request)) {
		// A sender that has not authenticated does not keep the connection. The
		// connection of a trusted proxy is shared and stays open, unless the pool has
		// already returned its bytes.
		w.Header().Set("Connection", "close")
	}
	if err := a.write(w, id); err != nil {
		log().Debug("the sender did not wait for the answer", zap.Error(err))
	}
	last = w.Header().Get("Connection") == "close"
	hr.Header = nil // frees the header of a sender that does not read the answer
	if hr.ProtoMajor < 2 {
		return
	}
	// A stream exists until the sender has read the answer, but the request's context
	// ends when the handler returns. Send the answer here, so that the stream counts
	// until then.
	_ = hr.Body.Close() // frees the unread part of the body
	s.pool.answered(request)
	if err := http.NewResponseController(w).Flush(); err != nil {
		log().Debug("the sender did not take the answer", zap.Error(err))
	}
}

// warn logs once that an untrusted proxy forwards requests: all senders behind the proxy
// count as one address.
func (s *Server) warn(peer netip.Addr, trusted bool, hr *http.Request) {
	if trusted || s.warned.Load() || !forwarded.NamesSender(hr.Header) {
		return
	}
	if !peer.IsPrivate() && !peer.IsLoopback() && !peer.IsLinkLocalUnicast() {
		return
	}
	if s.warned.CompareAndSwap(false, true) {
		s.log.Warn("an untrusted private address forwards requests: all senders behind the address count as one sender",
			zap.Stringer("remote", peer), zap.String("advice", "if the address belongs to your load balancer or ingress controller, add its network to server.trusted_proxies"))
	}
}

// find returns the route of a URL, nil if there is none, and the token after the path of
// a source with path_token. find does not clean the path, and an escaped slash does not
// separate segments.
func (s *Server) find(u *url.URL) (rt *route, token string) {
	if strings.Contains(strings.ToUpper(u.RawPath), "%2F") {
		return nil, ""
	}
	routes := *s.routes.Load()
	if rt := routes[u.Path]; rt != nil {
		return rt, ""
	}
	slash := strings.LastIndexByte(u.Path, '/')
	if slash < 0 || slash == len(u.Path)-1 {
		return nil, ""
	}
	parent := u.Path[:slash]
	if parent == "" {
		parent = "/"
	}
	if rt := routes[parent]; rt != nil && rt.current.Load().proof.PathToken {
		return rt, u.Path[slash+1:]
	}
	return nil, ""
}

// receive handles a request: read, verify, normalize, append. Each step may refuse the
// request.
func (s *Server) receive(hr *http.Request, rt *route, token string, remote netip.Addr, request *allocation, came time.Time, log func() *zap.Logger) (a answer) {
	if hr.Method == http.MethodOptions {
		return s.consent(hr, rt, token, remote)
	}
	if hr.Method != http.MethodPost {
		return refuse(outcomeMethod)
	}
	if s.closing.Load() {
		return refuse(outcomeUnavailable)
	}
	in := bodyReader{pool: s.pool, request: request, limit: rt.maxBody}
	if err := in.read(hr); err != nil {
		if s.pool.isEvicted(request) {
			return refuse(outcomeOverloaded)
		}
		return bodyOutcome(err)
	}
	req := s.request(hr, token, remote, in.body)
	src, err := s.verify(hr.Context(), rt, req, request)
	if err != nil {
		if s.pool.isEvicted(request) {
			return refuse(outcomeOverloaded)
		}
		log().Warn("request refused", zap.Stringer("remote", req.Remote), zap.Error(err))
		return unverified(err)
	}
	if !s.pool.verify(request, src.proof.Required) {
		return refuse(outcomeOverloaded)
	}
	defer func() { a.proven = src.proof.Required }()
	// The rate limit and the trace come after authentication: a stranger must neither
	// use up the sender's rate nor fill the collector.
	ctx, span := s.opts.Traces.Accept(hr.Context(), hr, rt.name, req.Path, src.proof.Required, came)
	if id := span.ID(); id != "" {
		outer := log
		log = func() *zap.Logger { return outer().With(zap.String("trace_id", id)) }
		defer func() { span.End(string(a.outcome), answers[a.outcome].status) }()
	}
	if now := s.opts.Now(); !rt.limiter.AllowN(now, 1) {
		return refuse(outcomeRateLimited).after(retryAfter(rt.limiter))
	}
	if err := rt.inFlight.acquire(1); errors.Is(err, errSourceQuota) {
		return refuse(outcomeRateLimited)
	} else if err != nil {
		return refuse(outcomeOverloaded)
	}
	defer rt.inFlight.release(1)
	if err := s.pool.grow(request, int64(len(in.body))); err != nil { // its events copy the body
		return refuse(outcomeOverloaded)
	}
	ctx = s.deadlines.bound(ctx)
	events, err := src.Normalize(req)
	if challenge, ok := errors.AsType[*source.ChallengeError](err); ok {
		return answer{outcome: outcomeChallenge, text: challenge.Answer}
	}
	if err != nil {
		return s.malformed(ctx, rt.name, src.proof, req, err, log)
	}
	start := s.opts.Now()
	ctx, events, appended := s.opts.Traces.Append(ctx, events)
	receipts, err := s.opts.Journal.Append(ctx, events...)
	appended(err)
	s.opts.Metrics.appended(s.opts.Now().Sub(start))
	if err != nil {
		return s.notStored(err, log)
	}
	rt.metrics.events(events, receipts)
	if s.log.Core().Enabled(zap.DebugLevel) {
		logEvents(log(), events, receipts)
	}
	return stored(receipts)
}

// verify verifies a request. A request whose signature matches no secret waits while the
// secrets are refreshed: a sender uses a rotated secret at once, and does not repeat a
// refused webhook.
func (s *Server) verify(ctx context.Context, rt *route, req *source.Request, request *allocation) (*sourceVersion, error) {
	src := rt.current.Load()
	err := src.Verify(req)
	if !errors.Is(err, source.ErrWrongSecret) || s.opts.OnUnknownSecret == nil {
		return src, err
	}
	hold := s.opts.OnUnknownSecret(rt.name)
	if hold <= 0 {
		return src, err
	}
	yields := s.pool.wait(request)
	over := time.NewTimer(hold)
	defer over.Stop()
	for errors.Is(err, source.ErrWrongSecret) {
		select {
		case <-src.replaced:
		case <-over.C:
			return src, err
		case <-yields:
			return src, err
		case <-ctx.Done():
			return src, err
		}
		src = rt.current.Load()
		err = src.Verify(req)
	}
	return src, err
}

// consent answers an OPTIONS handshake. The caller has not authenticated, so handshakes
// have a rate limiter of their own.
func (s *Server) consent(hr *http.Request, rt *route, token string, remote netip.Addr) answer {
	if s.closing.Load() {
		return refuse(outcomeUnavailable)
	}
	header, ok := rt.current.Load().Options(s.request(hr, token, remote, nil))
	if !ok {
		return refuse(outcomeMethod)
	}
	if now := s.opts.Now(); !rt.handshakeLimiter.AllowN(now, 1) {
		return refuse(outcomeRateLimited).after(retryAfter(rt.handshakeLimiter))
	}
	return answer{outcome: outcomeConsented, header: header}
}

// malformed quarantines an authenticated request that the source does not understand. A
// refusal would count against the sender's channel, and the event would be lost.
func (s *Server) malformed(ctx context.Context, name string, proof source.Proof, req *source.Request, reason error, log func() *zap.Logger) answer {
	if !proof.Required {
		log().Warn("malformed request refused", zap.Error(reason))
		return refuse(outcomeMalformed)
	}
	public := proof.Public(req)
	id, err := s.opts.Journal.Quarantine(ctx, journal.QuarantinedRequest{
		Source: name, Received: public.Received, Method: public.Method, Path: public.Path, RawQuery: public.RawQuery,
		Header: public.Header, Body: public.Body, Reason: reason.Error(),
	})
	if err != nil {
		return s.notStored(err, log)
	}
	log().Warn("request quarantined", zap.String("id", id), zap.Error(reason))
	return answer{outcome: outcomeQuarantined, id: id}
}

func (s *Server) notStored(err error, log func() *zap.Logger) answer {
	log().Error("request not stored", zap.Error(err))
	return refuse(outcomeUnavailable)
}

func logEvents(log *zap.Logger, events []event.Event, receipts []journal.Receipt) {
	for i, r := range receipts {
		log.Debug("event stored", zap.String("event_id", r.ID), zap.String("type", events[i].CloudEvent.Type()),
			zap.Uint64("seq", uint64(r.Seq)), zap.Bool("duplicate", r.Duplicate))
	}
}

// request returns the part of a request that a source sees.
func (s *Server) request(hr *http.Request, token string, remote netip.Addr, body []byte) *source.Request {
	path := hr.URL.Path
	if token != "" {
		path = cmp.Or(path[:len(path)-len(token)-1], "/")
	}
	r := &source.Request{
		Method: hr.Method, Path: path, RawQuery: hr.URL.RawQuery, Header: hr.Header, Body: body,
		Remote: remote, Received: s.opts.Now().UTC(),
		Token: token, Target: hr.RequestURI, Client: clientOf(hr),
	}
	r.Scheme, r.Host = s.proxies().Origin(forwarded.Peer(hr), hr)
	if !strings.HasPrefix(r.Target, "/") { // an absolute URL, as sent to proxies
		r.Target = hr.URL.RequestURI()
	}
	return r
}

// clientOf returns the verified client certificate of the connection, or nil.
func clientOf(hr *http.Request) *x509.Certificate {
	if hr.TLS == nil || len(hr.TLS.VerifiedChains) == 0 {
		return nil
	}
	return hr.TLS.VerifiedChains[0][0]
}

func unverified(err error) answer {
	if errors.Is(err, source.ErrForbidden) {
		return refuse(outcomeForbidden)
	}
	return refuse(outcomeUnauthenticated)
}

// proxies returns the trusted proxies, whose forwarding headers name the sender.
func (s *Server) proxies() forwarded.Proxies { return s.opts.Config.TrustedProxies }
