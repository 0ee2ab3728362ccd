package bench

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// BenchmarkGrowth is whether accepting gets slower, or memory larger, as the
// journal's keys, its backlog, the sinks and the sources grow.
func BenchmarkGrowth(b *testing.B) {
	var next atomic.Int64
	measure := func(b *testing.B, what string, to int, p *process) {
		b.Helper()
		const connections = 64
		closed(b, p.url, connections, 2000, &next) // warm
		l := closed(b, p.url, connections, pick(5_000, 100_000), &next)
		results.Add(b, tableGrowth, fmt.Sprintf("| %s | %d | %.0f | %s | %s | %s |", what, to, l.perSecond, ms(l.p50), ms(l.p99), mib(p.rss(b))))
		p.stop()
	}
	for _, grows := range []struct {
		what string
		to   []int
		run  func(b *testing.B, to int) *process
	}{
		{"identity keys", pick([]int{1000, 5_000}, []int{1000, 100_000, 1_000_000, 5_000_000}), func(b *testing.B, keys int) *process {
			b.Helper()
			dir := filepath.Join(b.TempDir(), "journal")
			const each = 50 // few events, so that it is the keys that grow
			fill(b, dir, keys/each, each-2)
			return runOn(b, wholeway, none("none"), dir, 1)
		}},
		{"events undelivered", pick([]int{0, 5_000}, []int{0, 100_000, 1_000_000}), func(b *testing.B, backlog int) *process {
			b.Helper()
			dir := filepath.Join(b.TempDir(), "journal")
			fill(b, dir, backlog, 0)
			return runOn(b, wholeway, away, dir, 1)
		}},
		{"sinks", pick([]int{1, 4}, []int{1, 4, 16}), func(b *testing.B, sinks int) *process {
			b.Helper()
			var text strings.Builder
			for n := range sinks {
				text.WriteString(none(fmt.Sprintf("none-%d", n)))
			}
			return run(b, wholeway, text.String())
		}},
		{"sources", pick([]int{1, 10}, []int{1, 10, 100}), func(b *testing.B, sources int) *process {
			b.Helper()
			return runOn(b, wholeway, none("none"), filepath.Join(b.TempDir(), "journal"), sources)
		}},
	} {
		for _, to := range grows.to {
			b.Run(fmt.Sprintf("%s=%d", grows.what, to), func(b *testing.B) {
				for b.Loop() {
					measure(b, grows.what, to, grows.run(b, to))
				}
				b.ReportMetric(0, "ns/op") // of no meaning here
			})
		}
	}
}
