// Package charts tests the chart postwire and deploy/compose.yaml: the rendered manifests
// equal the reviewed manifests, a cluster accepts the manifests, and the product runs with
// the rendered configuration. The package is a separate module to keep the dependencies of
// the product few. Run the tests with -count=1, because go test does not see changes
// outside of the module.
package charts
