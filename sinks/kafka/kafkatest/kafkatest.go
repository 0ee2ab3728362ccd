// Package kafkatest provides Kafka for tests: a broker in this process, or the
// real broker in POSTWIRE_TEST_KAFKA as host:port.
package kafkatest

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

// Broker is the real Kafka in POSTWIRE_TEST_KAFKA, or a broker in this process.
type Broker struct {
	Addr     string
	Replicas int            // of topics created by CreateTopic; 0 means 1
	Fake     *kfake.Cluster // nil for a real broker
	opts     []kfake.Opt
}

// Start starts a broker for a single test, or uses the real broker, unless opts
// require a broker in this process.
func Start(t testing.TB, opts ...kfake.Opt) *Broker {
	t.Helper()
	if addr := os.Getenv("POSTWIRE_TEST_KAFKA"); addr != "" && len(opts) == 0 {
		return &Broker{Addr: addr}
	}
	return StartFake(t, opts...)
}

// StartFake starts a broker in this process, for tests that control the broker.
// After a stop, the broker starts again with its address and records.
func StartFake(t testing.TB, opts ...kfake.Opt) *Broker {
	t.Helper()
	b := &Broker{opts: append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.DataDir(t.TempDir()), kfake.BrokerConfigs(map[string]string{"message.max.bytes": "1048588"}),
	}, opts...)}
	b.Restart(t)
	t.Cleanup(func() { b.Stop(t) })
	return b
}

// Restart brings a broker in this process back after Stop.
func (b *Broker) Restart(t testing.TB) {
	t.Helper()
	opts := b.opts
	if b.Addr != "" {
		_, port, err := net.SplitHostPort(b.Addr)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		opts = append(slices.Clone(opts), kfake.Ports(n))
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	b.Fake, b.Addr = c, c.ListenAddrs()[0]
}

// Stop takes a broker in this process away.
func (b *Broker) Stop(testing.TB) { b.Fake.Close() }

// Messages reads a topic, partition by partition.
func (b *Broker) Messages(t testing.TB, topic string) (all []kafka.Message) {
	t.Helper()
	b.Each(t, topic, func(m kafka.Message) { all = append(all, m) })
	return all
}

// Each calls f for each record of a topic, partition by partition.
func (b *Broker) Each(t testing.TB, topic string, f func(kafka.Message)) {
	t.Helper()
	conn, err := kafka.Dial("tcp", b.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	partitions, err := conn.ReadPartitions(topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range partitions {
		b.EachOf(t, topic, p.ID, f)
	}
}

// EachOf calls f for each record of a partition.
func (b *Broker) EachOf(t testing.TB, topic string, partition int, f func(kafka.Message)) {
	t.Helper()
	leader, err := kafka.DialLeader(t.Context(), "tcp", b.Addr, topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	last, err := leader.ReadLastOffset()
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for next := int64(0); next < last; {
		batch := leader.ReadBatch(1, 10<<20)
		for {
			m, err := batch.ReadMessage()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatalf("reading %s/%d at %d of %d: %v", topic, partition, next, last, err)
				}
				break
			}
			f(m)
			next = m.Offset + 1
		}
		if err := batch.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// CreateTopic creates a topic whose records have the storage time, and returns
// when the topic exists.
func (b *Broker) CreateTopic(t testing.TB, topic string, partitions int) {
	t.Helper()
	resp, err := b.client(t).CreateTopics(t.Context(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{
			Topic: topic, NumPartitions: partitions, ReplicationFactor: max(1, b.Replicas),
			ConfigEntries: []kafka.ConfigEntry{{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"}},
		}},
	})
	if err == nil {
		err = resp.Errors[topic]
	}
	if err != nil {
		t.Fatalf("creating topic %s: %v", topic, err)
	}
}

// client has separate connections: shared connections may lead to the stopped
// broker of another test with an equal address.
func (b *Broker) client(t testing.TB) *kafka.Client {
	t.Helper()
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(b.Addr), Timeout: 20 * time.Second, Transport: transport}
}

// DeleteTopic deletes a topic and its records.
func (b *Broker) DeleteTopic(t testing.TB, topic string) {
	t.Helper()
	resp, err := b.client(t).DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err == nil {
		err = resp.Errors[topic]
	}
	if err != nil {
		t.Fatalf("deleting topic %s: %v", topic, err)
	}
}
