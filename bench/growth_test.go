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
	for b.Loop() {
		for _, keys := range pick([]int{1000, 5_000}, []int{1000, 100_000, 1_000_000, 5_000_000}) {
			dir := filepath.Join(b.TempDir(), "journal")
			const each = 50 // few events, so that it is the keys that grow
			fill(b, dir, keys/each, each-2)
			measure(b, "identity keys", keys, runOn(b, wholeway, none("none"), dir, 1))
		}
		for _, backlog := range pick([]int{0, 5_000}, []int{0, 100_000, 1_000_000}) {
			dir := filepath.Join(b.TempDir(), "journal")
			fill(b, dir, backlog, 0)
			measure(b, "events undelivered", backlog, runOn(b, wholeway, away, dir, 1))
		}
		for _, sinks := range pick([]int{1, 4}, []int{1, 4, 16}) {
			var text strings.Builder
			for n := range sinks {
				text.WriteString(none(fmt.Sprintf("none-%d", n)))
			}
			measure(b, "sinks", sinks, run(b, wholeway, text.String()))
		}
		for _, sources := range pick([]int{1, 10}, []int{1, 10, 100}) {
			measure(b, "sources", sources, runOn(b, wholeway, none("none"), filepath.Join(b.TempDir(), "journal"), sources))
		}
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
}
