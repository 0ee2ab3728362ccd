package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postwire/postwire/pkg/admin"
)

// configure puts another configuration in the file's place, as an operator does.
func (r *postwire) configure(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(r.config+".new", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.config+".new", r.config); err != nil {
		t.Fatal(err)
	}
}

// TestReloadUnderLoad changes the configuration again and again while webhooks
// come in: sinks and sources change, come and go. Not one webhook is refused, and
// each event is delivered once, in order.
func TestReloadUnderLoad(t *testing.T) { reloadUnderLoad(t, newWorld(t)) }

// The same where the journal is a stream: a cursor that is let go of may be given
// to another process, and comes back.
func TestReloadUnderLoadOnAStream(t *testing.T) {
	w := newWorld(t)
	before, rest, _ := strings.Cut(w.config, "journal: {")
	_, after, _ := strings.Cut(rest, "\n")
	w.config = fmt.Sprintf("%sjournal: {engine: jetstream, jetstream: {url: %q, replicas: 1}, min_free_bytes: 0, spill: {dir: %q}}\n%s", before, w.nats.URL(), t.TempDir(), after)
	reloadUnderLoad(t, w)
}

func reloadUnderLoad(t *testing.T, w *world) {
	t.Helper()
	r := start(t, w.config)
	const profiles, wanted = 50, 1000 // a second
	l := startLoad(t, r.endpoint, profiles, profiles*time.Second/wanted, func(l *load) { l.steady = true })
	version := func(n int) string {
		config := strings.NewReplacer(
			"paths: [/webhooks/upload-post]", fmt.Sprintf("paths: [/webhooks/upload-post, /webhooks/%d]", n),
			"timeout: 2s, retry: {max: 500ms}}\n  - {name: kafka", fmt.Sprintf("timeout: 2s, batch: %d, retry: {max: 500ms}}\n  - {name: kafka", 100+n/2),
			"topic: "+w.topic, fmt.Sprintf("max_message_bytes: %d, topic: %s", 900_000+n/3, w.topic),
		).Replace(w.config)
		if n%2 == 0 {
			config = strings.Replace(config, "sinks:\n", "sinks:\n  - {name: extra, type: stdout}\n", 1)
		}
		if n%4 < 2 {
			config = strings.Replace(config, "sources:\n", "sources:\n  - {name: extra, type: webhook, paths: [/extra], event: {type: '\"t\"'}, auth: none}\n", 1)
		}
		return config
	}
	reloads := pick(9, 100)
	for n := range reloads {
		l.more(t, pick(50, 500))
		r.configure(t, version(n))
		switch n % 3 {
		case 0:
			var done admin.ReloadResult
			r.must(t, &done, "reload")
			if len(done.Changed) == 0 {
				t.Errorf("reload %d has changed nothing", n)
			}
		case 1:
			if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, fmt.Sprint("reload ", n, " is taken over"), func() bool {
			return r.metric(t, `postwire_config_reloads_total{outcome="applied"}`) == fmt.Sprint(n+1)
		})
		want := map[string]int{fmt.Sprint("/webhooks/", n): http.StatusUnauthorized, fmt.Sprint("/webhooks/", n-1): http.StatusNotFound, "/extra": http.StatusNotFound}
		if n%4 < 2 {
			want["/extra"] = http.StatusAccepted
		}
		for path, code := range want {
			resp, err := client.Post("http://"+r.addr+path, "application/json", strings.NewReader(fmt.Sprintf(`{"n":%d}`, n)))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != code {
				t.Errorf("reload %d: %s is answered %d, want %d", n, path, resp.StatusCode, code)
			}
		}
		if extra := r.metric(t, `postwire_sink_up{sink="extra"}`); (extra != "") != (n%2 == 0) {
			t.Errorf("reload %d: the sink extra is %q", n, extra)
		}
	}
	l.more(t, 100)
	l.stop()
	t.Logf("%d reloads, %d webhooks at %.0f a second, where %d were to come", reloads, l.posted, l.reached(), wanted)
	if l.posted != l.acks() {
		t.Errorf("of %d webhooks, %d were taken", l.posted, l.acks())
	}
	w.settled(t, r.endpoint)
	own := func(all []arrival) (own []arrival) {
		for _, a := range all {
			if strings.HasPrefix(a.id, "upload_completed/") {
				own = append(own, a)
			}
		}
		return own
	}
	check(t, "JetStream", l.acked, own(w.onNATS(t)), true)
	check(t, "Kafka", l.acked, own(w.onKafka(t)), true)
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// TestReloadIsRefused: what is not right, or takes a restart, changes nothing,
// and it is said what it is.
func TestReloadIsRefused(t *testing.T) {
	w := newWorld(t)
	// As Kubernetes mounts a ConfigMap: the file is a link to a link.
	dir := t.TempDir()
	mount := func(name, config string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "postwire.yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	second := filepath.Join(dir, "second")
	rotate := func(secret string) {
		t.Helper()
		if err := os.WriteFile(second, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rotate("whsec_second_of_two")
	w.config = w.change(t, `"${SECRET}"`, `"${SECRET}", "${file:`+second+`}"`)
	mount("..1", w.config)
	if err := os.Symlink("..data/postwire.yaml", filepath.Join(dir, "postwire.yaml")); err != nil {
		t.Fatal(err)
	}
	r := start(t, w.config)
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}
	r.config = filepath.Join(dir, "postwire.yaml")
	r.start(t)

	if out := r.must(t, nil, "reload"); !strings.Contains(out, "reloaded; no change") {
		t.Errorf("reload printed %q", out)
	}
	for i, wrong := range []struct{ from, to, says string }{
		{`listen: "${INGRESS}"`, `listen: "127.0.0.1:1"`, "server.listen: has changed, and takes a restart"},
		{`admin: {listen: "${ADMIN}"}`, `admin: {listen: "127.0.0.1:2"}`, "admin.listen: has changed, and takes a restart"},
		{"journal: {dir: ", "journal: {max_bytes: 1GiB, dir: ", "journal.max_bytes: has changed, and takes a restart"},
		{"level: info", "format: console", "log.format: has changed, and takes a restart"},
		{"type: kafka", "type: kafkaesque", "kafkaesque"},
		{"stream: EVENTS", "stream: EVENTS, filter: 'platform =='", "filter"},
		{"sources:", "sources: [", "postwire.yaml:"},
	} {
		mount(fmt.Sprint("..wrong", i), w.change(t, wrong.from, wrong.to))
		out, errs, code := r.ask(t, "reload")
		if code != 1 || !strings.Contains(errs, wrong.says) {
			t.Errorf("%s: reload ended with %d: %s%s", wrong.to, code, out, errs)
		}
		if state := r.metric(t, "postwire_config_last_reload_successful"); state != "0" {
			t.Errorf("%s: the metric is %q", wrong.to, state)
		}
		if status, err := r.post(upload(0, i)); err != nil || status != "accepted" {
			t.Fatalf("%s: %s, %v", wrong.to, status, err)
		}
	}
	// A secret is rotated all the same; the file is still not right.
	rotate("whsec_second_of_three")
	eventually(t, "the secret is taken over", func() bool { return r.postSigned(t, "whsec_second_of_three", upload(0, 100)) < 300 })
	if state := r.metric(t, "postwire_config_last_reload_successful"); state != "0" {
		t.Errorf("a secret makes the configuration right: %s", state)
	}
	refused := r.metric(t, `postwire_config_reloads_total{outcome="refused"}`)
	w.settled(t, r.endpoint)

	// Set right, it is taken over by itself.
	mount("..2", w.change(t, "level: info", "level: debug"))
	eventually(t, "the file is followed", func() bool { return r.metric(t, "postwire_config_last_reload_successful") == "1" })
	if again := r.metric(t, `postwire_config_reloads_total{outcome="refused"}`); again != refused {
		t.Errorf("it was refused %s times, and then %s", refused, again)
	}
	if level := r.must(t, nil, "log-level"); level != "debug\n" {
		t.Errorf("the level is %s", level)
	}
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if !strings.Contains(r.log.String(), `"changed":["log.level"]`) {
		t.Error("the log does not say what was taken over")
	}
}
