package test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/internal/natstest"
)

// partial is a receiver that answers 500 to one partition key and hangs on another one.
type partial struct {
	*httptest.Server
	whole atomic.Bool // it works for all keys

	mu   sync.Mutex
	came []arrival
}

func newPartial(t *testing.T) *partial {
	p := &partial{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !p.whole.Load() {
			switch q.Header.Get("ce-partitionkey") {
			case "profile1":
				w.WriteHeader(http.StatusInternalServerError)
				return
			case "profile2":
				_, _ = io.Copy(io.Discard, q.Body) // so that the server notices the end of the request
				<-q.Context().Done()
				return
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.came = append(p.came, arrival{id: q.Header.Get("ce-id")})
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *partial) arrivals() []arrival {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]arrival(nil), p.came...)
}

// TestPartialFailures: a subject of a stream is full, and a receiver fails for one partition
// key and hangs on another one. All other events arrive meanwhile, also over a crash, and the
// failed ones arrive in order when the failure is over.
func TestPartialFailures(t *testing.T) {
	for _, engine := range []string{"local", "jetstream"} {
		t.Run(engine, func(t *testing.T) { partialFailures(t, engine) })
	}
}

// postAll posts events of each profile, in turn, and records what was acknowledged.
func postAll(t *testing.T, r *postwire, acked map[string]bool, profiles, from, to int) {
	t.Helper()
	for number := from; number < to; number++ {
		for profile := range profiles {
			if _, err := r.post(upload(profile, number)); err != nil {
				t.Fatal(err)
			}
			acked[id(profile, number)] = true
		}
	}
}

// freshJournal returns the configuration of a new journal of an engine.
func freshJournal(t *testing.T, engine string) string {
	t.Helper()
	dir := t.TempDir()
	if engine == "jetstream" {
		return fmt.Sprintf("engine: jetstream, jetstream: {url: %q, replicas: 1}, spill: {dir: %q}", natstest.Start(t).URL(), filepath.Join(dir, "spill"))
	}
	return fmt.Sprintf("dir: %q", filepath.Join(dir, "journal"))
}

func partialFailures(t *testing.T, engine string) {
	broker, receiver := natstest.Start(t), newPartial(t)
	js := broker.Connect(t)
	const profiles, each, fits = 10, 60, 25
	stream := jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{"events.>"}, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: each,
	}
	if _, err := js.CreateStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	r := start(t, fmt.Sprintf(`
server: {listen: "${INGRESS}", shutdown_delay: 0s}
admin: {listen: "${ADMIN}"}
journal: {%s, min_free_bytes: 0}
sources:
  - {name: upload-post, type: uploadpost, paths: [/webhooks/upload-post], auth: {signature: {secrets: ["${SECRET}"]}}}
sinks:
  - {name: nats, type: nats, url: %q, subject: "events.{partitionkey}", stream: EVENTS, timeout: 2s, retry: {max: 500ms}}
  - {name: http, type: http, url: %q, timeout: 1s, max_in_flight: 8, retry: {max: 500ms}}
`, freshJournal(t, engine), broker.URL(), receiver.URL))
	// Others fill the subject of profile 0.
	for range each - fits {
		if _, err := js.Publish(t.Context(), "events.profile0", []byte("of another application")); err != nil {
			t.Fatal(err)
		}
	}
	acked := map[string]bool{}
	post := func(from, to int) {
		t.Helper()
		postAll(t, r, acked, profiles, from, to)
	}
	onNATS := func() (all []arrival) {
		broker.Each(t, js, "EVENTS", func(m *nats.Msg, _ time.Time) {
			if id := m.Header.Get("ce-id"); id != "" {
				all = append(all, arrival{id: id})
			}
		})
		return all
	}
	others := func(n int) {
		t.Helper()
		eventually(t, "all but the events of one subject are in the stream", func() bool { return distinct(onNATS()) == (profiles-1)*n+min(n, fits) })
		eventually(t, "the receiver has all but the events of two keys", func() bool { return distinct(receiver.arrivals()) == (profiles-2)*n })
	}
	post(0, each/2)
	others(each / 2)
	for series, want := range map[string]string{
		`postwire_sink_blocked_keys{sink="http"}`: "2", `postwire_sink_blocked_destinations{sink="nats"}`: "1",
		`postwire_sink_breaker_open{sink="http"}`: "0", `postwire_sink_breaker_open{sink="nats"}`: "0",
	} {
		eventually(t, series+" is "+want, func() bool { return r.metric(t, series) == want })
	}
	r.kill(t)
	r.start(t)
	post(each/2, each)
	others(each)

	receiver.whole.Store(true)
	stream.MaxMsgsPerSubject = -1
	stream.DiscardNewPerSubject = false
	if _, err := js.UpdateStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	for _, sink := range []string{"nats", "http"} {
		eventually(t, sink+" has everything", func() bool { return r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`) == "0" })
	}
	for sink, got := range map[string][]arrival{"nats": onNATS(), "http": receiver.arrivals()} {
		sum := check(t, sink, acked, got, false)
		if t.Logf("%s: %d delivered, %d twice", sink, sum.delivered, sum.repeated); sum.repeated > 3*profiles {
			t.Errorf("%s: %d events arrived twice", sink, sum.repeated)
		}
	}
	var after struct {
		Events []struct{ Seq uint64 }
	}
	r.must(t, &after, "sinks", "blocked", "http")
	if len(after.Events) > 0 {
		t.Errorf("blocked afterwards: %+v", after)
	}
}

// TestKafkaPartitionWithoutBroker kills the only broker of one partition of a real cluster
// of three. The events of the other partitions arrive meanwhile, also over a crash of the
// relay, and those of the partition arrive in order when its broker is back.
func TestKafkaPartitionWithoutBroker(t *testing.T) {
	k := startThree(t)
	for _, engine := range []string{"local", "jetstream"} {
		t.Run(engine, func(t *testing.T) { partitionWithoutBroker(t, k, engine) })
	}
}

func partitionWithoutBroker(t *testing.T, k *threeBrokers, engine string) {
	const profiles, each = 24, 40
	topic := "partial-" + engine
	k.createTopic(t, topic)
	r := start(t, fmt.Sprintf(`
server: {listen: "${INGRESS}", shutdown_delay: 0s}
admin: {listen: "${ADMIN}"}
journal: {%s, min_free_bytes: 0}
sources:
  - {name: upload-post, type: uploadpost, paths: [/webhooks/upload-post], auth: {signature: {secrets: ["${SECRET}"]}}}
sinks:
  - {name: kafka, type: kafka, brokers: ["%s"], topic: %s, acks: all, timeout: 5s, retry: {max: 500ms}}
`, freshJournal(t, engine), strings.Join(k.addrs, `", "`), topic))
	partition := func(profile int) int {
		return kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: fmt.Appendf(nil, "profile%d", profile)}, 0, 1, 2)
	}
	acked, counts := map[string]bool{}, [3]int{}
	post := func(from, to int) {
		t.Helper()
		postAll(t, r, acked, profiles, from, to)
		for profile := range profiles {
			counts[partition(profile)] += to - from
		}
	}
	const dead = 1 // the partition, and its broker is node dead+1
	others := func() {
		t.Helper()
		for n := range 3 {
			if n != dead {
				eventually(t, fmt.Sprintf("partition %d has its events", n), func() bool { return distinct(k.arrivals(t, topic, n)) == counts[n] })
			}
		}
	}
	post(0, each/2)
	others()
	k.kill(t, dead+1)
	post(each/2, each)
	others()
	eventually(t, "the partition is a blocked destination", func() bool { return r.metric(t, `postwire_sink_blocked_destinations{sink="kafka"}`) == "1" })
	if open := r.metric(t, `postwire_sink_breaker_open{sink="kafka"}`); open != "0" {
		t.Errorf("breaker_open is %s", open)
	}
	r.kill(t)
	r.start(t)
	post(each, 2*each)
	others()
	k.restart(t)
	eventually(t, "Kafka has everything", func() bool { return r.metric(t, `postwire_sink_lag_events{sink="kafka"}`) == "0" })
	var got []arrival
	for n := range 3 {
		got = append(got, k.arrivals(t, topic, n)...)
	}
	sum := check(t, "kafka", acked, got, false)
	if t.Logf("%d delivered, %d twice", sum.delivered, sum.repeated); sum.repeated > 3*profiles {
		t.Errorf("%d events arrived twice", sum.repeated)
	}
}

// distinct returns the number of different events.
func distinct(all []arrival) int {
	ids := map[string]bool{}
	for _, a := range all {
		ids[a.id] = true
	}
	return len(ids)
}
