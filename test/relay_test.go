// Package test runs the real binary against real brokers, and breaks things.
package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
	"github.com/postwire/postwire/sinks/nats/natstest"
)

const secret = "whsec_e2e"

var program string // built once for all tests

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "postwire-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "postwire")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/postwire").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// postwire is a running binary.
type postwire struct {
	config string
	addr   string // of the ingress; kept over restarts
	admin  string

	cmd    *exec.Cmd
	log    bytes.Buffer
	logged chan struct{} // closed when the log has ended
	exited chan error
}

// start runs the binary with a configuration whose ports are ${INGRESS} and
// ${ADMIN}, and waits until it is ready.
func start(t *testing.T, config string) *postwire {
	t.Helper()
	r := &postwire{config: filepath.Join(t.TempDir(), "postwire.yaml"), addr: freeAddr(t), admin: freeAddr(t)}
	if err := os.WriteFile(r.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			r.kill(t)
		}
		if t.Failed() {
			t.Logf("the relay's log:\n%s", r.log.String())
		}
	})
	return r
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *postwire) start(t *testing.T) {
	t.Helper()
	r.cmd = exec.Command(program, "serve", "-c", r.config)
	r.cmd.Env = append(os.Environ(), "INGRESS="+r.addr, "ADMIN="+r.admin, "SECRET="+secret)
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.logged, r.exited = make(chan struct{}), make(chan error, 1)
	go func() {
		_, _ = io.Copy(&r.log, stderr)
		close(r.logged)
		r.exited <- r.cmd.Wait()
	}()
	eventually(t, "the relay is ready", func() bool {
		resp, err := http.Get("http://" + r.admin + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// kill ends the process without a chance to do anything.
func (r *postwire) kill(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-r.exited; err == nil {
		t.Error("a killed process ended well")
	}
}

// stop asks the process to end, and returns how it did.
func (r *postwire) stop(t *testing.T) error {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return <-r.exited
}

// metric returns the value of a series.
func (r *postwire) metric(t *testing.T, series string) string {
	t.Helper()
	resp, err := http.Get("http://" + r.admin + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), series+" "); ok {
			return value
		}
	}
	return ""
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// client posts webhooks.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// post delivers a webhook and returns the status in the answer's body. An
// error means that nobody knows what became of it.
func (r *postwire) post(body []byte) (status string, err error) {
	req, err := http.NewRequest(http.MethodPost, "http://"+r.addr+"/webhooks/upload-post", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	signature, timestamp := uploadpost.Scheme().Sign(secret, time.Now(), body)
	req.Header.Set(uploadpost.SignatureHeader, signature)
	req.Header.Set(uploadpost.TimestampHeader, timestamp)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ Status string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return "", err
	}
	if resp.StatusCode >= 300 {
		return "", fmt.Errorf("answered %s", resp.Status)
	}
	return answer.Status, nil
}

// upload is a webhook whose event has the CloudEvents id that id returns.
func upload(profile, number int) []byte {
	return fmt.Appendf(nil, `{"event":"upload_completed","user_email":"user@example.com","profile_username":"profile%d","platform":"instagram","media_type":"video","title":"t","caption":"c","result":{"success":true,"publish_id":"%d-%06d","error":null},"created_at":"2024-03-15T14:30:00.000000"}`, profile, profile, number)
}

func id(profile, number int) string {
	return fmt.Sprintf("upload_completed/instagram/%d-%06d/success", profile, number)
}

// world is both brokers, each behind a proxy.
type world struct {
	nats            *natstest.Broker
	kafka           *kafkatest.Broker
	toNATS, toKafka *proxy
	topic           string
	config          string
}

func newWorld(t *testing.T, change ...func(*server.Options)) *world {
	t.Helper()
	return newWorldOn(t, natstest.Start(t, change...), kafkatest.Start(t))
}

func newWorldOn(t *testing.T, nats *natstest.Broker, kafka *kafkatest.Broker) *world {
	t.Helper()
	w := &world{nats: nats, kafka: kafka, topic: fmt.Sprintf("e2e-%x", rand.Uint64())}
	w.toNATS = newProxy(t, strings.TrimPrefix(w.nats.URL(), "nats://"), false)
	w.toKafka = newProxy(t, w.kafka.Addr, true)
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
  - {name: kafka, type: kafka, brokers: [%q], topic: %s, create: true, partitions: 3, timeout: 2s, retry: {max: 500ms}}
`, filepath.Join(t.TempDir(), "journal"), w.toNATS.addr, w.toKafka.addr, w.topic)
	return w
}

// onNATS returns the ids in the stream, in order.
func (w *world) onNATS(t *testing.T) (ids []string) {
	t.Helper()
	for _, m := range w.nats.Messages(t, w.nats.Connect(t), "EVENTS") {
		ids = append(ids, m.Header.Get("ce-id"))
	}
	return ids
}

// onKafka returns the ids in the topic, each profile's in order.
func (w *world) onKafka(t *testing.T) (ids []string) {
	t.Helper()
	for _, m := range w.kafka.Messages(t, w.topic) {
		i := slices.IndexFunc(m.Headers, func(h kafka.Header) bool { return h.Key == "ce_id" })
		ids = append(ids, string(m.Headers[i].Value))
	}
	return ids
}

// settled waits until both sinks have passed everything.
func (w *world) settled(t *testing.T, r *postwire) {
	t.Helper()
	for _, sink := range []string{"nats", "kafka"} {
		eventually(t, sink+" has everything", func() bool {
			return r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`) == "0"
		})
	}
}

