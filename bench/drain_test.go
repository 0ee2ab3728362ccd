package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
)

// fill makes a journal of so many events as webhooks bring them, each with as
// many identity keys more.
func fill(tb testing.TB, dir string, events, more int) {
	tb.Helper()
	j, err := local.Open(local.Options{Dir: dir, Window: 24 * time.Hour, Retention: 24 * time.Hour})
	if err != nil {
		tb.Fatal(err)
	}
	src, err := uploadpost.New(uploadpost.Config{Timezone: "UTC", Auth: auth.Auth{None: true}}, source.Env{Name: "upload-post"})
	if err != nil {
		tb.Fatal(err)
	}
	var next atomic.Int64
	var writers sync.WaitGroup
	for range 64 {
		writers.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(events) {
					return
				}
				// They are another load's than those that are sent later.
				made, err := src.Normalize(&source.Request{Body: webhook(-n), Received: time.Now().UTC()})
				if err != nil {
					tb.Error(err)
					return
				}
				for k := range more {
					made[0].Keys = append(made[0].Keys, event.NewKey("upload-post", fmt.Sprint(k), fmt.Sprint(n)))
				}
				if _, err := j.Append(context.Background(), made...); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	if err := j.Close(); err != nil {
		tb.Fatal(err)
	}
}

// sample is how many messages the plain producer has in memory.
const sample = 20_000

// BenchmarkDrain is how fast a backlog goes to each broker, beside a plain
// producer of the same client with the same settings, which sends the same
// messages again and has them in memory.
func BenchmarkDrain(b *testing.B) {
	events := pick(40_000, 1_000_000)
	for _, to := range []string{"nats", "kafka"} {
		b.Run(to, func(b *testing.B) {
			var drains, plains, ratios []float64
			for b.Loop() {
				for range pick(1, 3) { // a broker that has just begun is slow
					drained, plain := drain(b, to, events)
					drains, plains, ratios = append(drains, drained), append(plains, plain), append(ratios, drained/plain)
				}
			}
			results.Add(b, tableDrain, fmt.Sprintf("| %s | %d | %.0f | %.0f | %.2f |", to, events, median(drains), median(plains), median(ratios)))
			b.ReportMetric(median(ratios), "ratio")
			b.ReportMetric(median(drains), "events/s")
			b.ReportMetric(0, "ns/op") // of no meaning here
		})
	}
}

// drain returns how many events a second go to a broker out of a backlog, and how
// many the plain producer sends.
func drain(b *testing.B, to string, events int) (drained, plain float64) {
	b.Helper()
	k := startBrokers(b)
	dir := filepath.Join(b.TempDir(), "journal")
	fill(b, dir, events, 0)
	program(b) // is built before, not meanwhile
	began := time.Now()
	p := runOn(b, wholeway, k.sinks(to), dir, 1)
	until(b, "the backlog is with "+to, func() bool { time.Sleep(20 * time.Millisecond); return p.lag(b, to) == 0 })
	drained = float64(events) / time.Since(began).Seconds()
	p.stop()
	if to == "kafka" {
		return drained, k.plainKafka(b, events)
	}
	return drained, k.plainNATS(b, events)
}

// plainNATS publishes messages of the stream again, asynchronously, with as many
// unacknowledged as the sink has by default, and returns how many a second.
func (k *brokers) plainNATS(b *testing.B, n int) float64 {
	b.Helper()
	conn, err := nats.Connect(k.nats.URL())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(256))
	if err != nil {
		b.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(b.Context(), stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	var messages []*nats.Msg
	for len(messages) < min(sample, n) {
		batch, err := consumer.Fetch(1000)
		if err != nil {
			b.Fatal(err)
		}
		for m := range batch.Messages() {
			messages = append(messages, &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})
		}
	}
	began := time.Now()
	futures := make([]jetstream.PubAckFuture, 0, n)
	for i := range n {
		m := *messages[i%len(messages)]
		m.Header = nats.Header{}
		maps.Copy(m.Header, messages[i%len(messages)].Header)
		m.Header[jetstream.MsgIDHeader] = []string{fmt.Sprint("again ", i)}
		future, err := js.PublishMsgAsync(&m, jetstream.WithExpectStream(stream))
		if err != nil {
			b.Fatal(err)
		}
		futures = append(futures, future)
	}
	<-js.PublishAsyncComplete()
	took := time.Since(began)
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			b.Fatal(err)
		}
	}
	return float64(n) / took.Seconds()
}

// plainKafka writes records of the topic again through the client's Writer, in
// batches as large as the sink's, and returns how many a second.
func (k *brokers) plainKafka(b *testing.B, n int) float64 {
	b.Helper()
	var messages []kafka.Message
	for p := range partitions {
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{k.kafka.Addr}, Topic: k.topic, Partition: p, MaxWait: 100 * time.Millisecond})
		for range min(sample, n) / partitions / 2 {
			ctx, cancel := context.WithTimeout(b.Context(), 2*time.Second)
			m, err := r.ReadMessage(ctx)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			messages = append(messages, kafka.Message{Key: m.Key, Value: m.Value, Headers: m.Headers})
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
	const batch = 512
	w := &kafka.Writer{
		Addr: kafka.TCP(k.kafka.Addr), Topic: k.topic, Balancer: &kafka.Murmur2Balancer{Consistent: true},
		RequiredAcks: kafka.RequireAll, BatchSize: batch, BatchTimeout: time.Millisecond,
	}
	defer w.Close()
	began := time.Now()
	for sent := 0; sent < n; sent += batch {
		records := make([]kafka.Message, 0, batch)
		for i := range min(batch, n-sent) {
			records = append(records, messages[(sent+i)%len(messages)])
		}
		if err := w.WriteMessages(b.Context(), records...); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(began).Seconds()
}
