// Package httpserver holds what the relay's HTTP servers have in common: TLS
// certificates that follow their files, and the greatest age of a connection.
package httpserver

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

// MaxHeaderValues is the largest number of values in the header of a request. Each value
// takes about a hundred bytes of memory, however short it is. Senders and proxies write
// a few dozen.
const MaxHeaderValues = 256

// spread is the part of the greatest age by which the ages of connections differ, so
// that clients which connected at one moment do not connect again at one moment.
const spread = 10 // a tenth

// Accepted returns the connection that the listener has accepted, without TLS.
func Accepted(conn net.Conn) net.Conn {
	if secured, ok := conn.(*tls.Conn); ok {
		return secured.NetConn()
	}
	return conn
}

type expiryKey struct{}

// LimitAge lets connections of srv grow no older than age, with up to a tenth
// less: the first answer after that says "Connection: close", over HTTP/2 it sends
// GOAWAY, and requests under way end as they would. A client then connects again, and
// is held to the certificates and the client CA of that moment. LimitAge is called
// once, before srv serves, when its Handler and ConnContext are set.
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

// Expiry returns when the connection of a request reaches its greatest age, from the
// request's context, and false where there is none. An answer that has no end of its
// own, such as a stream of events, ends then.
func Expiry(ctx context.Context) (time.Time, bool) {
	expiry, ok := ctx.Value(expiryKey{}).(time.Time)
	return expiry, ok
}
