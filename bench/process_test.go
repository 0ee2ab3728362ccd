package bench

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/ingress"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
)

// What a process of this binary is, set in its environment, and what it needs.
const (
	roleVar   = "POSTWIRE_BENCH_ROLE"
	addrVar   = "POSTWIRE_BENCH_ADDR"
	configVar = "POSTWIRE_BENCH_CONFIG"

	profileVar = "POSTWIRE_BENCH_PROFILE" // file for a CPU profile
)

// The roles.
const (
	bare      = "bare net/http"         // reads the body and answers
	unstored  = "relay without journal" // the way of a request, but what is to be stored is thrown away
	unsynced  = "relay without sync"    // the relay on a disk that never syncs
	wholeway  = "relay"
	hookPath  = "/webhooks/upload-post"
	otherName = "other"
)

// play is the main function of a process. It returns when the process is told
// to end, or fails.
func play(role string) error {
	switch role {
	case bare:
		return http.ListenAndServe(os.Getenv(addrVar), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				w.WriteHeader(http.StatusAccepted)
			}
		}))
	case unstored:
		return serveUnstored(os.Getenv(addrVar))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if path := os.Getenv(profileVar); path != "" {
		end, err := profile(path)
		if err != nil {
			return err
		}
		defer end()
	}
	plan, err := app.Load(os.Getenv(configVar))
	if err != nil {
		return err
	}
	if role == unsynced {
		plan.Disk = unsyncedDisk{vfs.Default}
	}
	a, err := app.New(ctx, plan, app.LogTo(zap.NewNop()))
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// profile writes a CPU profile of this process until it is told to end.
func profile(path string) (end func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}, nil
}

// serveUnstored is the ingress with everything but a journal behind it.
func serveUnstored(addr string) error {
	src, err := uploadpost.New(uploadpost.Config{Timezone: "UTC", Auth: auth.Auth{None: true}}, source.Env{Name: "upload-post"})
	if err != nil {
		return err
	}
	server, err := ingress.New(ingress.Options{
		Config:  config.Default().Server,
		Routes:  []ingress.Route{{Name: "upload-post", Source: src, Settings: source.Settings{Paths: []string{hookPath}}}},
		Journal: nowhere{}, Log: zap.NewNop(), Metrics: ingress.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return server.Serve(l)
}

// nowhere takes events and keeps none.
type nowhere struct{}

func (nowhere) Append(_ context.Context, events ...event.Event) ([]journal.Receipt, error) {
	receipts := make([]journal.Receipt, len(events))
	for i, e := range events {
		receipts[i].ID = e.CloudEvent.ID()
	}
	return receipts, nil
}

func (nowhere) Quarantine(context.Context, journal.QuarantinedRequest) (string, error) {
	return "", errors.New("this keeps nothing")
}

// unsyncedDisk is a disk that says it has synced.
type unsyncedDisk struct{ vfs.FS }

func (d unsyncedDisk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return unsyncedOf(d.FS.Create(name, category))
}

func (d unsyncedDisk) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return unsyncedOf(d.FS.ReuseForWrite(old, name, category))
}

func (d unsyncedDisk) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return unsyncedOf(d.FS.OpenReadWrite(name, category, opts...))
}

func (d unsyncedDisk) OpenDir(name string) (vfs.File, error) { return unsyncedOf(d.FS.OpenDir(name)) }

func unsyncedOf(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

type unsyncedFile struct{ vfs.File }

func (unsyncedFile) Sync() error                { return nil }
func (unsyncedFile) SyncData() error            { return nil }
func (unsyncedFile) SyncTo(int64) (bool, error) { return true, nil }

// process is a server under load.
type process struct {
	role  string
	url   string // that takes webhooks
	admin string
	cmd   *exec.Cmd
}

// run starts a process and waits until it takes connections; it ends with the
// benchmark. A relay has the sinks, and a source for each path.
func run(tb testing.TB, role, sinks string) *process {
	tb.Helper()
	return runOn(tb, role, sinks, filepath.Join(tb.TempDir(), "journal"), 1)
}

func runOn(tb testing.TB, role, sinks, journalDir string, sources int) *process {
	tb.Helper()
	addr, admin, config := natstest.FreeAddr(tb), "", ""
	if role == wholeway || role == unsynced {
		admin = natstest.FreeAddr(tb)
		config = configure(tb, addr, admin, journalDir, sinks, sources)
	}
	return spawn(tb, role, addr, admin, config)
}

// spawn starts a process of this binary.
func spawn(tb testing.TB, role, addr, admin, config string) *process {
	tb.Helper()
	p := &process{role: role, url: "http://" + addr + hookPath, admin: admin, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), roleVar+"="+role, addrVar+"="+addr, configVar+"="+config)
	if role == wholeway && *profiles == "" { // the real binary holds less than this one
		p.cmd = exec.Command(program(tb), "serve", "-c", config)
	}
	if *profiles != "" {
		name := strings.NewReplacer("/", "_", " ", "_").Replace(tb.Name() + "_" + role)
		p.cmd.Env = append(p.cmd.Env, fmt.Sprintf("%s=%s", profileVar, filepath.Join(*profiles, name+".pprof")))
	}
	p.cmd.Stderr = os.Stderr
	p.start(tb)
	return p
}

