package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// quirk is one way in which the service is odd, and what an operator's commands
// make of it.
type quirk struct {
	simulator.Quirks
	settings string // what the commands say that change settings; empty where they do their work
	history  string // the same of reconcile
}

const elsewhere = "the API is at " + uploadpost.DefaultBaseURL + ", and the base URL in use is http://127.0.0.1"

// quirks has each field of simulator.Quirks at least once, alone.
var quirks = []quirk{
	{Quirks: simulator.Quirks{HistoryKey: "uploads"}},
	{Quirks: simulator.Quirks{HistoryKey: "data"}},
	{Quirks: simulator.Quirks{HistoryKey: "items"}},
	{Quirks: simulator.Quirks{PostIDLists: true}},
	{Quirks: simulator.Quirks{EventsAsList: true}},
	{Quirks: simulator.Quirks{ConfigKey: true}},
	{Quirks: simulator.Quirks{NotAllowed: true}, settings: "answered 405, as the documented host does at times; " + elsewhere},
	{
		Quirks:   simulator.Quirks{WebPages: true},
		settings: "answered 200 with a web page in place of JSON; " + elsewhere,
		history:  "answered 200 with a web page in place of JSON; " + elsewhere,
	},
	// Of three rotations one at least is hit in the request that rotates.
	{Quirks: simulator.Quirks{LimitEvery: 4}},
	{Quirks: simulator.Quirks{FailEvery: 4}},
	{Quirks: simulator.Quirks{LateHistory: 2 * time.Hour}},
}

// alone is the one field that is set, and its value.
func (q quirk) alone(t *testing.T) (field, value string) {
	t.Helper()
	v := reflect.ValueOf(q.Quirks)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			continue
		}
		if field != "" {
			t.Fatalf("%s and %s are set at once", field, v.Type().Field(i).Name)
		}
		field, value = v.Type().Field(i).Name, fmt.Sprint(v.Field(i).Interface())
	}
	return field, value
}

// TestQuirks lets an operator register, rotate the secret and reconcile while
// the service has one of its quirks, for each of them. Either all is done, and
// done once, or the command says what is wrong and has changed nothing.
func TestQuirks(t *testing.T) {
	listed := map[string]bool{}
	for _, q := range quirks {
		field, _ := q.alone(t)
		listed[field] = true
	}
	for field := range reflect.TypeFor[simulator.Quirks]().Fields() {
		if !listed[field.Name] {
			t.Errorf("nobody has tried the quirk %s: list it", field.Name)
		}
	}

	var mu sync.Mutex
	delivered := map[string]int{} // by the job of the upload
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		delivered[r.Header.Get("Ce-Correlationid")]++
	}))
	defer sink.Close()
	var sources strings.Builder
	all := make([]*account, len(quirks))
	for i, q := range quirks {
		all[i] = newAccount(t, i, q)
		sources.WriteString(all[i].source())
	}
	r := start(t, fmt.Sprintf(`
server: {listen: "${INGRESS}", shutdown_delay: 0s}
admin: {listen: "${ADMIN}"}
log: {level: debug}
journal: {dir: %q, min_free_bytes: 0}
sources:
%ssinks: [{name: out, type: http, url: %q}]
`, filepath.Join(t.TempDir(), "journal"), sources.String(), sink.URL))
	each := func(name string, try func(t *testing.T, a *account)) {
		t.Run(name, func(t *testing.T) {
			for _, a := range all {
				t.Run(a.name, func(t *testing.T) {
					t.Parallel()
					try(t, a)
				})
			}
		})
	}
	each("first", func(t *testing.T, a *account) {
		a.register(t, r)
		a.rotate(t, r)
		a.reconcile(t, r)
	})
	// The next process knows nothing but what is in the journal.
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	r.start(t)
	each("after a restart", func(t *testing.T, a *account) {
		if a.history == "" {
			a.compare(t, r, reconcile.Report{Uploads: len(a.lost) + len(a.told), Known: len(a.lost) + len(a.told)})
		}
	})
	eventually(t, "the sink has everything", func() bool { return r.metric(t, `postwire_sink_lag_events{sink="out"}`) == "0" })
	if err := r.stop(t); err != nil { // the log is whole then
		t.Errorf("stopping: %v", err)
	}
	for _, a := range all {
		for _, job := range a.told {
			if n := delivered[job]; n != 1 {
				t.Errorf("%s: upload %s, of which a webhook told, was delivered %d times", a.name, job, n)
			}
		}
		for _, job := range a.lost {
			if n := delivered[job]; n != 1 && a.history == "" || n != 0 && a.history != "" {
				t.Errorf("%s: upload %s, of which no webhook told, was delivered %d times", a.name, job, n)
			}
		}
		a.tellsNothing(t, r.log.String())
	}
}

