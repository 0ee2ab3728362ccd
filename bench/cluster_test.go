package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// write calls do n times from as many writers at once, and measures.
func write(b *testing.B, writers, n int, do func(context.Context, int64) error, next *atomic.Int64) load {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	times := make([][]time.Duration, writers)
	var all sync.WaitGroup
	start := time.Now()
	for w := range writers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				began := time.Now()
				if err := do(b.Context(), next.Add(1)); err != nil {
					b.Error(err)
					return
				}
				times[w] = append(times[w], time.Since(began))
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	return summarize(b, times, took)
}

// keyed is an event of about 700 bytes with some identity keys.
func keyed(number int64, keys int) event.Event {
	id := fmt.Sprint(number)
	var all []event.Key
	for k := range keys {
		all = append(all, event.NewKey("upload-post", "upload_completed", "instagram", fmt.Sprint(k), id))
	}
	e := journaltest.Event(id, all...)
	e.CloudEvent.DataEncoded = webhook(number)
	return e
}

// cluster starts three servers and connects to them.
func cluster(b *testing.B) (urls string, js natsjs.JetStream) {
	b.Helper()
	urls = natstest.URLs(natstest.StartCluster(b, nil))
	conn, err := nats.Connect(urls, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(conn.Close)
	if js, err = natsjs.New(conn); err != nil {
		b.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, err := js.CreateStream(b.Context(), natsjs.StreamConfig{Name: "raw", Subjects: []string{"raw"}, Replicas: 3})
		if err == nil {
			return urls, js
		}
		if time.Now().After(end) {
			b.Fatal(err)
		}
	}
}

// middle is the run whose rate is the median.
func middle(loads []load) load {
	slices.SortFunc(loads, func(x, y load) int { return int(x.perSecond - y.perSecond) })
	return loads[len(loads)/2]
}

func report(b *testing.B, what string, l load) {
	b.Helper()
	b.ReportMetric(l.perSecond, what+"/s")
	b.ReportMetric(float64(l.p50.Microseconds())/1000, what+"-p50-ms")
	b.ReportMetric(float64(l.p99.Microseconds())/1000, what+"-p99-ms")
}

// BenchmarkClusterAppend is appends a second to the jetstream engine on three
// servers, with one replica and with three, and with one identity key an event
// and with two; each waits for the quorum. Beside it, by turns, what a client
// does that publishes the same bytes to a stream with three replicas and waits.
func BenchmarkClusterAppend(b *testing.B) {
	urls, js := cluster(b)
	var next atomic.Int64
	raw := func(ctx context.Context, n int64) error {
		_, err := js.Publish(ctx, "raw", webhook(n))
		return err
	}
	for _, replicas := range []int{3, 1} {
		for _, keys := range []int{1, 2} {
			for _, writers := range []int{64, 256} {
				b.Run(fmt.Sprintf("replicas=%d/keys=%d/writers=%d", replicas, keys, writers), func(b *testing.B) {
					j, err := jetstream.Open(b.Context(), jetstream.Options{
						URL: config.URL(urls), Stream: fmt.Sprintf("bench-%d", next.Add(1)), Replicas: replicas, Name: "bench", Window: time.Hour, Retention: time.Hour,
					})
					if err != nil {
						b.Fatal(err)
					}
					defer func() {
						if err := j.Close(); err != nil {
							b.Error(err)
						}
					}()
					do := func(ctx context.Context, n int64) error {
						_, err := j.Append(ctx, keyed(n, keys))
						return err
					}
					write(b, writers, 2000, raw, &next) // warm
					write(b, writers, 2000, do, &next)
					const turns = 3
					var ratios []float64
					var own, plain []load
					b.ResetTimer()
					for range turns {
						n := max(b.N/turns, 40*writers)
						plain = append(plain, write(b, writers, n, raw, &next))
						own = append(own, write(b, writers, n, do, &next))
						ratios = append(ratios, own[len(own)-1].perSecond/plain[len(plain)-1].perSecond)
					}
					b.StopTimer()
					slices.Sort(ratios)
					b.ReportMetric(ratios[len(ratios)/2], "ratio")
					report(b, "appends", middle(own))
					report(b, "raw", middle(plain))
					b.ReportMetric(0, "ns/op") // of no meaning here
				})
			}
		}
	}
}

// BenchmarkClusterAccept is durable accepts a second through HTTP at one relay and
// at three that share a cluster of three servers.
func BenchmarkClusterAccept(b *testing.B) {
	urls, _ := cluster(b)
	dir := b.TempDir()
	var next atomic.Int64
	for _, relays := range []int{1, 3} {
		b.Run(fmt.Sprintf("relays=%d", relays), func(b *testing.B) {
			var posts []string
			for i := range relays {
				addr, admin := natstest.FreeAddr(b), natstest.FreeAddr(b)
				config := filepath.Join(dir, fmt.Sprintf("%d-%d.yaml", relays, i))
				text := fmt.Sprintf(`
server: {name: relay-%d, listen: %q}
admin: {listen: %q}
log: {level: error}
journal: {engine: jetstream, jetstream: {url: %q, stream: accept-%d}, spill: {dir: %q}}
sources: [{name: upload-post, type: uploadpost, paths: [/webhooks/upload-post], auth: none}]
sinks: [{name: none, type: stdout, filter: "platform == 'nowhere'"}]
`, i, addr, admin, urls, relays, filepath.Join(dir, fmt.Sprintf("spill-%d-%d", relays, i)))
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					b.Fatal(err)
				}
				posts = append(posts, spawn(b, wholeway, addr, admin, config).url)
			}
			const connections = 64
			each := func(n int) load {
				loads := make([]load, relays)
				var all sync.WaitGroup
				for i, url := range posts {
					all.Go(func() { loads[i] = closed(b, url, connections/relays, n/relays, &next) })
				}
				all.Wait()
				var sum load
				for _, l := range loads {
					sum.perSecond += l.perSecond
					sum.p50, sum.p99 = max(sum.p50, l.p50), max(sum.p99, l.p99)
				}
				return sum
			}
			each(2000) // warm
			var loads []load
			b.ResetTimer()
			for range 3 {
				loads = append(loads, each(max(b.N/3, 3000)))
			}
			b.StopTimer()
			report(b, "accepts", middle(loads))
			b.ReportMetric(0, "ns/op") // of no meaning here
		})
	}
}
