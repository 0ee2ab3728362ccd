package test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
)

// TestKillUnderLoad kills the process, without warning, again and again while
// webhooks come in. Every event that was answered with 2xx arrives at both
// brokers, in the order of its profile; on JetStream exactly once.
func TestKillUnderLoad(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	l := startLoad(t, r.endpoint, 6, 0)
	rounds := pick(5, 50)
	for range rounds {
		l.more(t, 200+rand.IntN(400))
		r.kill(t)
		r.start(t)
	}
	l.more(t, 200)
	w.settle(t, r.endpoint, l, fmt.Sprintf("`kill -9`, %d times", rounds))
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// A storm is what happens on the way to a broker for a while.
type storm struct {
	name string
	blow func(t *testing.T, ways []*proxy, span time.Duration)
}

func steady(now weather) func(*testing.T, []*proxy, time.Duration) {
	return func(t *testing.T, ways []*proxy, span time.Duration) {
		for _, way := range ways {
			way.set(t, now)
		}
		time.Sleep(span) // how long a fault lasts is part of it
	}
}

func flapping(t *testing.T, ways []*proxy, span time.Duration) {
	for end := time.Now().Add(span); time.Now().Before(end); {
		for _, shut := range []bool{true, false} {
			for _, way := range ways {
				way.set(t, weather{shut: shut})
			}
			time.Sleep(time.Second / 2)
		}
	}
}

var storms = []storm{
	{"is down", steady(weather{shut: true})},
	{"hangs", steady(weather{hang: true})},
	{"is slow (200 ms each way, 64 KiB/s)", steady(weather{latency: 200 * time.Millisecond, rate: 64 << 10})},
	{"flaps every second", flapping},
	{"drops each connection after 30 kB", steady(weather{cut: 30_000})},
}

// TestWeather makes one broker, the other, and both of them fail in each way.
// Nothing is lost, order holds, and neither the other sink nor the ingress
// notices. How much they do is held against a limit in the long form only:
// another process on the machine may take longer than any fault.
func TestWeather(t *testing.T) {
	var all []change
	for _, storm := range storms {
		for _, at := range []string{"NATS", "Kafka", "both"} {
			t.Run(at+" "+storm.name, func(t *testing.T) { all = append(all, survive(t, storm, at)...) })
		}
	}
	if !*long {
		return
	}
	sum, n := map[string]time.Duration{}, map[string]time.Duration{}
	for _, c := range all {
		sum[c.what] += c.before
		n[c.what]++
	}
	for _, c := range all {
		if limit := 2 * max(c.before, sum[c.what]/n[c.what]); c.during > limit {
			t.Errorf("%s: %s went from %v to %v, at most %v is allowed", c.fault, c.what, c.before, c.during, limit)
		}
	}
}

// change is what a fault did to a latency.
type change struct {
	fault, what    string
	before, during time.Duration
}

func survive(t *testing.T, storm storm, at string) (changes []change) {
	w := newWorld(t)
	w.once = true
	r := start(t, w.config)
	ways := map[string][]*proxy{"NATS": {w.toNATS}, "Kafka": {w.toKafka}, "both": {w.toNATS, w.toKafka}}[at]
	l := startLoad(t, r.endpoint, 8, 40*time.Millisecond) // 200 a second
	l.more(t, 100)                                        // connections are made, files are there
	began := time.Now()
	time.Sleep(pick(time.Second, 10*time.Second))
	broke := time.Now()
	storm.blow(t, ways, pick(1500*time.Millisecond, 20*time.Second))
	over := time.Now()
	for _, way := range ways {
		way.set(t, weather{})
	}
	l.more(t, 50)
	fault := at + " " + storm.name
	if at == "both" {
		fault = "each broker " + storm.name
	}
	nats, kafka := w.settle(t, r.endpoint, l, fault)

	row := "| " + fault + " |"
	note := func(what string, p float64, times func(from, to time.Time) []time.Duration) {
		c := change{fault, what, quantile(times(began, broke), p), quantile(times(broke, over), p)}
		changes = append(changes, c)
		row += fmt.Sprintf(" %s → %s |", ms(c.before), ms(c.during))
	}
	note("the ingress's p99", 0.99, l.between)
	if other := map[string][]arrival{"NATS": kafka, "Kafka": nats}[at]; other != nil {
		waits := func(from, to time.Time) []time.Duration { return delays(other, from, to) }
		name := map[string]string{"NATS": "Kafka", "Kafka": "NATS"}[at]
		note("the p50 of "+name, 0.5, waits)
		note("the p99 of "+name, 0.99, waits)
	} else {
		row += " | |"
	}
	results.Add(t, tableWeather, row)
	return changes
}

// TestBothBrokersDown accepts events from the start while no broker is there.
func TestBothBrokersDown(t *testing.T) {
	w := newWorld(t)
	w.once = true
	w.nats.Stop(t)
	w.toKafka.set(t, weather{shut: true})
	r := start(t, w.config)
	l := startLoad(t, r.endpoint, 10, 0)
	l.more(t, 10000)
	l.stop()
	for _, sink := range []string{"nats", "kafka"} {
		if lag := r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`); lag != fmt.Sprint(l.acks()) {
			t.Errorf("the lag of %s is %s, want %d", sink, lag, l.acks())
		}
	}
	w.nats.Restart(t)
	w.toKafka.set(t, weather{})
	w.settle(t, r.endpoint, l, "NATS and Kafka unavailable from the start")
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	// One line when a sink begins to fail, one when it works again.
	for _, line := range []string{"sink delivery failing", "sink delivery recovered"} {
		if n := strings.Count(r.log.String(), line); n != 2 {
			t.Errorf("the log says %d times %q, want once for each sink", n, line)
		}
	}
}

// TestStopUnderLoad: a polite end loses nothing, and says so with code 0.
func TestStopUnderLoad(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	l := startLoad(t, r.endpoint, 6, 0)
	for range pick(1, 10) {
		l.more(t, 500)
		if err := r.stop(t); err != nil {
			t.Errorf("stopping: %v", err)
		}
		r.start(t)
	}
	w.once = true // nothing was on its way when it ended
	w.settle(t, r.endpoint, l, "`SIGTERM` under load")
}

// TestTwins posts one event 500 times at once.
func TestTwins(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	var mu sync.Mutex
	answers := map[string]int{}
	var posts sync.WaitGroup
	for range 500 {
		posts.Go(func() {
			status, err := r.post(upload(0, 0))
			if err != nil {
				status = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			answers[status]++
		})
	}
	posts.Wait()
	if answers["accepted"] != 1 || answers["duplicate"] != 499 {
		t.Errorf("answers: %v", answers)
	}
	w.settled(t, r.endpoint)
	if got := w.onNATS(t); len(got) != 1 || got[0].id != id(0, 0) {
		t.Errorf("on JetStream: %v", got)
	}
	if got := w.onKafka(t); len(got) != 1 || got[0].id != id(0, 0) {
		t.Errorf("on Kafka: %v", got)
	}
}

// TestOneInAThousandIsTooLarge: an event that a broker refuses for its size is
// set aside there, and holds nothing up.
func TestOneInAThousandIsTooLarge(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.change(t, "topic: "+w.topic, "max_message_bytes: 8KiB, topic: "+w.topic))
	const nth = 1000
	huge := func(number int) bool { return number%nth == nth-1 }
	l := startLoad(t, r.endpoint, 2, 0, func(l *load) {
		l.body = func(profile, number int) []byte {
			if huge(number) {
				return captioned(profile, number, strings.Repeat("x", 16<<10))
			}
			return upload(profile, number)
		}
	})
	l.more(t, pick(5000, 50000))
	l.stop()
	w.settled(t, r.endpoint)
	var aside []admin.DLQEntry
	r.must(t, &aside, "dlq", "list", "--limit", "0")
	dead := map[string]bool{}
	for _, a := range aside {
		if a.Sink != "kafka" || a.Reason != "too_large" || dead[a.EventID] {
			t.Errorf("set aside: %+v", a)
		}
		dead[a.EventID] = true
	}
	reached := map[string]bool{}
	for id := range l.acked {
		if !dead[id] {
			reached[id] = true
		}
	}
	if len(dead) < 4 {
		t.Errorf("%d events were set aside", len(dead))
	}
	for id := range dead {
		var profile, number int
		if _, err := fmt.Sscanf(id, "upload_completed/instagram/%d-%d/success", &profile, &number); err != nil || !huge(number) {
			t.Errorf("%s was set aside: %v", id, err)
		}
	}
	atNATS := check(t, "JetStream", l.acked, w.onNATS(t), true)
	atKafka := check(t, "Kafka", reached, w.onKafka(t), true)
	l.note(t, fmt.Sprintf("one event in %d too large for Kafka; %d dead letters", nth, len(dead)), atNATS, atKafka)
}

// TestDestinationsVanish takes the stream and the topic away at run time, and
// gives them back.
func TestDestinationsVanish(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.change(t, "stream: EVENTS, create: true", "stream: EVENTS"))
	js := w.nats.Connect(t)
	createStream(t, js)
	for number := range 100 {
		if _, err := r.post(upload(9, number)); err != nil {
			t.Fatal(err)
		}
	}
	w.settled(t, r.endpoint)
	before := w.onNATS(t)
	check(t, "Kafka", map[string]bool{id(9, 0): true, id(9, 99): true}, w.onKafka(t), true)
	if err := js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	w.kafka.DeleteTopic(t, w.topic)
	l := startLoad(t, r.endpoint, 6, 5*time.Millisecond)
	l.more(t, pick(200, 5000))
	for _, sink := range []string{"nats", "kafka"} {
		eventually(t, sink+" is said to fail", func() bool {
			return r.metric(t, `postwire_sink_up{sink="`+sink+`"}`) == "0"
		})
	}
	createStream(t, js)
	w.kafka.CreateTopic(t, w.topic, 3)
	l.more(t, 100)
	w.settle(t, r.endpoint, l, "stream and topic deleted, and created again", before...)
}

func createStream(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}}); err != nil {
		t.Fatal(err)
	}
}

// TestCredentialsExpire: NATS no longer takes the relay's password, and then
// does again.
func TestCredentialsExpire(t *testing.T) {
	login := func(password string) func(*server.Options) {
		return func(o *server.Options) { o.Username, o.Password = "relay", password }
	}
	w := newWorldOn(t, natstest.Start(t), kafkatest.Start(t))
	w.nats.Stop(t)
	w.nats.Change(login("old"))
	w.nats.Restart(t)
	r := start(t, w.change(t, "stream: EVENTS", "user: relay, password: old, stream: EVENTS"))
	l := startLoad(t, r.endpoint, 6, 5*time.Millisecond)
	l.more(t, 200)
	w.nats.Stop(t)
	w.nats.Change(login("new"))
	w.nats.Restart(t)
	l.more(t, pick(200, 5000))
	eventually(t, "nats is said to fail", func() bool { return r.metric(t, `postwire_sink_breaker_open{sink="nats"}`) == "1" })
	w.nats.Stop(t)
	w.nats.Change(func(o *server.Options) { o.Username, o.Password = "", "" })
	w.nats.Restart(t)
	l.more(t, 100)
	w.settle(t, r.endpoint, l, "NATS refuses the credentials, then accepts the credentials again")
	if err := r.stop(t); err != nil { // the log is whole then
		t.Errorf("stopping: %v", err)
	}
	if strings.Contains(r.log.String(), `"old"`) {
		t.Error("the log holds the password")
	}
}

// TestLeadersMove moves the leadership of Kafka's partitions about under load.
func TestLeadersMove(t *testing.T) {
	w := newWorldOn(t, natstest.Start(t), kafkatest.StartFake(t, kfake.NumBrokers(3)))
	w.once = true
	// Past the proxy, behind which there is room for one broker only.
	r := start(t, w.change(t, w.toKafka.addr, strings.Join(w.kafka.Fake.ListenAddrs(), `", "`)))
	l := startLoad(t, r.endpoint, 6, 2*time.Millisecond)
	for range pick(4, 40) {
		l.more(t, 150)
		w.kafka.Fake.ShufflePartitionLeaders()
	}
	l.more(t, 100)
	w.settle(t, r.endpoint, l, "Kafka's leaders move (a Kafka in the test)")
}

// TestKafkaLeaderKilled kills the leader of a cluster of three, with `kill -9`,
// in the midst of a load, and brings it back.
func TestKafkaLeaderKilled(t *testing.T) {
	k := startThree(t)
	w := newWorldOn(t, natstest.Start(t), &kafkatest.Broker{Addr: k.addrs[0], Replicas: 3})
	w.once = true
	r := start(t, w.change(t, w.toKafka.addr, strings.Join(k.addrs, `", "`)))
	l := startLoad(t, r.endpoint, 6, 2*time.Millisecond)
	kills := pick(1, 5)
	for range kills {
		l.more(t, 500)
		k.kill(t, leaderOf(t, k.addrs, w.topic))
		l.more(t, 1000)
		k.restart(t)
	}
	l.more(t, 500)
	w.settle(t, r.endpoint, l, fmt.Sprintf("a Kafka of 3, `acks: all`: the leader killed, %d times", kills))
}

// leaderOf returns the node that leads the first partition of a topic.
func leaderOf(t *testing.T, addrs []string, topic string) int {
	t.Helper()
	leader := 0
	eventually(t, "the topic has a leader", func() bool {
		for _, addr := range addrs {
			conn, err := kafka.Dial("tcp", addr)
			if err != nil {
				continue
			}
			partitions, err := conn.ReadPartitions(topic)
			_ = conn.Close()
			if err == nil && len(partitions) > 0 && partitions[0].Leader.ID > 0 {
				leader = partitions[0].Leader.ID
				return true
			}
		}
		return false
	})
	return leader
}
