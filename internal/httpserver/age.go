// Package httpserver has the common parts of the relay's HTTP servers: TLS certificates
// that follow their files, and the maximum age of a connection.
package httpserver

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

// MaxHeaderValues is the maximum number of header values of a request. Each value takes
// about a hundred bytes of memory. Senders and proxies write a few dozen.
const MaxHeaderValues = 256

// spread is the random part of the maximum age, so that clients which connected together do
// not reconnect together.
const spread = 10 // a tenth

// Accepted returns the connection that the listener has accepted, without TLS.
func Accepted(conn net.Conn) net.Conn {
	if secured, ok := conn.(*tls.Conn); ok {
		return secured.NetConn()
	}
	return conn
}

type expiryKey struct{}

// LimitAge limits the age of connections of srv to age, minus a random tenth. The first
// answer after that age says "Connection: close"; over HTTP/2 it sends GOAWAY, and open
// requests complete. The client reconnects, and the current certificates and client CA
// apply. Call LimitAge once, after Handler and ConnContext are set and before srv serves.
func LimitAge(srv *http.Server, age time.Duration) {
	inner, handler := srv.ConnContext, srv.Handler
	srv.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if inner != nil {
			ctx = inner(ctx, conn)
		}
		less := time.Duration(rand.Int64N(int64(age)/spread + 1)) //nolint:gosec // no secret
		return context.WithValue(ctx, expiryKey{}, time.Now().Add(age-less))
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if expiry, ok := Expiry(r.Context()); ok && !time.Now().Before(expiry) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
}

// Expiry returns the time at which the connection of a request reaches its maximum age,
// from the context of the request, or false. A stream of events ends at that time.
func Expiry(ctx context.Context) (time.Time, bool) {
	expiry, ok := ctx.Value(expiryKey{}).(time.Time)
	return expiry, ok
}
