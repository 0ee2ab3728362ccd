// Package bench measures the relay against what the machine allows. Figures
// are ratios within one run: machines are noisy, and differ.
//
//	go test -run '^$' -bench Accept -benchtime 5s ./bench
package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/dev"
)

// load is what a fleet of senders over kept connections achieves.
type load struct {
	perSecond float64
	p50, p99  time.Duration
}

// run posts n webhooks over some connections that are kept. Each sender waits
// for its answer before it sends the next.
func run(b *testing.B, url string, connections, n int, next *atomic.Int64) load {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: connections}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var left atomic.Int64
	left.Store(int64(n))
	times := make([][]time.Duration, connections)
	var senders sync.WaitGroup
	start := time.Now()
	for c := range connections {
		senders.Go(func() {
			for left.Add(-1) >= 0 {
				body := webhook(next.Add(1))
				began := time.Now()
				if err := post(client, url, body); err != nil {
					b.Error(err)
					return
				}
				times[c] = append(times[c], time.Since(began))
			}
		})
	}
	senders.Wait()
	took := time.Since(start)
	all := slices.Concat(times...)
	slices.Sort(all)
	if len(all) == 0 {
		b.Fatal("nothing was measured")
	}
	return load{float64(len(all)) / took.Seconds(), all[len(all)/2], all[len(all)*99/100]}
}

func post(client *http.Client, url string, body []byte) error {
	resp, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

var caption = strings.Repeat("Lorem ipsum dolor sit amet. ", 12)

// webhook is a payload of about 700 bytes, each an event of its own.
func webhook(number int64) []byte {
	return fmt.Appendf(nil, `{"event":"upload_completed","user_email":"user@example.com","profile_username":"profile%d","platform":"instagram","media_type":"video","title":"My Awesome Video","caption":"%s","result":{"success":true,"url":"https://www.instagram.com/p/%d/","publish_id":"%d","post_id":"%d","error":null},"created_at":"2024-03-15T14:30:00.000000"}`, number%100, caption, number, number, number)
}

// bareAddr, set in the environment, makes this binary the bare handler.
const bareAddr = "POSTWIRE_BENCH_BARE"

func TestMain(m *testing.M) {
	natstest.Serve()
	if addr := os.Getenv(bareAddr); addr != "" {
		fmt.Fprintln(os.Stderr, http.ListenAndServe(addr, http.HandlerFunc(bare)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bare is a handler that reads the body and answers, and nothing else.
func bare(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// server starts a process that listens on addr, and ends it with the benchmark.
func server(b *testing.B, addr string, cmd *exec.Cmd) {
	b.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(end) {
			b.Fatal(err)
		}
	}
}

func freeAddr(b *testing.B) string {
	b.Helper()
	port, err := dev.FreePort(20000 + rand.IntN(10000))
	if err != nil {
		b.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// relay is the real binary, with a journal on disk and one sink.
func relay(b *testing.B) (url string) {
	b.Helper()
	dir, addr := b.TempDir(), freeAddr(b)
	binary, config := filepath.Join(dir, "postwire"), filepath.Join(dir, "postwire.yaml")
	if out, err := exec.Command("go", "build", "-o", binary, "../cmd/postwire").CombinedOutput(); err != nil {
		b.Fatalf("building: %v\n%s", err, out)
	}
	text := fmt.Sprintf(`
server: {listen: %q}
admin: {listen: "127.0.0.1:0"}
log: {level: warn}
journal: {dir: %q, min_free_bytes: 0}
sources: [{name: upload-post, type: uploadpost, paths: [/webhooks/upload-post], auth: none}]
sinks: [{name: none, type: stdout, filter: "platform = 'nowhere'"}]
`, addr, filepath.Join(dir, "journal"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	server(b, addr, exec.Command(binary, "serve", "-c", config))
	return "http://" + addr + "/webhooks/upload-post"
}

// handler is the bare handler in a process of its own.
func handler(b *testing.B) (url string) {
	b.Helper()
	addr := freeAddr(b)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), bareAddr+"="+addr)
	server(b, addr, cmd)
	return "http://" + addr + "/"
}

// BenchmarkAccept is durable accepts a second through HTTP, signature aside:
// parse, dedupe, synced append, answer. Beside it, in the same run and by
// turns, a bare handler that only reads the body. Client, relay and handler are
// three processes.
func BenchmarkAccept(b *testing.B) {
	for _, connections := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			bareURL, url := handler(b), relay(b)
			var next atomic.Int64
			run(b, bareURL, connections, 2000, &next) // warm
			run(b, url, connections, 2000, &next)
			const turns = 5
			var ratios []float64
			var relays, bares []load
			b.ResetTimer()
			for range turns {
				n := max(b.N/turns, 200*connections)
				bares = append(bares, run(b, bareURL, connections, n, &next))
				relays = append(relays, run(b, url, connections, n, &next))
				ratios = append(ratios, relays[len(relays)-1].perSecond/bares[len(bares)-1].perSecond)
			}
			b.StopTimer()
			slices.Sort(ratios)
			r, p := middle(relays), middle(bares)
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
			b.ReportMetric(r.perSecond, "accepts/s")
			b.ReportMetric(float64(r.p50.Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(r.p99.Microseconds())/1000, "p99-ms")
			b.ReportMetric(p.perSecond, "bare/s")
			b.ReportMetric(float64(p.p50.Microseconds())/1000, "bare-p50-ms")
			b.ReportMetric(float64(p.p99.Microseconds())/1000, "bare-p99-ms")
			b.ReportMetric(0, "ns/op") // of no meaning here
		})
	}
}
