package http

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	nethttp "net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/postwire/postwire/config"
)

// dialTimeout limits the time to connect, and the time of the TLS handshake.
const dialTimeout = 10 * time.Second

// errPrivate is the error of refuse_private_addresses.
var errPrivate = errors.New("only private addresses, which refuse_private_addresses forbids")

// connectError marks an error before the connection to the receiver was
// established, TLS included.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// endpoint returns the address of url and the TLS settings, nil for http.
func (s *Sink) endpoint(u *url.URL, settings config.TLS) (addr string, t *tls.Config, err error) {
	if u.Scheme == "http" {
		return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")), nil, nil
	}
	if t, err = settings.Config(); err != nil {
		return "", nil, err
	}
	if t == nil {
		t = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.NextProtos = []string{"h2", "http/1.1"}
	t.ServerName = cmp.Or(t.ServerName, u.Hostname())
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")), t, nil
}

// current returns the transport for the next request. After max_connection_age it is a new
// one, which has no connections yet; the requests in flight keep the old transport, whose
// connections end with them, or after IdleConnTimeout.
func (s *Sink) current() *nethttp.Transport {
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := s.config.MaxConnectionAge; age > 0 && time.Since(s.made) >= age {
		s.transport.CloseIdleConnections() // also those that become idle later
		s.transport, s.made = s.newTransport(s.tls), time.Now()
	}
	return s.transport
}

// errProxy is the answer of a proxy to CONNECT. Only the status is shown.
func errProxy(status int) error {
	err := fmt.Errorf("the proxy answers %d %s", status, nethttp.StatusText(status))
	if status == nethttp.StatusProxyAuthRequired {
		err = fmt.Errorf("%w; write a user name and a password into proxy", err)
	}
	return &connectError{err}
}

// newTransport makes an HTTP transport. A transport follows no redirects, and ignores the
// proxies of the environment.
func (s *Sink) newTransport(t *tls.Config) *nethttp.Transport {
	var proxy func(*nethttp.Request) (*url.URL, error)
	if s.proxy != nil {
		proxy = nethttp.ProxyURL(s.proxy)
	}
	return &nethttp.Transport{
		Proxy: proxy,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *nethttp.Request, answer *nethttp.Response) error {
			if answer.StatusCode != nethttp.StatusOK {
				return errProxy(answer.StatusCode)
			}
			return nil
		},
		DialContext:            s.dial,
		TLSClientConfig:        t.Clone(),
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true, // a custom dialer disables HTTP/2
		HTTP2:                  &nethttp.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
		MaxIdleConns:           s.config.MaxInFlight,
		MaxIdleConnsPerHost:    s.config.MaxInFlight,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// check connects and disconnects, so that an open sink has a reachable
// receiver. No request is made, because the response to a request without an
// event is undefined.
func (s *Sink) check(ctx context.Context, addr string, t *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if s.proxy != nil { // the first request asks the proxy for the receiver
		conn, err := s.dial(ctx, "tcp", net.JoinHostPort(s.proxy.Hostname(), cmp.Or(s.proxy.Port(), "80")))
		if err != nil {
			return fmt.Errorf("connecting to the proxy: %w", err)
		}
		return conn.Close()
	}
	conn, err := s.dial(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", s.route.Template.String(), err)
	}
	defer func() { _ = conn.Close() }() // nothing was sent
	if t == nil {
		return nil
	}
	if err := tls.Client(conn, t).HandshakeContext(ctx); err != nil {
		return fmt.Errorf("agreeing with %s on TLS: %w", s.route.Template.String(), err)
	}
	return nil
}

// dial makes a connection that ends with the sink, because the transport does
// not close new or lost connections.
func (s *Sink) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	conn, err := s.dialer(ctx, network, addr)
	if err != nil {
		return nil, &connectError{err}
	}
	return &sinkConn{conn, context.AfterFunc(s.life, func() { _ = conn.Close() })}, nil //nolint:contextcheck // it outlives ctx
}

// sinkConn is a connection that is closed with the sink.
type sinkConn struct {
	net.Conn
	stop func() bool
}

func (m *sinkConn) Close() error {
	m.stop()
	return m.Conn.Close()
}

// guard connects to public addresses only. The guard resolves a name, checks
// the addresses and dials a checked address by number, so that a later DNS
// change has no effect.
type guard struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (g guard) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	found, err := g.lookup(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var allowed []netip.Addr
	for _, a := range found {
		if public(a) {
			allowed = append(allowed, a.Unmap())
		}
	}
	failures := []error{fmt.Errorf("%s has %w", host, errPrivate)}
	for i, a := range allowed {
		conn, err := g.dialOne(ctx, network, net.JoinHostPort(a.String(), port), len(allowed)-i)
		if err == nil {
			return conn, nil
		}
		if i == 0 {
			failures = nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// dialOne dials an address within a share of the remaining time.
func (g guard) dialOne(ctx context.Context, network, addr string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	return g.dial(ctx, network, addr)
}

// public reports whether an address is on the public internet. An IPv6 address
// that contains an IPv4 address is judged as the IPv4 address.
func public(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	if !a.IsValid() {
		return false
	}
	for _, p := range special() {
		if p.Contains(a) {
			return false
		}
	}
	if a.Is4() {
		return true
	}
	b := a.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a): // NAT64
		return public(netip.AddrFrom4([4]byte(b[12:])))
	case netip.MustParsePrefix("2002::/16").Contains(a): // 6to4
		return public(netip.AddrFrom4([4]byte(b[2:6])))
	}
	return true
}

// special returns the networks outside the public internet, from the registries
// of special-purpose addresses (RFC 6890).
func special() []netip.Prefix {
	var all []netip.Prefix
	for _, text := range []string{
		"0.0.0.0/8",       // this host on this network
		"10.0.0.0/8",      // private
		"100.64.0.0/10",   // carrier-grade NAT
		"127.0.0.0/8",     // loopback
		"169.254.0.0/16",  // link-local, and the metadata services of clouds
		"172.16.0.0/12",   // private
		"192.0.0.0/24",    // protocol assignments
		"192.0.2.0/24",    // documentation
		"192.88.99.0/24",  // 6to4 relays, given up
		"192.168.0.0/16",  // private
		"198.18.0.0/15",   // benchmarks
		"198.51.100.0/24", // documentation
		"203.0.113.0/24",  // documentation
		"224.0.0.0/4",     // multicast
		"240.0.0.0/4",     // reserved, and broadcast
		"::/96",           // unspecified, loopback, and the deprecated IPv4-compatible form
		"::ffff:0:0:0/96", // a form of IPv4 for translators
		"64:ff9b:1::/48",  // NAT64 for local use
		"100::/64",        // discarded
		"2001::/23",       // protocol assignments, including Teredo
		"2001:db8::/32",   // documentation
		"3fff::/20",       // documentation
		"5f00::/16",       // segment routing
		"fc00::/7",        // unique local
		"fe80::/10",       // link-local
		"fec0::/10",       // site-local, given up
		"ff00::/8",        // multicast
	} {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}
