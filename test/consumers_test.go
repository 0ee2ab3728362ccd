package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
)

// TestConsumers runs the example of each language against a relay and both
// brokers, in both content modes: each event is printed once, though it is sent
// twice, and SIGTERM ends the program well.
func TestConsumers(t *testing.T) {
	dir := os.Getenv("POSTWIRE_TEST_CONSUMERS")
	if dir == "" {
		t.Skip("needs Go, Java, Node.js and Python: POSTWIRE_TEST_CONSUMERS names the folder that examples/consumers/install made")
	}
	languages := map[string][]string{
		"go":     {"./consumer"},
		"java":   {"java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "target/classes:target/lib/*", "Consumer"},
		"node":   {"node", "consumer.mjs"},
		"python": {"venv/bin/python", "consumer.py"},
	}
	nats, kafka := natstest.Start(t), kafkatest.Start(t)
	topic := fmt.Sprintf("consumers-%x", rand.Uint64())
	var sinks []string
	config := fmt.Sprintf(`
server: {listen: "${INGRESS}", shutdown_delay: 0s}
admin: {listen: "${ADMIN}"}
journal: {dir: %q, min_free_bytes: 0}
sources: [{name: upload-post, type: uploadpost, paths: [/webhooks/upload-post], auth: {signature: {secrets: ["${SECRET}"]}}}]
sinks:
`, filepath.Join(t.TempDir(), "journal"))
	for _, mode := range []string{"binary", "structured"} {
		kafka.CreateTopic(t, topic+"-"+mode, 1)
		config += fmt.Sprintf("  - {name: kafka-%[1]s, type: kafka, brokers: [%[2]q], topic: %[3]s-%[1]s, content_mode: %[1]s}\n", mode, kafka.Addr, topic)
		config += fmt.Sprintf("  - {name: nats-%[1]s, type: nats, url: %[2]q, subject: \"%[1]s.{platform}\", stream: %[3]s, create: true, content_mode: %[1]s}\n", mode, nats.URL(), strings.ToUpper(mode))
		sinks = append(sinks, "kafka-"+mode, "nats-"+mode)
	}
	r := start(t, config)

	// Some events, then all of them again, and then one by which the end is known.
	const events = 10
	post := func(number int) {
		body := fmt.Sprintf(`{"event":"upload_completed","profile_username":"pröfil %d","platform":"instagram","title":"Tïtle \"+%%20\"","result":{"success":true,"publish_id":"a%%2B+ü %d"}}`, number%2, number)
		if status, err := r.post([]byte(body)); err != nil || status != "accepted" {
			t.Fatalf("%s, %v", status, err)
		}
	}
	last := fmt.Sprintf("a%%2B+ü %d", events)
	settled := func() {
		for _, sink := range sinks {
			eventually(t, sink+" has everything", func() bool { return r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`) == "0" })
		}
	}
	var want []string
	for number := range events + 1 {
		if number == events {
			settled()
			for _, sink := range sinks {
				r.must(t, nil, "replay", "--sink", sink, "--from", "1h")
			}
		}
		post(number)
		want = append(want, fmt.Sprintf(`https://upload-post.com/profiles/pr%%C3%%B6fil%%20%d com.upload-post.upload_completed upload_completed/instagram/a%%2B+ü %d/success Tïtle "+%%20"`, number%2, number))
	}
	settled()
	slices.Sort(want)

	for language, command := range languages {
		t.Run(language, func(t *testing.T) {
			home := filepath.Join(dir, language)
			if _, err := os.Stat(home); err != nil {
				t.Fatalf("it is not installed: %v", err)
			}
			var programs []*consumer
			for _, mode := range []string{"binary", "structured"} {
				programs = append(programs,
					consume(t, home, append(slices.Clone(command), "kafka", kafka.Addr, topic+"-"+mode, topic+"-"+mode+"-"+language)),
					consume(t, home, append(slices.Clone(command), "nats", nats.URL(), strings.ToUpper(mode), language, mode+".>")))
			}
			for _, p := range programs {
				eventually(t, strings.Join(p.cmd.Args, " ")+" has read the last event", func() bool {
					return p.has(last) || p.ended()
				})
			}
			for _, p := range programs {
				got := p.stop(t, language == "java")
				slices.Sort(got)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%v printed (-want +got):\n%s\n%s", p.cmd.Args, diff, p.stderr.String())
				}
			}
		})
	}
}

// consumer is an example that runs.
type consumer struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	exited chan struct{} // closed when it has
	err    error         // of its exit

	mu    sync.Mutex
	lines []string // source, type, id and title of an event each
}

func consume(t *testing.T, dir string, command []string) *consumer {
	t.Helper()
	p := &consumer{cmd: exec.Command(command[0], command[1:]...), exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stderr = dir, &p.stderr
	if !filepath.IsAbs(command[0]) && strings.Contains(command[0], "/") {
		p.cmd.Path = filepath.Join(dir, command[0])
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.exited })
	go func() {
		defer close(p.exited)
		for s := bufio.NewScanner(out); s.Scan(); {
			var e struct{ Source, Type, ID, Title string }
			line := s.Text()
			if err := json.Unmarshal(s.Bytes(), &e); err == nil {
				line = strings.Join([]string{e.Source, e.Type, e.ID, e.Title}, " ")
			}
			p.mu.Lock()
			p.lines = append(p.lines, line)
			p.mu.Unlock()
		}
		p.err = p.cmd.Wait()
	}()
	return p
}

// has reports whether an event of an id has been printed.
func (p *consumer) has(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.lines, func(line string) bool { return strings.Contains(line, id) })
}

func (p *consumer) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// stop ends the program by SIGTERM, and returns what it printed. A JVM that was
// asked to end says so by its exit code.
func (p *consumer) stop(t *testing.T, jvm bool) []string {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("%v: %v\n%s", p.cmd.Args, err, p.stderr.String())
	}
	eventually(t, "it ends", p.ended)
	err := p.err
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && jvm && exit.ExitCode() == 128+int(syscall.SIGTERM) {
		err = nil
	}
	if err != nil || !strings.HasSuffix(p.stderr.String(), "stopped\n") {
		t.Errorf("%v ended with %v\n%s", p.cmd.Args, err, p.stderr.String())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}