// TestKillUnderLoad kills the process, without warning, again and again while
// webhooks come in. Every event that was answered with 2xx arrives at both
// brokers, in the order of its profile; on JetStream exactly once.
func TestKillUnderLoad(t *testing.T) {
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	w := newWorld(t)
	r := start(t, w.config)

	var mu sync.Mutex
	acked := map[string]bool{}
	acks := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var senders sync.WaitGroup
	for profile := range 6 {
		senders.Go(func() {
			for number := 0; ctx.Err() == nil; number++ {
				status, err := r.post(upload(profile, number))
				if err != nil {
					time.Sleep(time.Millisecond) // the relay is away; this event is gone
					continue
				}
				if status != "accepted" {
					t.Errorf("%s was answered %s", id(profile, number), status)
				}
				mu.Lock()
				acked[id(profile, number)] = true
				mu.Unlock()
			}
		})
	}
	for range rounds {
		moment := acks() + 200 + rand.IntN(400)
		eventually(t, "more events are accepted", func() bool { return acks() >= moment })
		r.kill(t)
		r.start(t)
	}
	moment := acks() + 200
	eventually(t, "more events are accepted", func() bool { return acks() >= moment })
	cancel()
	senders.Wait()
	w.settled(t, r)
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}

	nats := w.onNATS(t)
	kafka := w.onKafka(t)
	t.Logf("%d events accepted through %d kills; %d messages on JetStream, %d records on Kafka", len(acked), rounds, len(nats), len(kafka))
	check(t, "JetStream", acked, nats, true)
	check(t, "Kafka", acked, kafka, false)
}

// check holds what is on a broker against what was acknowledged.
func check(t *testing.T, broker string, acked map[string]bool, got []string, once bool) {
	t.Helper()
	seen := map[string]int{}
	last := map[string]string{} // by profile
	for _, id := range got {
		seen[id]++
		if seen[id] > 1 {
			continue
		}
		profile, _, _ := strings.Cut(id, "-")
		if id < last[profile] {
			t.Errorf("%s: %s stands behind %s", broker, id, last[profile])
		}
		last[profile] = id
	}
	for _, id := range slices.Sorted(maps.Keys(acked)) {
		if seen[id] == 0 {
			t.Errorf("%s: %s was acknowledged and never arrived", broker, id)
		}
		if once && seen[id] > 1 {
			t.Errorf("%s: %s arrived %d times", broker, id, seen[id])
		}
	}
}

// TestBothBrokersDown accepts 10,000 events while no broker is there.
func TestBothBrokersDown(t *testing.T) {
	w := newWorld(t)
	w.nats.Stop(t)
	w.toKafka.set(t, weather{shut: true})
	r := start(t, w.config)
	const profiles, each = 10, 1000
	var senders sync.WaitGroup
	for profile := range profiles {
		senders.Go(func() {
			for number := range each {
				if status, err := r.post(upload(profile, number)); err != nil || status != "accepted" {
					t.Errorf("%s: %s, %v", id(profile, number), status, err)
					return
				}
			}
		})
	}
	senders.Wait()
	for _, sink := range []string{"nats", "kafka"} {
		if lag := r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`); lag != "10000" {
			t.Errorf("the lag of %s is %s, want 10000", sink, lag)
		}
	}
	w.nats.Restart(t)
	w.toKafka.set(t, weather{})
	w.settled(t, r)
	acked := map[string]bool{}
	for profile := range profiles {
		for number := range each {
			acked[id(profile, number)] = true
		}
	}
	nats, kafka := w.onNATS(t), w.onKafka(t)
	check(t, "JetStream", acked, nats, true)
	check(t, "Kafka", acked, kafka, true)
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	for _, personal := range []string{"user@example.com", `"t"`, secret} {
		if strings.Contains(r.log.String(), personal) {
			t.Errorf("the log holds %q", personal)
		}
	}
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
	w.settled(t, r)
	if got := w.onNATS(t); len(got) != 1 || got[0] != id(0, 0) {
		t.Errorf("on JetStream: %v", got)
	}
	js := w.nats.Connect(t)
	stream, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("the stream holds %d messages, want 1", n)
	}
	if got := w.onKafka(t); len(got) != 1 || got[0] != id(0, 0) {
		t.Errorf("on Kafka: %v", got)
	}
}

// TestStopUnderLoad: a polite end loses nothing, and says so with code 0.
func TestStopUnderLoad(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	var mu sync.Mutex
	acked := map[string]bool{}
	ctx, cancel := context.WithCancel(t.Context())
	var senders sync.WaitGroup
	for profile := range 6 {
		senders.Go(func() {
			for number := 0; ctx.Err() == nil; number++ {
				if _, err := r.post(upload(profile, number)); err == nil {
					mu.Lock()
					acked[id(profile, number)] = true
					mu.Unlock()
				} else {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	eventually(t, "events are accepted", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(acked) > 500
	})
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	r.start(t)
	cancel()
	senders.Wait()
	w.settled(t, r)
	check(t, "JetStream", acked, w.onNATS(t), true)
	kafka := w.onKafka(t)
	check(t, "Kafka", acked, kafka, true) // nothing was on its way when it ended
}
