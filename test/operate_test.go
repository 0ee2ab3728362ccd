package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/source/auth"
)

// ask runs a command that asks the relay's admin API.
func (r *postwire) ask(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return command(t, t.TempDir(), append(args, "--admin", "http://"+r.admin)...)
}

// must runs a command that has to end well, and reads its JSON where v is given.
func (r *postwire) must(t *testing.T, v any, args ...string) string {
	t.Helper()
	if v != nil {
		args = append(args, "-o", "json")
	}
	out, errs, code := r.ask(t, args...)
	if code != 0 {
		t.Fatalf("%v ended with %d\n%s%s", args, code, out, errs)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			t.Fatalf("%v printed %s: %v", args, out, err)
		}
	}
	return out
}

// TestOperate does what an operator does: see what was set aside, let it go
// again or drop it, send stored events again, and look on.
func TestOperate(t *testing.T) {
	w := newWorld(t)
	// Which topics there are is decided by the test.
	lost := "lost-" + w.topic
	r := start(t, w.change(t, "topic: "+w.topic, fmt.Sprintf("topic: %q", lost+".{platform}")))

	tail := exec.Command(program, "tail", "--from", "1h", "--admin", "http://"+r.admin, "-o", "json") // whenever it gets there
	stdout, err := os.Create(filepath.Join(t.TempDir(), "tail"))
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	tail.Stdout = stdout
	followed := func() string {
		text, err := os.ReadFile(stdout.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tail.Process.Kill() })

	const events = 20
	for number := range events {
		if status, err := r.post(upload(0, number)); err != nil || status != "accepted" {
			t.Fatalf("%s, %v", status, err)
		}
	}
	if status, err := r.post([]byte("{nothing\x1b[2J\u009b31m\u202e")); err != nil || status != "quarantined" {
		t.Fatalf("%s, %v", status, err)
	}

	var aside []admin.DLQEntry
	eventually(t, "all are set aside", func() bool {
		r.must(t, &aside, "dlq", "list")
		return len(aside) == events+1
	})
	first, request := aside[0], aside[events]
	if first.Sink != "kafka" || first.Reason != "no_destination" || first.EventID != id(0, 0) || !strings.Contains(first.Error, lost+".instagram") {
		t.Errorf("the first dead letter is %+v", first)
	}
	if request.Source != "upload-post" || request.Reason != admin.Malformed {
		t.Errorf("the quarantined request is %+v", request)
	}
	r.must(t, &aside, "dlq", "list", "--reason", "malformed", "--since", "1h")
	if len(aside) != 1 || aside[0].ID != request.ID {
		t.Errorf("malformed are %+v", aside)
	}
	if out := r.must(t, nil, "dlq", "list", "--sink", "nats"); !strings.Contains(out, "no dead letters and no quarantined requests") {
		t.Errorf("of nats: %s", out)
	}
	out := r.must(t, nil, "dlq", "show", request.ID)
	if !strings.Contains(out, "{nothing") || strings.Contains(out, "sha256=") {
		t.Errorf("the request is shown as\n%s", out)
	}
	// What a sender wrote reaches a terminal as text.
	for _, out := range []string{out, r.must(t, nil, "dlq", "show", request.ID, "-o", "json"), r.must(t, nil, "dlq", "list")} {
		if strings.ContainsAny(out, "\x1b\u009b\u202e") || !utf8.ValidString(out) {
			t.Errorf("control characters are printed: %q", out)
		}
	}
	if !strings.Contains(out, `\u001b[2J\u009b31m\u202e`) {
		t.Errorf("the request is shown as %q", out)
	}
	if out := r.must(t, nil, "dlq", "show", first.ID); !strings.Contains(out, id(0, 0)) || !strings.Contains(out, "user@example.com") {
		t.Errorf("the dead letter is shown as\n%s", out)
	}

	// Still not understood; then given up.
	if _, errs, code := r.ask(t, "dlq", "retry", request.ID); code != 1 || !strings.Contains(errs, "cannot convert the request") {
		t.Errorf("retrying what makes no sense ended with %d: %s", code, errs)
	}
	r.must(t, nil, "dlq", "drop", request.ID)
	if _, errs, code := r.ask(t, "dlq", "show", request.ID); code != 1 || !strings.Contains(errs, "not in the journal") {
		t.Errorf("showing what was dropped ended with %d: %s", code, errs)
	}

	// What is retried is no dead letter any more, also to who follows.
	eventually(t, "the tail tells of dead letters", func() bool { return strings.Contains(followed(), `"dead_letter"`) })

	// The topic is made; what was refused goes there in order.
	w.kafka.CreateTopic(t, lost+".instagram", 1)
	if out := r.must(t, nil, "dlq", "retry", "--sink", "kafka"); !strings.Contains(out, fmt.Sprint(events, " retried")) {
		t.Errorf("retry printed %s", out)
	}
	w.settled(t, r.endpoint)
	acked := map[string]bool{}
	for number := range events {
		acked[id(0, number)] = true
	}
	w.topic = lost + ".instagram"
	check(t, "Kafka after retry", acked, w.onKafka(t), true)
	check(t, "JetStream", acked, w.onNATS(t), true)

	// A replay, counted first, with a filter and another subject.
	var plan relay.Replay
	r.must(t, &plan, "replay", "--sink", "nats", "--from", "1h", "--dry-run")
	if plan.Total != events {
		t.Errorf("a replay would send %d events, want %d", plan.Total, events)
	}
	out = r.must(t, nil, "replay", "--sink", "nats", "--from", "1h", "--subject", "events.again.x", "--filter", fmt.Sprintf("publishid == '0-%08d'", 7))
	if !strings.Contains(out, "events to send: 1;") || !strings.Contains(out, "done: 1 of 1 sent") {
		t.Errorf("replay printed %s", out)
	}
	if got := w.onNATS(t); len(got) != events+1 || got[events].id != id(0, 7) {
		t.Errorf("on JetStream: %d messages, the last is %s", len(got), got[len(got)-1].id)
	}

	// Interrupted, it says how to go on, and goes on.
	again := exec.Command(program, "replay", "--sink", "nats", "--from", "1h", "--subject", "events.slow.x", "--rate", "5", "--admin", "http://"+r.admin)
	var told bytes.Buffer
	again.Stderr = &told
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Process.Kill() })
	var all []relay.Replay
	eventually(t, "the replay is on its way", func() bool {
		r.must(t, &all, "replay", "--list")
		return len(all) == 2 && all[0].Sent > 0
	})
	if err := again.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := again.Wait(); err == nil || !strings.Contains(told.String(), "postwire replay --continue "+all[0].ID) {
		t.Errorf("the interrupted replay ended with %v, and said %s", err, told.String())
	}
	if out := r.must(t, nil, "replay", "--continue", all[0].ID); !strings.Contains(out, "done: 20 of 20 sent") {
		t.Errorf("the continued replay said %s", out)
	}

	// Paused, a sink is sent nothing while the other is; resumed, it goes on
	// from where it stood.
	if out := r.must(t, nil, "sinks", "pause", "nats"); !strings.HasPrefix(out, "nats is paused since ") {
		t.Errorf("pause printed %s", out)
	}
	var held []relay.SinkStatus
	if r.must(t, &held, "sinks", "pause", "nats"); len(held) != 1 || held[0].State != relay.SinkPaused || held[0].Paused == nil {
		t.Errorf("pausing it again printed %+v", held)
	}
	before := len(w.onNATS(t))
	if status, err := r.post(upload(0, events)); err != nil || status != "accepted" {
		t.Fatalf("%s, %v", status, err)
	}
	eventually(t, "the other sink has it", func() bool { return len(w.onKafka(t)) == events+1 })
	if out := r.must(t, nil, "status"); !strings.Contains(out, "'postwire sinks resume nats'") {
		t.Errorf("while a sink is paused, status printed %s", out)
	}
	if got := len(w.onNATS(t)); got != before {
		t.Errorf("a paused sink was sent %d events", got-before)
	}
	if out := r.must(t, nil, "sinks", "resume", "nats"); out != "nats is not paused; pending events: 1\n" && out != "nats is not paused; pending events: 0\n" {
		t.Errorf("resume printed %s", out)
	}
	eventually(t, "the resumed sink has it", func() bool { return len(w.onNATS(t)) == before+1 })
	if out := r.must(t, nil, "status"); strings.Contains(out, "resume") {
		t.Errorf("after the pause, status printed %s", out)
	}
	if _, errs, code := r.ask(t, "sinks", "pause", "nobody"); code != 1 || !strings.Contains(errs, `sink "nobody": it is not in the configuration`) {
		t.Errorf("pausing what is not there ended with %d: %s", code, errs)
	}

	// The tail saw the events and their fates.
	if err := tail.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := tail.Wait(); err != nil {
		t.Errorf("tail ended with %v", err)
	}
	for _, want := range []string{id(0, 19), `"delivered"`, `"dead_letter"`, "no_destination"} {
		if !strings.Contains(followed(), want) {
			t.Errorf("the tail lacks %q", want)
		}
	}
	if strings.Contains(followed(), "user@example.com") {
		t.Error("the tail shows data that nobody asked for")
	}

	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if _, errs, code := r.ask(t, "dlq", "list"); code != 1 || !strings.Contains(errs, "no relay answers there") || !strings.Contains(errs, "--admin") {
		t.Errorf("without a relay, list ended with %d: %s", code, errs)
	}
}

