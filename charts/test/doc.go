// Package charts proves the chart postwire: what it renders is what was
// reviewed, what a cluster takes, and what the product runs on; and so
// deploy/compose.yaml. It is a module of its own, so that the product's
// dependencies stay few; run it with -count=1, because what it proves is outside
// of the module, where go test sees no changes.
package charts
