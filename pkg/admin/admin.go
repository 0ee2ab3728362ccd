// Package admin serves the admin port: health, metrics, the admin API and the
// console. The package also has the client of the API. Events do not pass through
// this package.
package admin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/httpserver"
	"github.com/postwire/postwire/pkg/console"
)

// Check is a readiness check. Brokers have no check: while a broker is unavailable,
// the relay accepts webhooks, and events stay pending.
type Check struct {
	Name string
	Run  func() error
}

// Options are the settings of a Server. Gatherer and Log are required.
type Options struct {
	API      *API // nil for no API and no console
	Checks   []Check
	Gatherer prometheus.Gatherer
	Schemas  http.Handler // for /schemas/; nil for no schemas
	Log      *zap.Logger

	TLS              config.ServerTLS
	MaxConnectionAge time.Duration // 0 for no limit
	Metrics          *Metrics      // required with TLS or API
}

// Limits of the admin port, which reserve memory and file descriptors for the journal
// and the ingress.
const (
	maxConnections = 256
	maxHeaderBytes = 32 << 10
	writeTimeout   = time.Minute // for an answer; a tail has a deadline per message
	// sendBuffer limits the kernel's buffer for unread data of an answer, which may
	// otherwise grow to some megabytes per connection.
	sendBuffer = 128 << 10
)

// errShutdown is the cause of ending tails at shutdown.
var errShutdown = errors.New("the relay stops")

// Server serves the admin port.
type Server struct {
	opts  Options
	http  *http.Server
	conns *connections
	end   context.CancelCauseFunc // ends tails
}

// New returns a server, to be run by Serve. An error names an unreadable TLS file.
func New(opts Options) (*Server, error) {
	evicted := func() {}
	if opts.Metrics != nil {
		evicted = opts.Metrics.evicted.Inc
	}
	s := &Server{opts: opts, conns: newConnections(maxConnections, evicted)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.live)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(opts.Gatherer, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(opts.Log)}))
	if opts.Schemas != nil {
		mux.Handle("GET /schemas/", opts.Schemas)
	}
	if opts.API != nil {
		api := opts.API.handler()
		mux.Handle(BasePath+"/", api)
		mux.Handle("GET "+AsyncAPIPath, latest(api))
		mux.Handle("GET "+console.Path+"/", console.Handler())
		mux.Handle("GET /{$}", http.RedirectHandler(console.Path+"/", http.StatusFound))
	}
	var handler http.Handler = mux
	if opts.TLS.ClientCAFile != "" {
		handler = certified(mux)
	}
	life, end := context.WithCancelCause(context.Background())
	s.end = end
	s.http = &http.Server{
		Handler: hardened(handler), BaseContext: func(net.Listener) context.Context { return life }, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: writeTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: zap.NewStdLog(opts.Log), Protocols: &http.Protocols{}, ConnContext: remember, ConnState: s.conns.progress,
	}
	// HTTP/1 has one request at a time per connection, so the limit of connections
	// also limits requests.
	s.http.Protocols.SetHTTP1(true)
	httpserver.LimitHeaderValues(s.http)
	if opts.MaxConnectionAge > 0 {
		httpserver.LimitAge(s.http, opts.MaxConnectionAge)
	}
	if !opts.TLS.Enabled() {
		return s, nil
	}
	certificates, err := httpserver.LoadCertificates(opts.TLS, opts.Log)
	if err != nil {
		end(nil)
		return nil, fmt.Errorf("admin.tls: %w", err)
	}
	s.http.TLSConfig = tlsConfig(certificates)
	opts.Metrics.served.Store(certificates)
	return s, nil
}

// tlsConfig is the TLS configuration of the admin port. The handshake accepts clients
// without a certificate, because a kubelet has none; certified refuses requests.
func tlsConfig(certificates *httpserver.Certificates) *tls.Config {
	c := certificates.Config()
	follow := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		current, err := follow(hello)
		if err != nil {
			return nil, err
		}
		current = current.Clone()
		current.NextProtos = []string{"http/1.1"}
		current.SessionTicketsDisabled = true // every handshake verifies the client certificate
		if current.ClientAuth == tls.RequireAndVerifyClientCert {
			current.ClientAuth = tls.VerifyClientCertIfGiven
		}
		return current, nil
	}
	return c
}

// certified refuses requests without a client certificate, except health checks.
func certified(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		health := r.URL.Path == "/livez" || r.URL.Path == "/readyz"
		if !health && (r.TLS == nil || len(r.TLS.VerifiedChains) == 0) {
			w.Header().Set("Connection", "close")
			problem(w, http.StatusForbidden, "A client certificate is required, issued by an authority in admin.tls.client_ca_file of the relay's configuration.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hardened sets headers that forbid browsers to use an answer for more than display.
// The console overrides the Content-Security-Policy.
func hardened(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// Serve accepts connections on l until Shutdown, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	l = s.conns.limit(l)
	serve := s.http.Serve
	if s.http.TLSConfig != nil {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the admin port: %w", err)
	}
	return nil
}

// Shutdown ends tails and waits for running requests. If ctx ends first, Shutdown
// closes the connections.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end(errShutdown)
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.Handler.ServeHTTP(w, r) }

// health is the body of /livez and /readyz.
type health struct {
	Status string            `json:"status"` // ok or failing
	Checks map[string]string `json:"checks,omitempty"`
}

// live answers /livez.
func (s *Server) live(w http.ResponseWriter, _ *http.Request) {
	s.write(w, http.StatusOK, health{Status: "ok"})
}

// ready answers /readyz: whether the relay accepts webhooks.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	status, h := http.StatusOK, health{Status: "ok", Checks: map[string]string{}}
	for _, c := range s.opts.Checks {
		h.Checks[c.Name] = "ok"
		if err := c.Run(); err != nil {
			status, h.Status = http.StatusServiceUnavailable, "failing"
			h.Checks[c.Name] = err.Error()
		}
	}
	s.write(w, status, h)
}

func (s *Server) write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.opts.Log.Debug("caller disconnected before the answer", zap.Error(err))
	}
}