// TestToken: beyond loopback the relay does not start without a token, and
// with one asks for it.
func TestToken(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/open.yaml"
	text := goodConfig + "admin: {listen: \"0.0.0.0:0\"}\njournal: {dir: " + dir + "/journal}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := command(t, dir, "serve", "-c", path); code != 2 || !strings.Contains(errs, "admin.token") {
		t.Errorf("serve without a token ended with %d: %s", code, errs)
	}

	w := newWorld(t)
	r := start(t, w.change(t, `admin: {listen: "${ADMIN}"}`, `admin: {listen: "${ADMIN}", token: hush-0123456789abcdef}`))
	if _, errs, code := r.ask(t, "dlq", "list"); code != 1 || !strings.Contains(errs, "token") {
		t.Errorf("list without a token ended with %d: %s", code, errs)
	}
	if err := os.WriteFile(dir+"/token", []byte("hush-0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must(t, nil, "dlq", "list", "--token-file", dir+"/token")
	// Health and metrics are for machines without a token.
	if r.metric(t, "postwire_journal_oldest_seq") == "" && r.metric(t, `postwire_sink_lag_events{sink="nats"}`) == "" {
		t.Error("no metrics without a token")
	}
}

// TestStopOrder: a relay that stops says at once that it is not ready, goes
// on taking webhooks until load balancers have noticed, and then ends.
func TestStopOrder(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.change(t, "shutdown_delay: 0s", "shutdown_delay: 2s"))
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not ready", func() bool {
		resp, err := http.Get("http://" + r.admin + "/readyz")
		if err != nil {
			t.Fatal("the admin port went first: ", err)
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if status, err := r.post(upload(0, 0)); err != nil || status != "accepted" {
		t.Errorf("a webhook that comes before load balancers have noticed: %s, %v", status, err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+r.addr+"/webhooks/upload-post", bytes.NewReader(upload(0, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := auth.UploadPost.Sign(req.Header, secret, "", time.Now(), upload(0, 0)); err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("an answer before load balancers have noticed does not end its connection: %+v, %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	if err := <-r.exited; err != nil {
		t.Errorf("stopping: %v", err)
	}
	if got := w.onNATS(t); len(got) != 1 || got[0].id != id(0, 0) {
		t.Errorf("on JetStream: %v", got)
	}
}

// TestSecondSignal ends at once, and loses nothing either.
func TestSecondSignal(t *testing.T) {
	w := newWorld(t)
	w.toKafka.set(t, weather{shut: true})
	r := start(t, w.change(t, "shutdown_delay: 0s", "shutdown_delay: 10s"))
	if status, err := r.post(upload(0, 0)); err != nil || status != "accepted" {
		t.Fatalf("%s, %v", status, err)
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it stops", func() bool {
		resp, err := http.Get("http://" + r.admin + "/readyz")
		if err != nil {
			t.Fatal("it stopped without waiting: ", err)
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-r.exited; err == nil {
		t.Error("it ended well")
	}
	if code := r.cmd.ProcessState.ExitCode(); code != 128+int(syscall.SIGTERM) {
		t.Errorf("it ended with %v, want by the second signal", r.cmd.ProcessState)
	}
	w.toKafka.set(t, weather{})
	r.start(t)
	w.settled(t, r.endpoint)
	acked := map[string]bool{id(0, 0): true}
	check(t, "JetStream", acked, w.onNATS(t), true)
	check(t, "Kafka", acked, w.onKafka(t), true)
}
