//go:build !go1.27

package ingress

import "net/http"

// limitHeaderValues does nothing: until Go 1.27 a server can limit only the size of
// a header. The values are counted when the header has arrived, and until then the
// pool counts more for each byte.
func limitHeaderValues(*http.Server) {}