// program is the real binary, built once.
var build struct {
	sync.Once
	dir, path string
	err       error
}

func program(tb testing.TB) string {
	tb.Helper()
	build.Do(func() {
		if build.dir, build.err = os.MkdirTemp("", "postwire-bench"); build.err != nil { //nolint:usetesting // it outlives the benchmark
			return
		}
		build.path = filepath.Join(build.dir, "postwire")
		cmd := exec.Command("go", "build", "-trimpath", "-o", build.path, "../cmd/postwire")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
		out, err := cmd.CombinedOutput()
		if err != nil {
			build.err = fmt.Errorf("building: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		tb.Fatal(build.err)
	}
	return build.path
}

// other starts the relay that -target and -start name.
func other(tb testing.TB, env ...string) *process {
	tb.Helper()
	p := &process{role: otherName, url: *target, cmd: exec.Command("sh", "-c", "exec "+*start)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = os.Stderr
	p.start(tb)
	return p
}

func configure(tb testing.TB, addr, admin, dir, sinks string, sources int) string {
	tb.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "server: {listen: %q}\nadmin: {listen: %q}\nlog: {level: error}\njournal: {dir: %q, min_free_bytes: 0}\nsources:\n", addr, admin, dir)
	for n := range sources {
		name := "upload-post"
		if n > 0 {
			name += "-" + strconv.Itoa(n)
		}
		fmt.Fprintf(&text, "  - {name: %s, type: uploadpost, paths: [/webhooks/%s], auth: none}\n", name, name)
	}
	fmt.Fprintf(&text, "sinks:\n%s\n", sinks)
	path := filepath.Join(tb.TempDir(), "postwire.yaml")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// none is a sink that takes nothing: the events are read for it, and dropped.
func none(name string) string {
	return fmt.Sprintf("  - {name: %s, type: stdout, filter: \"platform == 'nowhere'\"}\n", name)
}

// away is a sink whose broker is not there: all that comes is its backlog.
const away = "  - {name: away, type: nats, url: \"nats://127.0.0.1:1\", subject: x, stream: X, start: earliest}\n"

func (p *process) start(tb testing.TB) {
	tb.Helper()
	if err := p.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.stop)
	until(tb, p.role+" takes connections", func() bool {
		s, err := newSender(p.url)
		if err != nil {
			return false
		}
		_ = s.conn.Close()
		if p.admin == "" {
			return true
		}
		resp, err := http.Get("http://" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		return errors.Join(resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
	})
}

func (p *process) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	if *profiles != "" {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // the profile is written at the end
	} else {
		_ = p.cmd.Process.Kill()
	}
	_ = p.cmd.Wait() // it was told to end
}

// until waits for a condition.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited too long: %s", what)
		}
	}
}

// metric is the value of a series of the relay.
func (p *process) metric(tb testing.TB, series string) float64 {
	tb.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), series+" "); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return v
		}
	}
	tb.Fatalf("there is no series %s", series)
	return 0
}

// allocations is how many the process has made.
func (p *process) allocations(tb testing.TB) float64 {
	tb.Helper()
	return p.metric(tb, "go_memstats_mallocs_total")
}

// lag is how many events a sink has not been given yet.
func (p *process) lag(tb testing.TB, sink string) float64 {
	tb.Helper()
	return p.metric(tb, `postwire_sink_lag_events{sink="`+sink+`"}`)
}

// proc returns the value behind a name in a file of /proc of the process.
func (p *process) proc(tb testing.TB, file, name string) int64 {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("/proc/PID/%s does not tell %s", file, name)
	return 0
}

// rss is the memory that the process holds, in bytes.
func (p *process) rss(tb testing.TB) int64 { return p.proc(tb, "status", "VmRSS") << 10 }

// written is how many bytes the process has had the disk write.
func (p *process) written(tb testing.TB) int64 { return p.proc(tb, "io", "write_bytes") }

// cpu is the processor time that the process has used.
func (p *process) cpu(tb testing.TB) time.Duration {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime, proc(5)
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// about says what was measured, and with what. A test's binary does not know the
// versions of what is in it; the program does.
func about() (string, error) {
	info, err := buildinfo.ReadFile(build.path)
	if err != nil {
		return "", fmt.Errorf("reading the versions: %w", err)
	}
	versions := map[string]string{}
	for _, d := range info.Deps {
		versions[d.Path] = d.Version
	}
	kafka := "a Kafka in the test"
	if os.Getenv("POSTWIRE_TEST_KAFKA") != "" {
		kafka = strings.TrimSpace("Apache Kafka " + os.Getenv("KAFKA_VERSION"))
	}
	return fmt.Sprintf("%s, %s, nats-server %s in the test, nats.go %s, kafka-go %s, Pebble %s", runtime.Version(), kafka,
		versions["github.com/nats-io/nats-server/v2"], versions["github.com/nats-io/nats.go"], versions["github.com/segmentio/kafka-go"], versions["github.com/cockroachdb/pebble/v2"]), nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1000) }

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }
