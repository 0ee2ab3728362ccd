package test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
)

// world is both brokers, each behind a proxy.
type world struct {
	nats            *natstest.Broker
	kafka           *kafkatest.Broker
	toNATS, toKafka *proxy
	topic           string
	config          string

	// once is set where the relay's process lives through the fault: Kafka has each event once.
	once bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, natstest.Start(t), kafkatest.Start(t))
}

func newWorldOn(t *testing.T, nats *natstest.Broker, kafka *kafkatest.Broker) *world {
	t.Helper()
	w := &world{nats: nats, kafka: kafka, topic: fmt.Sprintf("e2e-%x", rand.Uint64())}
	w.toNATS = newProxy(t, strings.TrimPrefix(w.nats.URL(), "nats://"), false)
	w.toKafka = newProxy(t, w.kafka.Addr, true)
	w.kafka.CreateTopic(t, w.topic, 3)
	w.config = fmt.Sprintf(`
server: {listen: "${INGRESS}", shutdown_delay: 0s}
admin: {listen: "${ADMIN}"}
log: {level: info}
journal: {dir: %q, min_free_bytes: 0}
sources:
  - name: upload-post
    type: uploadpost
    paths: [/webhooks/upload-post]
    auth: {signature: {secrets: ["${SECRET}"]}}
sinks:
  - {name: nats, type: nats, url: "nats://%s", subject: "events.{platform}.{outcome}", stream: EVENTS, create: true, timeout: 2s, retry: {max: 500ms}}
  - {name: kafka, type: kafka, brokers: [%q], topic: %s, timeout: 2s, retry: {max: 500ms}}
`, filepath.Join(t.TempDir(), "journal"), w.toNATS.addr, w.toKafka.addr, w.topic)
	return w
}

// change returns the configuration with one text in place of another, which
// must be in it.
func (w *world) change(t *testing.T, from, to string) string {
	t.Helper()
	if !strings.Contains(w.config, from) {
		t.Fatalf("the configuration has no %q", from)
	}
	return strings.Replace(w.config, from, to, 1)
}

// arrival is an event on a broker.
type arrival struct {
	id       string
	accepted time.Time // recordedtime
	stored   time.Time // by the broker's word
}

// onNATS returns what is in the stream, in order.
func (w *world) onNATS(t *testing.T) (all []arrival) {
	t.Helper()
	w.nats.Each(t, w.nats.Connect(t), "EVENTS", func(m *nats.Msg, stored time.Time) {
		all = append(all, arrival{m.Header.Get("ce-id"), recorded(t, m.Header.Get("ce-recordedtime")), stored})
	})
	return all
}

// onKafka returns what is in the topic, each profile's in order.
func (w *world) onKafka(t *testing.T) (all []arrival) {
	t.Helper()
	header := func(m kafka.Message, name string) string {
		i := slices.IndexFunc(m.Headers, func(h kafka.Header) bool { return h.Key == name })
		return string(m.Headers[i].Value)
	}
	w.kafka.Each(t, w.topic, func(m kafka.Message) {
		all = append(all, arrival{header(m, "ce_id"), recorded(t, header(m, "ce_recordedtime")), m.Time})
	})
	return all
}

func recorded(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// settled waits until both sinks have passed everything.
func (w *world) settled(t *testing.T, r endpoint) {
	t.Helper()
	for _, sink := range []string{"nats", "kafka"} {
		eventually(t, sink+" has everything", func() bool {
			return r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`) == "0"
		})
	}
}
