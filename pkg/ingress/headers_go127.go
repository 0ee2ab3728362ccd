//go:build go1.27

package ingress

import "net/http"

// limitHeaderValues lets a server stop reading a header that has too many values.
func limitHeaderValues(srv *http.Server) { srv.MaxHeaderValueCount = mostHeaderValues }
