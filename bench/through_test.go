package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
)

// Where the events go.
const (
	stream     = "BENCH"
	partitions = 6
)

// brokers are what the relays deliver to.
type brokers struct {
	nats  *natstest.Broker
	js    jetstream.JetStream
	kafka *kafkatest.Broker
	topic string
}

// topics numbers the topics: a real Kafka keeps them longer than a benchmark.
var topics atomic.Int64

func startBrokers(tb testing.TB) *brokers {
	tb.Helper()
	k := &brokers{nats: natstest.Start(tb), kafka: kafkatest.Start(tb), topic: "bench"}
	k.js = k.nats.Connect(tb)
	if _, err := k.js.CreateStream(tb.Context(), jetstream.StreamConfig{Name: stream, Subjects: []string{"bench.>"}}); err != nil {
		tb.Fatal(err)
	}
	if k.kafka.Fake == nil && *target == "" {
		k.topic = fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), topics.Add(1))
	}
	k.kafka.CreateTopic(tb, k.topic, partitions)
	return k
}

// sinks are the relay's, named by what they deliver to.
func (k *brokers) sinks(to ...string) string {
	text := ""
	for _, name := range to {
		switch name {
		case "nats":
			text += fmt.Sprintf("  - {name: nats, type: nats, url: %q, subject: bench.events, stream: %s, start: earliest}\n", k.nats.URL(), stream)
		case "kafka":
			text += fmt.Sprintf("  - {name: kafka, type: kafka, brokers: [%q], topic: %s, start: earliest}\n", k.kafka.Addr, k.topic)
		}
	}
	return text
}

// env tells another relay where to deliver.
func (k *brokers) env() []string {
	return []string{"BENCH_NATS=" + k.nats.URL(), "BENCH_KAFKA=" + k.kafka.Addr}
}

// arrivals are the webhooks that came out, and when.
type arrivals struct {
	tb testing.TB

	mu   sync.Mutex
	due  map[int64]time.Time // of those that were sent and have not come yet
	took []time.Duration
}

func (a *arrivals) sent(number int64, due time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due[number] = due
}

// arrived notes a message by the publish_id in it, which every relay passes on.
func (a *arrivals) arrived(data []byte) {
	_, rest, ok := bytes.Cut(data, []byte(`"publish_id":"`))
	text, _, ok2 := bytes.Cut(rest, []byte{'"'})
	number, err := strconv.ParseInt(string(text), 10, 64)
	if !ok || !ok2 || err != nil {
		a.tb.Errorf("a message without publish_id came: %.80q", data)
		return
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if due, ok := a.due[number]; ok { // the first time, and of this load
		a.took = append(a.took, now.Sub(due))
		delete(a.due, number)
	}
}

// missing is how many were sent and have not come yet.
func (a *arrivals) missing() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.due)
}

// follow reads what comes on a broker from now on, until the benchmark ends.
func (k *brokers) follow(tb testing.TB, to string) *arrivals {
	tb.Helper()
	a := &arrivals{tb: tb, due: map[int64]time.Time{}}
	if to == "nats" {
		consumer, err := k.js.OrderedConsumer(tb.Context(), stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
		if err != nil {
			tb.Fatal(err)
		}
		consuming, err := consumer.Consume(func(m jetstream.Msg) { a.arrived(m.Data()) })
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(consuming.Stop)
		return a
	}
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	tb.Cleanup(func() { cancel(); readers.Wait() })
	for p := range partitions {
		r := kafka.NewReader(kafka.ReaderConfig{
			Brokers: []string{k.kafka.Addr}, Topic: k.topic, Partition: p, MinBytes: 1, MaxBytes: 10 << 20, MaxWait: 100 * time.Millisecond,
		})
		// A reader of LastOffset looks that up when it is ready, and misses what came before.
		end, err := k.end(tb.Context(), p)
		if err == nil {
			err = r.SetOffset(end)
		}
		if err != nil {
			tb.Fatal(err)
		}
		readers.Go(func() {
			defer r.Close()
			for {
				m, err := r.ReadMessage(ctx)
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						tb.Errorf("reading what came on Kafka: %v", err)
					}
					return
				}
				a.arrived(m.Value)
			}
		})
	}
	return a
}

