package bench

import (
	"fmt"
	"slices"
	"testing"
)

// BenchmarkAccept is durable accepts a second through HTTP, signature aside:
// parse, dedupe, synced append, answer. Beside it, by turns: a handler that only
// reads the body, the same way without a journal, and with one that does not
// sync, which is what durability costs. Each is a process of its own, and so is
// the load.
func BenchmarkAccept(b *testing.B) {
	for _, connections := range pick([]int{16}, []int{1, 16, 64, 256}) {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			under := []*process{run(b, bare, "")}
			for _, role := range []string{unstored, unsynced, wholeway} {
				under = append(under, run(b, role, none("none")))
			}
			if *target != "" {
				under = append(under, other(b, startBrokers(b).env()...))
			}
			next := numbers()
			for _, p := range under {
				closed(b, p.url, connections, max(200, 2000*connections/64), next) // warm
			}
			loads, ratios := make([][]load, len(under)), make([][]float64, len(under))
			for b.Loop() {
				for range pick(3, 9) {
					for i, p := range under {
						loads[i] = append(loads[i], closed(b, p.url, connections, pick(500, 300)*max(connections, 8), next))
						ratios[i] = append(ratios[i], last(loads[i]).perSecond/last(loads[0]).perSecond)
					}
				}
			}
			for i, p := range under {
				l := middle(loads[i])
				ratio := median(ratios[i])
				results.Add(b, tableAccept, fmt.Sprintf("| %d | %s | %.0f | %.2f | %s | %s | %s |",
					connections, p.role, l.perSecond, ratio, ms(l.p50), ms(l.p99), ms(l.p999)))
				if p.role == wholeway {
					b.ReportMetric(ratio, "ratio")
					b.ReportMetric(l.perSecond, "accepts/s")
				}
			}
			b.ReportMetric(0, "ns/op") // of no meaning here
		})
	}
}

func last[T any](s []T) T { return s[len(s)-1] }

func median(s []float64) float64 { return slices.Sorted(slices.Values(s))[len(s)/2] }
