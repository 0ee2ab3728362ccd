package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/sinks/kafka/kafkatest"
)

// threeBrokers is a real Kafka cluster of three nodes, 1 to 3.
type threeBrokers struct {
	up, down, dir string
	addrs         []string // of node 1, 2 and 3
}

// startThree starts a cluster by the scripts that the environment names, and stops the
// cluster with the test. Without scripts the test is skipped.
func startThree(t *testing.T) *threeBrokers {
	t.Helper()
	k := &threeBrokers{up: os.Getenv("POSTWIRE_TEST_KAFKA_UP"), down: os.Getenv("POSTWIRE_TEST_KAFKA_DOWN"), dir: filepath.Join(t.TempDir(), "kafka")}
	if k.up == "" || k.down == "" {
		t.Skip("needs a real cluster: POSTWIRE_TEST_KAFKA_UP and _DOWN name scripts that start and stop one")
	}
	const port = 19392
	k.script(t, k.up, "--nodes", "3", k.dir, fmt.Sprint(port))
	t.Cleanup(func() { k.script(t, k.down, "--purge", k.dir) })
	for node := range 3 {
		k.addrs = append(k.addrs, fmt.Sprintf("127.0.0.1:%d", port+10*node))
	}
	return k
}

func (k *threeBrokers) script(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// kill ends a node with `kill -9`.
func (k *threeBrokers) kill(t *testing.T, node int) {
	t.Helper()
	k.script(t, k.down, "-9", k.dir, fmt.Sprint(node))
}

// restart starts the nodes that do not run.
func (k *threeBrokers) restart(t *testing.T) {
	t.Helper()
	k.script(t, k.up, k.dir)
}

// createTopic creates a topic with a partition on each node: node n+1 has the only replica
// of partition n.
func (k *threeBrokers) createTopic(t *testing.T, topic string) {
	t.Helper()
	config := kafka.TopicConfig{Topic: topic, NumPartitions: -1, ReplicationFactor: -1}
	for n := range 3 {
		config.ReplicaAssignments = append(config.ReplicaAssignments, kafka.ReplicaAssignment{Partition: n, Replicas: []int{n + 1}})
	}
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&kafka.Client{Addr: kafka.TCP(k.addrs...), Transport: transport}).CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{config}})
	if err == nil {
		err = resp.Errors[topic]
	}
	if err != nil {
		t.Fatalf("creating topic %s: %v", topic, err)
	}
}

// arrivals returns the events of a partition, which has a leader.
func (k *threeBrokers) arrivals(t *testing.T, topic string, partition int) (all []arrival) {
	t.Helper()
	(&kafkatest.Broker{Addr: k.addrs[0]}).EachOf(t, topic, partition, func(m kafka.Message) {
		for _, h := range m.Headers {
			if h.Key == "ce_id" {
				all = append(all, arrival{id: string(h.Value)})
			}
		}
	})
	return all
}
