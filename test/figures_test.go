package test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/figures"
)

// The tables there are, and their heads.
const (
	tableLoss    = "loss"
	tableWeather = "weather"
	tableBacklog = "backlog"
	tableCluster = "cluster"

	tableEmbedded = "embedded"
	tableNemesis  = "nemesis"
)

var results = figures.NewBook(map[string]string{
	tableLoss:     "| fault | posted | acknowledged | on NATS | on Kafka | lost | sent twice, NATS / Kafka | longest time without an acknowledgement | longest delivery, NATS / Kafka |\n|---|---|---|---|---|---|---|---|---|",
	tableWeather:  "| fault | ingress p99, before → during | other sink p50 | other sink p99 |\n|---|---|---|---|",
	tableCluster:  "| fault | posted, each twice | acknowledged | lost | sent twice, NATS / Kafka | longest wait of a post | p99 | longest delivery, NATS / Kafka |\n|---|---|---|---|---|---|---|---|",
	tableEmbedded: "| fault | posted, each twice | acknowledged | lost | sent twice, NATS / Kafka | longest wait of a post | p99 | longest delivery, NATS / Kafka |\n|---|---|---|---|---|---|---|---|",
	tableNemesis:  "| fault | posted, each twice | acknowledged | lost | sent twice, NATS / Kafka | longest wait of a post | p99 | longest delivery, NATS / Kafka |\n|---|---|---|---|---|---|---|---|",
	tableBacklog:  "| backlog | RSS | accepted/s | |\n|---|---|---|---|",
})

func kafkaInUse() string {
	if os.Getenv("POSTWIRE_TEST_KAFKA") != "" {
		return "Apache Kafka and an embedded NATS server"
	}
	return "a Kafka in the test and an embedded NATS server"
}

// settle ends a load, waits until both brokers have everything, holds them
// against what was acknowledged, and notes the figures of a fault. What a fault
// has taken away from the brokers is given as earlier.
func (w *world) settle(t *testing.T, r endpoint, l *load, fault string, earlier ...arrival) (nats, kafka []arrival) {
	t.Helper()
	l.stop()
	w.settled(t, r)
	nats, kafka = append(slices.Clone(earlier), w.onNATS(t)...), append(slices.Clone(earlier), w.onKafka(t)...)
	atNATS, atKafka := check(t, "JetStream", l.acked, nats, true), check(t, "Kafka", l.acked, kafka, w.once)
	if r.now != nil { // two clocks
		atNATS.way, atKafka.way = 0, 0
	}
	l.note(t, fault, atNATS, atKafka)
	return nats, kafka
}

// note notes the figures of a fault.
func (l *load) note(t *testing.T, fault string, nats, kafka tally) {
	t.Helper()
	results.Add(t, tableLoss, fmt.Sprintf("| %s | %d | %d | %d | %d | %d | %d / %d | %s | %s / %s |", fault, l.posted, len(l.acked),
		nats.delivered, kafka.delivered, nats.lost+kafka.lost, nats.repeated, kafka.repeated, ms(l.stall), ms(nats.way), ms(kafka.way)))
}

func ms(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}
