//go:build race

package bench

// raced is whether the race detector is in, which allocates itself.
const raced = true