// account is an account at an odd service, and what its owner has.
type account struct {
	quirk
	name    string
	dir     string // where the files are
	key     string // to the API
	service *simulator.Simulator
	api     string
	random  *rand.Rand
	ahead   atomic.Int64 // nanoseconds, of the service's clock

	lost, told []string // jobs of uploads of which webhooks told, and did not
	secrets    []string // that there were
}

// uploads are enough for two pages of the history.
const uploads = 120

func newAccount(t *testing.T, n int, q quirk) *account {
	t.Helper()
	field, value := q.alone(t)
	a := &account{
		quirk: q, name: strings.ToLower(field + "-" + value), dir: t.TempDir(), key: fmt.Sprintf("key-of-account-%d", n),
		random: rand.New(rand.NewPCG(14, uint64(n))), secrets: []string{fmt.Sprintf("whsec_of_account_%d_at_first", n)},
	}
	a.service = simulator.New(simulator.Options{APIKey: config.Secret(a.key), Quirks: q.Quirks, Now: func() time.Time {
		return time.Now().Add(time.Duration(a.ahead.Load()))
	}})
	t.Cleanup(a.service.Close)
	api := httptest.NewServer(a.service.Handler())
	t.Cleanup(api.Close)
	a.api = api.URL + "/api"
	for name, text := range map[string]string{"key": a.key, "secret": a.secrets[0], "previous": a.secrets[0]} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// source is its part of the relay's configuration.
func (a *account) source() string {
	file := func(name string) string { return "${file:" + filepath.Join(a.dir, name) + "}" }
	return fmt.Sprintf("  - {name: %[1]s, type: uploadpost, paths: [/%[1]s], auth: {signature: {secrets: [%[2]q, %[3]q]}}, api: {key: %[4]q, url: %[5]q}}\n",
		a.name, file("secret"), file("previous"), file("key"), a.api)
}

// command runs a command that changes settings. Where it cannot, it says so and
// leaves everything as it was.
func (a *account) command(t *testing.T, args ...string) string {
	t.Helper()
	before := a.files(t)
	out, errs, code := command(t, a.dir, append(args, "--api-url", a.api, "--api-key-file", "key")...)
	a.tellsNothing(t, out+errs)
	want := 0
	if a.settings != "" {
		want = 1
		if diff := cmp.Diff(before, a.files(t)); diff != "" {
			t.Errorf("%v failed and changed files (-before +after):\n%s", args, diff)
		}
	}
	if code != want || !strings.Contains(errs, a.settings) {
		t.Errorf("%v ended with %d, want %d and %q\n%s%s", args, code, want, a.settings, out, errs)
	}
	return out
}

func (a *account) files(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(a.dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = strings.TrimSpace(string(text))
	}
	return files
}

func (a *account) tellsNothing(t *testing.T, text string) {
	t.Helper()
	tellsNoSecret(t, text)
	for _, secret := range append(a.secrets, a.key) {
		if strings.Contains(text, secret) {
			t.Errorf("%s: %s is told", a.name, secret)
		}
	}
}

// upload lets uploads end, some badly, and returns their jobs.
func (a *account) upload(t *testing.T, n int) []string {
	t.Helper()
	jobs := make([]string, n)
	for i := range jobs {
		body, err := sample.Random(a.random, sample.UploadCompleted, i%5 == 4, time.Now().Add(time.Duration(a.ahead.Load())))
		if err != nil {
			t.Fatal(err)
		}
		var b struct {
			JobID string `json:"job_id"`
		}
		if err := json.Unmarshal(body, &b); err != nil {
			t.Fatal(err)
		}
		jobs[i] = b.JobID
		if err := a.service.Send(t.Context(), body); err != nil {
			t.Fatal(err)
		}
	}
	return jobs
}

// tell lets uploads end of which webhooks tell; all must be taken.
func (a *account) tell(t *testing.T, n int) {
	t.Helper()
	a.told = append(a.told, a.upload(t, n)...)
	if c := a.service.Counts(); c.Delivered != len(a.told) || c.Failed > 0 || c.Dropped > 0 {
		t.Errorf("of %d webhooks: %+v", len(a.told), c)
	}
}

// register: first nobody is told of uploads. Where the command fails, there is
// a webhook from before, which stays.
func (a *account) register(t *testing.T, r *postwire) {
	t.Helper()
	a.ahead.Store(int64(-time.Hour))
	a.lost = a.upload(t, uploads)
	a.ahead.Store(0)
	url := "http://" + r.addr + "/" + a.name
	args := []string{"register", "--url", url, "--events", "upload_completed,social_account_disconnected"}
	if a.settings != "" {
		a.service.SetWebhook(url, config.Secret(a.secrets[0]))
		args[2] = "http://" + natstest.FreeAddr(t) + "/of-nobody"
	}
	a.command(t, append(args, "--secret-file", "secret")...)
	a.command(t, append(args, "--profile", "retro games")...)
	if a.settings == "" {
		a.secrets = append(a.secrets, a.files(t)["secret"])
		out := a.command(t, append(args, "--dry-run")...)
		if strings.Count(out, "(unchanged)") != 5 {
			t.Errorf("what was set is read back as\n%s", out)
		}
		a.command(t, "unregister", "--profile", "retro games")
	}
	a.tell(t, 5)
}

// rotate: webhooks that are signed with either secret are taken.
func (a *account) rotate(t *testing.T, r *postwire) {
	t.Helper()
	for n := range 3 {
		before := a.files(t)["secret"]
		a.command(t, "rotate-secret", "--secret-file", "secret", "--previous-file", "previous")
		now := a.files(t)["secret"]
		if a.settings == "" {
			if previous := a.files(t)["previous"]; now == before || previous != before {
				t.Errorf("after rotation %d of %s the files have %s and %s", n, before, now, previous)
			}
			a.secrets = append(a.secrets, now)
		}
		for _, secret := range []string{now, before} {
			body := fmt.Appendf(nil, `{"event":"ping","number":%d,"first":%t}`, n, secret == now)
			if code := postSigned(t, "http://"+r.addr+"/"+a.name, secret, body); code/100 != 2 {
				t.Errorf("after rotation %d a webhook was answered %d", n, code)
			}
		}
		a.tell(t, 2)
	}
}

// reconcile enters what is missing, once.
func (a *account) reconcile(t *testing.T, r *postwire) {
	t.Helper()
	whole := len(a.lost) + len(a.told)
	if a.LateHistory > 0 {
		a.compare(t, r, reconcile.Report{})
		a.ahead.Store(int64(a.LateHistory + time.Minute))
	}
	a.compare(t, r, reconcile.Report{Uploads: whole, Known: len(a.told), Recovered: len(a.lost)})
	a.compare(t, r, reconcile.Report{Uploads: whole, Known: whole})
}

// compare runs reconcile and holds what it finds against what is wanted.
func (a *account) compare(t *testing.T, r *postwire, want reconcile.Report) {
	t.Helper()
	out, errs, code := r.ask(t, "reconcile", "--source", a.name, "--from", "3h", "-o", "json")
	a.tellsNothing(t, out+errs)
	if a.history != "" {
		if code != 1 || !strings.Contains(errs, a.history) {
			t.Errorf("reconcile ended with %d, want 1 and %q\n%s%s", code, a.history, out, errs)
		}
		return
	}
	var got reconcile.Report
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
		t.Fatalf("reconcile ended with %d\n%s%s", code, out, errs)
	}
	if len(got.Events) != want.Recovered {
		t.Errorf("%d events are named, want %d", len(got.Events), want.Recovered)
	}
	got.From, got.To, got.Events = want.From, want.To, nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reconcile (-want +got):\n%s", diff)
	}
}