// end is the place behind the newest record of a partition.
func (k *brokers) end(ctx context.Context, partition int) (int64, error) {
	conn, err := kafka.DialLeader(ctx, "tcp", k.kafka.Addr, k.topic, partition)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return conn.ReadLastOffset()
}

// BenchmarkThrough is the time from a webhook's being due to its arrival at a
// consumer of each broker, at several rates; and the highest rate at which the
// lag does not grow. What was sent and does not arrive fails it.
func BenchmarkThrough(b *testing.B) {
	for _, to := range [][]string{{"nats"}, {"kafka"}, {"nats", "kafka"}} {
		b.Run(strings.Join(to, "+"), func(b *testing.B) {
			k := startBrokers(b)
			p := run(b, wholeway, k.sinks(to...))
			measureThrough(b, k, p, to)
		})
	}
	if *target == "" {
		return
	}
	for _, to := range []string{"nats", "kafka"} {
		b.Run(otherName+"/"+to, func(b *testing.B) {
			k := startBrokers(b)
			measureThrough(b, k, other(b, k.env()...), []string{to})
		})
	}
}

func measureThrough(b *testing.B, k *brokers, p *process, to []string) {
	b.Helper()
	next := numbers()
	var came []*arrivals
	for _, name := range to {
		came = append(came, k.follow(b, name))
	}
	send := func(perSecond float64, lasting time.Duration) (ways []load) {
		paced(b, p.url, perSecond, lasting, next, func(number int64, due time.Time) {
			for _, a := range came {
				a.sent(number, due)
			}
		})
		for i, a := range came {
			until(b, "everything arrives at "+to[i], func() bool { return a.missing() == 0 })
			a.mu.Lock()
			ways = append(ways, summarize(b, [][]time.Duration{a.took}, lasting))
			a.took = nil
			a.mu.Unlock()
		}
		return ways
	}
	send(100, time.Second) // warm
	for b.Loop() {
		for _, perSecond := range pick([]float64{1000}, []float64{100, 1000, 5000}) {
			for i, way := range send(perSecond, pick(time.Second, 10*time.Second)) {
				name := to[i]
				if len(to) > 1 {
					name += ", beside " + to[1-i]
				}
				if p.role == otherName {
					name += ", " + otherName
				}
				results.Add(b, tableThrough, fmt.Sprintf("| %s | %.0f | %s | %s | %s |", name, perSecond, ms(way.p50), ms(way.p99), ms(way.p999)))
			}
		}
		if p.role == wholeway {
			highest(b, p, to, next)
		}
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
}

// highest looks for the highest rate at which the lag of no sink grows.
func highest(b *testing.B, p *process, to []string, next *atomic.Int64) {
	b.Helper()
	lag := func() (most float64) {
		for _, name := range to {
			most = max(most, p.lag(b, name))
		}
		return most
	}
	// holds reports whether the lag at the end is no more than a tenth of a
	// second of what comes in, so that it would be the same after an hour.
	holds := func(perSecond float64, lasting time.Duration) bool {
		start := time.Now()
		paced(b, p.url, perSecond, lasting, next, func(int64, time.Time) {})
		ok := lag() <= perSecond/10 && time.Since(start) < lasting+lasting/20
		until(b, "the sinks are at the head", func() bool { return lag() == 0 })
		return ok
	}
	low, high := 0.0, 32000.0
	for range pick(3, 6) {
		if rate := (low + high) / 2; holds(rate, pick(time.Second, 5*time.Second)) {
			low = rate
		} else {
			high = rate
		}
	}
	held := pick(time.Second, time.Minute)
	for low > 0 && !holds(low, held) {
		low *= .9
	}
	results.Add(b, tableHighest, fmt.Sprintf("| %s | %.0f | %v |", strings.Join(to, " and "), low, held))
}
