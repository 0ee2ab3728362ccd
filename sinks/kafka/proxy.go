package kafka

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/proxy"

	"github.com/postwire/postwire/config"
)

// Proxy is a proxy for the connections of the sink.
type Proxy struct {
	URL      string        `yaml:"url" doc:"Address of the proxy: socks5:// for SOCKS5, http:// or https:// for HTTP CONNECT. Empty connects directly." example:"socks5://proxy.example.com:1080"`
	Username string        `yaml:"username" doc:"User name at the proxy."`
	Password config.Secret `yaml:"password" doc:"Password at the proxy." example:"${PROXY_PASSWORD}"`
}

const (
	// maxProxyHeader limits the header of a proxy's response, in bytes.
	maxProxyHeader = 16 << 10
	// maxSOCKS is the maximum length of a user name or password of SOCKS5.
	maxSOCKS = 255
)

func (x Proxy) validate() error {
	var p config.Invalids
	const example = "for example socks5://proxy.example.com:1080 or http://proxy.example.com:3128"
	if x.URL == "" {
		if x.Username != "" || x.Password != "" {
			p.Add("url", "is missing beside a username or password", example)
		}
		return p.Err()
	}
	u, err := url.Parse(x.URL)
	switch {
	case err != nil:
		p.Add("url", "is not a URL", example)
	case u.User != nil:
		p.Add("url", "holds a user name or password", "use username and password")
	case u.Scheme != "socks5" && u.Scheme != "http" && u.Scheme != "https":
		p.Add("url", "is of no supported kind of proxy", example)
	case u.Hostname() == "" || u.Port() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		p.Add("url", "is not a kind, a host and a port", example)
	case u.Scheme == "socks5" && (len(x.Username) > maxSOCKS || len(x.Password) > maxSOCKS):
		p.Add("password", "or username is longer than 255 bytes, which SOCKS5 does not allow", "use a shorter one")
	}
	if x.Username == "" && x.Password != "" {
		p.Add("username", "is missing", "name the user")
	}
	return p.Err()
}

// through returns a dial function that leads through the proxy, or forward
// without a proxy. The proxy resolves the names of hosts.
func (x Proxy) through(forward dialFunc) (dialFunc, error) {
	if x.URL == "" {
		return forward, nil
	}
	u, err := url.Parse(x.URL)
	if err != nil {
		return nil, errors.New("proxy: url is not a URL")
	}
	if u.Scheme != "socks5" {
		return func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := x.connect(ctx, u, forward, network, addr)
			if err != nil {
				return nil, fmt.Errorf("connecting to %s through proxy %s: %w", addr, u.Host, err)
			}
			return conn, nil
		}, nil
	}
	var auth *proxy.Auth
	if x.Username != "" {
		auth = &proxy.Auth{User: x.Username, Password: x.Password.Reveal()}
	}
	d, err := proxy.SOCKS5("tcp", u.Host, auth, forwarder{forward})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.(proxy.ContextDialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, fmt.Errorf("connecting through proxy %s: %w", u.Host, err)
		}
		return conn, nil
	}, nil
}

// forwarder is a proxy.Dialer and proxy.ContextDialer.
type forwarder struct{ dial dialFunc }

// Dial implements proxy.Dialer.
func (f forwarder) Dial(network, addr string) (net.Conn, error) {
	return f.dial(context.Background(), network, addr)
}

// DialContext implements proxy.ContextDialer.
func (f forwarder) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return f.dial(ctx, network, addr)
}

// connect makes a tunnel with the method CONNECT of HTTP.
func (x Proxy) connect(ctx context.Context, u *url.URL, forward dialFunc, network, addr string) (_ net.Conn, err error) {
	conn, err := forward(ctx, network, u.Host)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if u.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	defer abort(ctx, conn)()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if x.Username != "" {
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(x.Username+":"+x.Password.Reveal())))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	// The server behind the tunnel does not speak first, so the reader takes no
	// byte of the tunnel.
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxProxyHeader)), req) //nolint:bodyclose // the body is the tunnel
	if err != nil {
		return nil, fmt.Errorf("reading the answer of the proxy: %w", err)
	}
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return nil, errors.New("the proxy asks for other credentials (407): check proxy.username and proxy.password")
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the proxy refuses: %s", brief(resp.Status))
	}
	return conn, conn.SetDeadline(time.Time{})
}
