//go:build !go1.27

package httpserver

import "net/http"

// LimitHeaderValues does nothing: before Go 1.27 a server can limit only the size of a
// header, in bytes. The handler counts the values when the whole header has arrived.
func LimitHeaderValues(*http.Server) {}
