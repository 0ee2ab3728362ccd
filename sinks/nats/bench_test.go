package nats

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postwire/postwire/sinks/sinktest"
)

// BenchmarkDeliver shows what the order of keys costs, and what concurrent
// deliveries gain: batches of 512 events of so many keys, and of events without
// one, which wait for nobody.
func BenchmarkDeliver(b *testing.B) {
	for _, inFlight := range []int{1, 2, 4} {
		for _, keys := range []int{0, 512, 64, 8, 1} {
			b.Run(fmt.Sprintf("inflight=%d/keys=%d", inFlight, keys), func(b *testing.B) {
				s := start(b).open(b, "subject: events.{platform}\nstream: EVENTS\ncreate: true")
				events := sinktest.Events(b.N, max(keys, 1))
				for i := range events {
					// The server drops what it has seen: each is one of its own.
					events[i].CloudEvent.SetID(fmt.Sprint(i))
					if key := fmt.Sprint(i%inFlight, "/", i/inFlight%max(keys, 1)); keys > 0 {
						events[i].CloudEvent.SetExtension("partitionkey", key)
					} else {
						events[i].CloudEvent.SetExtension("partitionkey", nil)
					}
				}
				begin := time.Now()
				b.ResetTimer()
				var calls sync.WaitGroup
				for n := range inFlight { // each has keys of its own
					lane := events[:0:0]
					for i := n; i < len(events); i += inFlight {
						lane = append(lane, events[i])
					}
					calls.Go(func() {
						for batch := range slices.Chunk(lane, 512) {
							mustDeliver(b, s, batch)
						}
					})
				}
				calls.Wait()
				b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "events/s")
			})
		}
	}
}
