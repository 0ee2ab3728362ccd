package nats

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postwire/postwire/sinks/sinktest"
)

// BenchmarkDeliver shows what the order of keys costs: batches of 512 events
// of so many keys, and of events without one, which wait for nobody.
func BenchmarkDeliver(b *testing.B) {
	for _, keys := range []int{0, 512, 64, 8, 1} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			s := start(b).open(b, "subject: events.{platform}\nstream: EVENTS\ncreate: true")
			events := sinktest.Events(b.N, max(keys, 1))
			for i := range events {
				// The server drops what it has seen: each is one of its own.
				events[i].CloudEvent.SetID(fmt.Sprint(i))
				if key := fmt.Sprint(i % max(keys, 1)); keys > 0 {
					events[i].CloudEvent.SetExtension("partitionkey", key)
				} else {
					events[i].CloudEvent.SetExtension("partitionkey", nil)
				}
			}
			begin := time.Now()
			b.ResetTimer()
			for batch := range slices.Chunk(events, 512) {
				mustDeliver(b, s, batch)
			}
			b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "events/s")
		})
	}
}
