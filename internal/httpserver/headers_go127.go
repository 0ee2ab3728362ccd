//go:build go1.27

package httpserver

import "net/http"

// LimitHeaderValues makes srv stop reading a header that has more than MaxHeaderValues
// values.
func LimitHeaderValues(srv *http.Server) { srv.MaxHeaderValueCount = MaxHeaderValues }
