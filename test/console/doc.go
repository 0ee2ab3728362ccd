// Package console tests the console in a browser on a live relay. The package is a separate
// module to keep the browser driver out of the dependencies of the product. Run the tests
// with -count=1, because go test does not see changes of the console, outside of the
// module.
package console
