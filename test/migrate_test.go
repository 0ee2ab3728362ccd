package test

import (
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	settings "github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	clustered "github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
)

const refusedNumber = 7

// receivers are those of two sinks, and know how often each event came.
type receivers struct {
	*httptest.Server
	down  atomic.Bool // the second one takes nothing
	picky atomic.Bool // the first one refuses one event for good

	mu   sync.Mutex
	came map[string]int // by path and event
}

func newReceivers(t *testing.T) *receivers {
	r := &receivers{came: map[string]int{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/second" && r.down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if q.URL.Path == "/first" && r.picky.Load() && q.Header.Get("ce-id") == id(0, refusedNumber) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.came[q.URL.Path+" "+q.Header.Get("ce-id")]++
	}))
	t.Cleanup(r.Close)
	return r
}

// of is how many events came to a receiver; each must have come once.
func (r *receivers) of(t *testing.T, path string) (n int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, times := range r.came {
		if strings.HasPrefix(what, path+" ") {
			n++
		}
		if times != 1 {
			t.Fatalf("%s came %d times", what, times)
		}
	}
	return n
}

// migrationConfig is the configuration of a relay with both engines, one of them in use, and
// two HTTP sinks.
func migrationConfig(engine, dir, cluster string, replicas int, receivers string) string {
	return fmt.Sprintf(`
server: {listen: "${INGRESS}", shutdown_delay: 0s}
admin: {listen: "${ADMIN}"}
journal:
  engine: %s
  dir: %q
  min_free_bytes: 0
  jetstream: {url: %q, replicas: %d}
  spill: {dir: %q}
sources:
  - name: upload-post
    type: uploadpost
    paths: [/webhooks/upload-post]
    auth: {signature: {secrets: ["${SECRET}"]}}
sinks:
  - {name: first, type: http, url: %q, retry: {max: 200ms}}
  - {name: second, type: http, url: %q, retry: {max: 200ms}}
`, engine, dir, cluster, replicas, dir+"-spill", receivers+"/first", receivers+"/second")
}

// TestMigrate moves a relay into a cluster and back, with the command killed again
// and again on its way.
func TestMigrate(t *testing.T) {
	to, broker := newReceivers(t), natstest.Start(t)
	to.down.Store(true)
	to.picky.Store(true)
	dir := filepath.Join(t.TempDir(), "journal")
	config := func(engine string) string { return migrationConfig(engine, dir, broker.URL(), 1, to.URL) }
	r := start(t, config("local"))
	arrived := func(first, second int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d and %d events have arrived", first, second), func() bool {
			return to.of(t, "/first") >= first && to.of(t, "/second") >= second
		})
		if n, m := to.of(t, "/first"), to.of(t, "/second"); n != first || m != second {
			t.Fatalf("%d and %d events have arrived, want %d and %d", n, m, first, second)
		}
	}
	post := func(number int, want string) {
		t.Helper()
		if status, err := r.post(upload(0, number)); err != nil || status != want {
			t.Fatalf("event %d: %s, %v; want %s", number, status, err, want)
		}
	}
	migrate := func(args string) (stdout, stderr string, code int) {
		t.Helper()
		t.Setenv("INGRESS", r.addr)
		t.Setenv("ADMIN", r.admin)
		t.Setenv("SECRET", secret)
		return command(t, t.TempDir(), append([]string{"journal", "migrate", "-c", r.config}, strings.Fields(args)...)...)
	}
	refused := func(args, why string, code int) {
		t.Helper()
		if out, errs, got := migrate(args); got != code || !strings.Contains(errs, why) {
			t.Fatalf("migrate %s ended with %d, want %d and %q:\n%s%s", args, got, code, why, out, errs)
		}
	}
	restart := func(engine string) {
		t.Helper()
		if err := os.WriteFile(r.config, []byte(config(engine)), 0o600); err != nil {
			t.Fatal(err)
		}
		r.start(t)
	}
	// aside are how many dead letters there are, beside the request, and the first.
	aside := func(dead int) string {
		t.Helper()
		var all []admin.DLQEntry
		r.must(t, &all, "dlq", "list")
		if len(all) != dead+1 || all[dead].Reason != admin.Malformed || dead > 0 && all[0].EventID != id(0, refusedNumber) {
			t.Fatalf("set aside are %+v", all)
		}
		return all[0].ID
	}

	for number := range 20 {
		post(number, "accepted")
	}
	if _, err := r.post([]byte("{nothing")); err != nil {
		t.Fatal(err)
	}
	arrived(19, 0)
	aside(1)
	refused("--from local --to jetstream", "another process uses this folder", 1)
	refused("--from local --to local", "use two different engines of local and jetstream", 2)
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}

	const bulk = 6000 // enough that it takes a while
	fillJournal(t, dir, bulk, "first", "second")
	carried(t, r, "local", "jetstream", 20+bulk)
	if out, errs, code := migrate("--from local --to jetstream"); code != 0 || !strings.Contains(out, "the journal was migrated before") {
		t.Errorf("once more it ended with %d:\n%s%s", code, out, errs)
	}

	to.down.Store(false)
	restart("jetstream")
	post(3, "duplicate")
	post(20, "accepted")
	arrived(20+bulk, 20+bulk+1)
	aside(1)
	refused("--from jetstream --to local", "stop all relays that use the stream", 1)
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}

	// And back.
	refused("--from jetstream --to local", "move the folder away", 1)
	if err := os.Rename(dir, dir+"-before"); err != nil {
		t.Fatal(err)
	}
	carried(t, r, "jetstream", "local", 20+bulk+1)
	if _, errs, code := command(t, t.TempDir(), "journal", "check", "--dir", dir); code != 0 {
		t.Errorf("the check of the journal: %s", errs)
	}
	restart("local")
	post(3, "duplicate")
	post(20, "duplicate")
	post(21, "accepted")
	arrived(20+bulk+1, 20+bulk+2)
	to.picky.Store(false)
	r.must(t, nil, "dlq", "retry", aside(1))
	arrived(20+bulk+2, 20+bulk+2)
	aside(0)
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}
}

