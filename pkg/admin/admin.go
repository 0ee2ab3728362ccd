// Package admin serves what operators and their machines look at: health,
// metrics, and the API by which they see and repair. It stands beside the flow:
// events do not pass through it.
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

// Check is something that must be well for the relay to be ready. A broker is
// none: while one is down, events are taken and wait.
type Check struct {
	Name string
	Run  func() error
}

// Options of a Server. Gatherer and Log are needed.
type Options struct {
	API      *API // nil is none
	Checks   []Check
	Gatherer prometheus.Gatherer
	Schemas  http.Handler // of what is below /schemas/; nil is none
	Log      *zap.Logger

	TLS              config.ServerTLS
	MaxConnectionAge time.Duration // of a connection; 0 is no limit
	Metrics          *Metrics      // needed where TLS or API is
}

// Limits of the admin port. They keep callers from taking the memory and the file
// descriptors that the journal and the ingress need.
const (
	maxConnections = 256
	maxHeaderBytes = 32 << 10
	writeTimeout   = time.Minute // of an answer; a tail has a deadline for each message
	// sendBuffer is what the kernel keeps of an answer that is not read: without a
	// bound it would be some megabytes for each connection.
	sendBuffer = 128 << 10
)

// errShutdown is why requests end that do not end by themselves.
var errShutdown = errors.New("the relay stops")

// Server serves the admin port.
type Server struct {
	opts  Options
	http  *http.Server
	conns *connections
	end   context.CancelCauseFunc // of the requests that do not end by themselves
}

// New makes a server; Serve runs it. Its error says which file of TLS cannot be read.
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
	// One request at a time of a connection: the limits of the port then hold what all
	// requests together take.
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

// tlsConfig is that of the admin port. Whoever has no client certificate is not
// turned away yet: a kubelet, which asks for the health, has none.
func tlsConfig(certificates *httpserver.Certificates) *tls.Config {
	c := certificates.Config()
	follow := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		now, err := follow(hello)
		if err != nil {
			return nil, err
		}
		now = now.Clone()
		now.NextProtos = []string{"http/1.1"}
		now.SessionTicketsDisabled = true // a client shows its certificate each time
		if now.ClientAuth == tls.RequireAndVerifyClientCert {
			now.ClientAuth = tls.VerifyClientCertIfGiven
		}
		return now, nil
	}
	return c
}

// certified refuses requests without a client certificate, except those for health.
func certified(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		health := r.URL.Path == "/livez" || r.URL.Path == "/readyz"
		if !health && (r.TLS == nil || len(r.TLS.VerifiedChains) == 0) {
			w.Header().Set("Connection", "close")
			problem(w, http.StatusForbidden, "A client certificate is needed: of an authority in admin.tls.client_ca_file of the relay's configuration.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hardened tells browsers to do nothing with an answer but show it; the console
// allows itself what it needs.
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

// Serve answers on l until Shutdown, and then returns nil.
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

// Shutdown ends tails and waits for the requests under way. When ctx ends
// first, it cuts them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end(errShutdown)
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.Handler.ServeHTTP(w, r) }

// health is the body of the health answers.
type health struct {
	Status string            `json:"status"` // ok or failing
	Checks map[string]string `json:"checks,omitempty"`
}

// live says that the process answers at all.
func (s *Server) live(w http.ResponseWriter, _ *http.Request) {
	s.write(w, http.StatusOK, health{Status: "ok"})
}

// ready says whether webhooks would be taken.
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
		s.opts.Log.Debug("the caller did not wait for the answer", zap.Error(err))
	}
}
