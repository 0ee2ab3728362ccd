// Package kafkatest gives tests a Kafka: one in this process, or the real one
// that POSTWIRE_TEST_KAFKA names as host:port.
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

// Broker is a real Kafka where POSTWIRE_TEST_KAFKA names one, and otherwise
// one in this process.
type Broker struct {
	Addr     string
	Replicas int            // of a topic that CreateTopic makes; 0 is 1
	Fake     *kfake.Cluster // nil where it is real
	opts     []kfake.Opt
}

// Start starts a broker for one test, or takes the real one, unless opts ask for
// what only one in this process can do.
func Start(t testing.TB, opts ...kfake.Opt) *Broker {
	t.Helper()
	if addr := os.Getenv("POSTWIRE_TEST_KAFKA"); addr != "" && len(opts) == 0 {
		return &Broker{Addr: addr}
	}
	return StartFake(t, opts...)
}

// StartFake is for what only a broker in this process can be made to do. It
// comes back at its address, with its records, after a stop.
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

// Messages reads what is in a topic, partition by partition.
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
		leader, err := kafka.DialLeader(t.Context(), "tcp", b.Addr, topic, p.ID)
		if err != nil {
			t.Fatal(err)
		}
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
						t.Fatalf("reading %s/%d at %d of %d: %v", topic, p.ID, next, last, err)
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
		_ = leader.Close()
	}
}

// CreateTopic makes a topic whose records tell when the broker stored them, and
// returns when it is there.
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

// client has connections of its own: those that are shared by address may be to
// the broker of another test, which is gone.
func (b *Broker) client(t testing.TB) *kafka.Client {
	t.Helper()
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(b.Addr), Timeout: 20 * time.Second, Transport: transport}
}

// DeleteTopic takes a topic away with all that is in it.
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