// carried runs the command, and kills it, until it has had time enough.
func carried(t *testing.T, r *postwire, from, to string, events int) {
	t.Helper()
	kills := 0
	for after := 60 * time.Millisecond; ; after += 30 * time.Millisecond {
		cmd := exec.Command(program, "journal", "migrate", "--from", from, "--to", to, "-c", r.config)
		cmd.Env = os.Environ()
		for name, value := range r.env() {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			out := stdout.String()
			t.Logf("killed %d times:\n%s", kills, out)
			if !strings.Contains(out, fmt.Sprint(events)) || !strings.Contains(out, "next: set journal.engine: "+to) {
				t.Errorf("it printed\n%s", out)
			}
			return
		}
		if kills++; cmd.ProcessState.Exited() || kills > 200 { // by itself
			t.Fatalf("after %v: %v\n%s%s", after, err, &stdout, &stderr)
		}
	}
}

// fillJournal appends events to the journal of a relay that is stopped.
func fillJournal(t *testing.T, dir string, n int, sinks ...string) {
	t.Helper()
	j, err := local.Open(local.Options{Dir: dir, Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	// The cursors hold back what they have not passed.
	for _, name := range sinks {
		if _, err := j.Reader(t.Context(), name, journal.Earliest); err != nil {
			t.Fatal(err)
		}
	}
	last := j.Last()
	for i := range n {
		e := journaltest.Event(fmt.Sprintf("bulk-%d", i))
		go func() { _, _ = j.Append(t.Context(), e) }()
	}
	eventually(t, "all are stored", func() bool { return j.Last() == last+journal.Seq(n) })
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestMigrateWhileALeaderDies loses the server that leads the stream in the middle:
// what was not answered is not stored twice, and nothing is missing.
func TestMigrateWhileALeaderDies(t *testing.T) {
	c := newCluster(t)
	urls := natstest.URLs(c.nodes)
	folder := t.TempDir()
	dir := filepath.Join(folder, "journal")
	const events = 20000
	fillJournal(t, dir, events, "nats")
	config := strings.ReplaceAll(goodConfig, "whsec_that_is_printed", secret) +
		fmt.Sprintf("journal: {dir: %q, jetstream: {url: %q}, spill: {dir: %q}}\n", dir, urls, dir+"-spill")
	if err := os.WriteFile(filepath.Join(folder, "postwire.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	js := c.connect(t)
	stored := func() (n uint64) {
		if s, err := js.Stream(t.Context(), "postwire"); err == nil {
			n = s.CachedInfo().State.Msgs
		}
		return n
	}
	cmd := exec.Command(program, "journal", "migrate", "--from", "local", "--to", "jetstream")
	cmd.Dir = folder
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // if it stands still
	// It runs a little, and stands still while it is looked at, so that it is in the
	// middle when the server dies.
	signal := func(s os.Signal) {
		t.Helper()
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
	}
	eventually(t, "some are carried", func() bool {
		signal(syscall.SIGCONT)
		time.Sleep(10 * time.Millisecond)
		signal(syscall.SIGSTOP)
		return stored() > 1000
	})
	leader := c.leader(t)
	before := stored()
	c.nodes[leader].Kill(t)
	signal(syscall.SIGCONT)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if before >= events {
		t.Errorf("%d messages had been stored when the server died", before)
	}
	t.Logf("the server died after %d messages\n%s", before, &out)
	c.nodes[leader].Start(t)
	c.whole(t)

	src, err := local.OpenSource(local.Options{Dir: dir, Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	got, err := clustered.OpenSource(t.Context(), clustered.Options{URL: settings.URL(urls), Stream: "postwire", Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	next, stop := iter.Pull2(got.Events(t.Context(), 0))
	defer stop()
	for want, err := range src.Events(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		e, err, ok := next()
		if err != nil || !ok || string(e.Encoded) != string(want.Encoded) || !e.Accepted.Equal(want.Accepted) {
			t.Fatalf("event %d is at %d another one, or missing: %v", want.Seq, e.Seq, err)
		}
	}
	if e, _, ok := next(); ok {
		t.Errorf("there is one more, at %d", e.Seq)
	}
	keys := map[event.Key]bool{}
	for k, err := range got.Keys(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		keys[k.Key] = true
	}
	if len(keys) != events {
		t.Errorf("%d keys are there, want %d", len(keys), events)
	}
}
