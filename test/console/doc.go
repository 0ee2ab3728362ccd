// Package console tries the console in a browser, on a live relay. It is a module
// of its own, so that the driver of the browser stays out of the product's
// dependencies; run it with -count=1, because the console is outside of the
// module, where go test sees no changes.
package console
