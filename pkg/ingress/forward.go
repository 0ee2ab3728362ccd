package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/httpserver"
)

// Time limits for the relay that a Forwarder passes webhooks to.
const (
	forwardDialTimeout   = 2 * time.Second
	forwardAnswerTimeout = 15 * time.Second
)

// Forwarder serves the webhook port of a relay without a journal: it passes every request on
// to another relay, and answers 503 with Retry-After while that relay does not answer. The
// other relay verifies the requests. Its methods may be called concurrently.
type Forwarder struct {
	http  *http.Server
	conns int
}

// NewForwarder makes a forwarder to the webhook port at a URL; with an empty URL, every
// request is answered 503. Over https, the other relay must present the certificate of
// c.TLS.
func NewForwarder(c config.Server, to string, log *zap.Logger) (*Forwarder, error) {
	unavailable := func(w http.ResponseWriter) {
		if err := refuse(outcomeUnavailable).write(w, newRequestID()); err != nil {
			log.Debug("the sender did not wait for the answer", zap.Error(err))
		}
	}
	f := &Forwarder{conns: c.MaxConnections}
	var certificates *httpserver.Certificates
	var err error
	if c.TLS.CertFile != "" {
		if certificates, err = httpserver.LoadCertificates(c.TLS, log); err != nil {
			return nil, fmt.Errorf("server.tls: %w", err)
		}
	}
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { unavailable(w) })
	if to != "" {
		target, err := url.Parse(to)
		if err != nil {
			return nil, fmt.Errorf("the relay to pass webhooks to: %w", err)
		}
		slots := make(chan struct{}, max(1, c.MaxInFlight))
		proxy := passer(target, certificates, log, unavailable)
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				proxy.ServeHTTP(w, r)
			default:
				unavailable(w)
			}
		})
	}
	f.http = &http.Server{
		Handler: handler, ReadHeaderTimeout: c.ReadHeaderTimeout, ReadTimeout: c.ReadTimeout, WriteTimeout: c.WriteTimeout, IdleTimeout: c.IdleTimeout,
		MaxHeaderBytes: int(c.MaxHeaderBytes),
	}
	httpserver.LimitHeaderValues(f.http)
	if f.http.ErrorLog, err = zap.NewStdLogAt(log, zap.DebugLevel); err != nil {
		return nil, fmt.Errorf("making a log for the server: %w", err)
	}
	if certificates != nil {
		f.http.TLSConfig = certificates.Config()
	}
	return f, nil
}

// passer passes requests on unchanged, except for the headers that name the sender.
func passer(target *url.URL, certificates *httpserver.Certificates, log *zap.Logger, unavailable func(http.ResponseWriter)) *httputil.ReverseProxy {
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: forwardDialTimeout}).DialContext,
		ResponseHeaderTimeout: forwardAnswerTimeout, TLSHandshakeTimeout: forwardDialTimeout, MaxIdleConnsPerHost: 64, IdleConnTimeout: 10 * time.Second,
		DisableCompression: true, // the answer goes on as it came
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			// All relays have one certificate, for the name that senders use.
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection compares the certificate
			VerifyConnection:   func(state tls.ConnectionState) error { return sameCertificate(state, certificates) },
		},
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.URL.RawQuery, r.Out.Host = r.In.URL.RawQuery, r.In.Host // parts of some signatures
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values := r.In.Header.Values(name); len(values) > 0 {
					r.Out.Header[name] = values
				}
			}
			if host, _, err := net.SplitHostPort(r.In.RemoteAddr); err == nil {
				r.Out.Header.Add("X-Forwarded-For", host)
			}
		},
		Transport: transport,
		ModifyResponse: func(answer *http.Response) error {
			// The other relay sees the address of this relay, which may not send.
			if answer.StatusCode == http.StatusForbidden {
				return errors.New("the other relay refuses the address of this relay")
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			log.Warn("webhook not passed on, answered 503", zap.Error(err))
			unavailable(w)
		},
		ErrorLog: zap.NewStdLog(log),
	}
}

// sameCertificate returns an error unless the peer presents the certificate of this relay.
func sameCertificate(state tls.ConnectionState, own *httpserver.Certificates) error {
	if own == nil {
		return errors.New("the other relay uses TLS, and this relay has no server.tls to compare certificates with")
	}
	c, err := own.Config().GetConfigForClient(&tls.ClientHelloInfo{})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
	if err != nil {
		return err
	}
	if len(state.PeerCertificates) == 0 || !state.PeerCertificates[0].Equal(leaf) {
		return errors.New("the other relay has another certificate than this relay")
	}
	return nil
}

// Serve accepts connections from l until Shutdown, and then returns nil.
func (f *Forwarder) Serve(l net.Listener) error {
	if f.conns > 0 {
		l = netutil.LimitListener(l, f.conns)
	}
	var err error
	if f.http.TLSConfig != nil {
		err = f.http.ServeTLS(l, "", "")
	} else {
		err = f.http.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("passing webhooks on: %w", err)
}

// Shutdown stops accepting connections and waits for the requests under way. If ctx ends
// first, Shutdown closes their connections.
func (f *Forwarder) Shutdown(ctx context.Context) error {
	if err := f.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("waiting for requests under way: %w", err), f.http.Close())
	}
	return nil
}
