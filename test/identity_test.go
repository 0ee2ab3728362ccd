package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
)

const identityConfig = `
server: {listen: "${INGRESS}"}
admin: {listen: "${ADMIN}"}
journal: {dir: %[1]q, min_free_bytes: 0}
sources:
  - {name: digest, type: webhook, paths: [/digest], event: {type: "'t'"}, auth: none}
  - {name: number, type: webhook, paths: [/number], event: {type: "'t'", id: string(body.n)}, auth: none}
  - {name: shop, type: webhook, paths: [/shop], event: {type: "'shop.' + body.status", id: body.order}, dedupe: ["body.order + '/' + body.status + '/' + string(body.n)"], auth: none}
  - {name: split, type: webhook, paths: [/split], split: body, event: {type: "'t'"}, auth: none}
  - {name: upload-post, type: uploadpost, paths: [/upload-post], auth: none}
sinks:
  - {name: nats, type: nats, url: %[2]q, subject: events.x, stream: EVENTS, start: earliest}
  - {name: again, type: nats, url: %[2]q, subject: again.x, stream: EVENTS, start: earliest}
  - {name: kafka, type: kafka, brokers: [%[3]q], topic: %[4]q, start: earliest}
`

// TestDifferentPayloadsAreDelivered: of random pairs of payloads that differ, by as
// little as a digit, both are delivered by JetStream and by Kafka exactly as often
// as the journal has stored them, whatever their events are known by.
func TestDifferentPayloadsAreDelivered(t *testing.T) {
	broker, kafka := natstest.Start(t), kafkatest.Start(t)
	js := broker.Connect(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>", "again.>"}, Duplicates: time.Hour}); err != nil {
		t.Fatal(err)
	}
	topic := fmt.Sprintf("identity-%d", time.Now().UnixNano())
	kafka.CreateTopic(t, topic, 3)
	r := start(t, fmt.Sprintf(identityConfig, t.TempDir(), broker.URL(), kafka.Addr, topic))

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	stored := map[string]int{} // by their data
	for n := range pick(60, 1000) {
		path, a, b := pair(random, n)
		for _, body := range []string{a, b, a, b} {
			sent := body
			if path == "/split" {
				sent = "[" + body + "]"
			}
			resp, err := http.Post("http://"+r.addr+path, "application/json", strings.NewReader(sent))
			if err != nil {
				t.Fatal(err)
			}
			var answer struct{ Status string }
			err = json.NewDecoder(resp.Body).Decode(&answer)
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			want := "accepted"
			if stored[body] > 0 {
				want = "duplicate"
			}
			if err != nil || answer.Status != want {
				t.Fatalf("%s %s is answered %d %q (%v), want %s; beside it %s", path, body, resp.StatusCode, answer.Status, err, want, map[string]string{a: b, b: a}[body])
			}
			if answer.Status == "accepted" {
				stored[body]++
			}
		}
	}
	total := len(stored)
	count := func(all map[string]int) (n int) {
		for _, times := range all {
			n += times
		}
		return n
	}
	var inNATS, again, inKafka map[string]int // again: two sinks share the stream
	eventually(t, "everything is in the stream", func() bool {
		inNATS, again = map[string]int{}, map[string]int{}
		broker.Each(t, js, "EVENTS", func(m *nats.Msg, _ time.Time) {
			if strings.HasPrefix(m.Subject, "again.") {
				again[string(m.Data)]++
				return
			}
			inNATS[string(m.Data)]++
		})
		done := func(sink string) bool { return r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`) == "0" }
		return count(inNATS) >= total && count(again) >= total || done("nats") && done("again")
	})
	eventually(t, "everything is in the topic", func() bool {
		inKafka = map[string]int{}
		kafka.Each(t, topic, func(m kafkago.Message) { inKafka[string(m.Value)]++ })
		return count(inKafka) >= total
	})
	for name, delivered := range map[string]map[string]int{"JetStream": inNATS, "JetStream, by another sink of the stream": again, "Kafka": inKafka} {
		if !maps.Equal(stored, delivered) {
			t.Errorf("%s (-stored +delivered):\n%s", name, cmp.Diff(stored, delivered))
		}
	}
	for series, want := range map[string]string{
		`postwire_sink_duplicates_total{outcome="lost",sink="nats"}`: "0", `postwire_sink_duplicates_total{outcome="repeat",sink="nats"}`: "0",
	} {
		if got := r.metric(t, series); got != want {
			t.Errorf("%s is %s, want %s", series, got, want)
		}
	}
	// Two stored events of the shop share source and id, which is told.
	if shared := r.metric(t, `postwire_events_shared_id_total{source="shop"}`); shared == "0" || shared == "" {
		t.Errorf("%s stored events are said to share their source and id", shared)
	}
}

// pair returns two payloads that differ, and where they are sent. The number tells
// them from those of other pairs.
func pair(r *rand.Rand, n int) (path, a, b string) {
	digits := func(length int) []byte {
		text := fmt.Appendf(nil, "%d", 1+r.IntN(9))
		for len(text) < length {
			text = fmt.Appendf(text, "%d", r.IntN(10))
		}
		return text
	}
	number := digits(1 + r.IntN(40))
	if r.IntN(2) == 0 {
		number = append(append(number, '.'), digits(1+r.IntN(20))...)
	}
	if r.IntN(4) == 0 {
		number = fmt.Appendf(number, "e%d", r.IntN(400))
	}
	other := bytes.Clone(number)
	switch last := len(other) - 1; {
	case bytes.ContainsAny(number, "e."):
		other = append(bytes.TrimRight(other, "0123456789"), fmt.Appendf(nil, "%d%d5", 1+r.IntN(8), r.IntN(10))...)
	case other[last] == '9':
		other[last] = '8'
	default:
		other[last]++
	}
	if bytes.Equal(number, other) {
		other = append(other, '7')
	}
	prefix := fmt.Sprintf("%d", 1000+n) // no other pair has these numbers
	write := func(format string) (a, b string) {
		return fmt.Sprintf(format, n, prefix, number), fmt.Sprintf(format, n, prefix, other)
	}
	paths := []string{"/digest", "/number", "/shop", "/split", "/upload-post"}
	switch path = paths[n%len(paths)]; path {
	case "/digest", "/split":
		a, b = write(`{"pair":%d,"post_id":%s%s}`)
	case "/number":
		a, b = write(`{"pair":%d,"n":%s%s}`)
	case "/shop":
		a, b = write(`{"order":"A-%d","status":"paid","n":%s%s}`)
	case "/upload-post":
		a, b = write(`{"event":"upload_completed","platform":"tiktok","profile_username":"p%d","result":{"success":true,"publish_id":%s%s}}`)
	}
	return path, a, b
}
