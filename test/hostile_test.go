package test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/source/auth"
)

// victim is a relay that is attacked, and what it was like before.
type victim struct {
	*postwire
	scheme string
	client *http.Client
	number atomic.Int64 // of good webhooks

	rssBefore        int
	goroutinesBefore int
	medianBefore     time.Duration

	mu       sync.Mutex
	statuses map[int]int // of all answers to attacks
}

// The limits that a victim has, shorter in time than the defaults.
const (
	victimHeaderTime = time.Second
	victimReadTime   = 2 * time.Second
	victimBody       = 1 << 20
	victimHeader     = 64 << 10
)

// startVictim starts a relay with a signed source and two that are open, and
// more keys of server, such as "tls: {…}".
func startVictim(t *testing.T, server ...string) *victim {
	t.Helper()
	// It collects sooner than it would, so that what is still in use shows.
	t.Setenv("GOGC", "50")
	keys := append([]string{`listen: "${INGRESS}"`, "shutdown_delay: 0s", "read_header_timeout: 1s", "read_timeout: 2s"}, server...)
	r := start(t, fmt.Sprintf(`
server: {%s}
admin: {listen: "${ADMIN}"}
log: {level: error}
journal: {dir: %q, min_free_bytes: 0}
sources:
  - {name: upload-post, type: uploadpost, paths: [/webhooks/upload-post], auth: {signature: {secrets: ["${SECRET}"]}}}
  - {name: open, type: uploadpost, paths: [/open], auth: none}
  - {name: events, type: cloudevents, paths: [/events], auth: none}
sinks:
  - {name: out, type: stdout}
`, strings.Join(keys, ", "), filepath.Join(t.TempDir(), "journal")))
	v := &victim{
		postwire: r, scheme: "http", statuses: map[int]int{},
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	t.Cleanup(v.client.CloseIdleConnections)
	if len(server) > 0 && strings.HasPrefix(server[0], "tls:") {
		v.scheme = "https"
	}
	for range 5 { // what is needed once is there
		v.median(t)
	}
	v.medianBefore, v.rssBefore, v.goroutinesBefore = v.median(t), r.rss(t), v.goroutines(t)
	return v
}

// good posts a signed webhook, which must be accepted.
func (v *victim) good(t *testing.T) time.Duration {
	t.Helper()
	body := upload(7, int(v.number.Add(1)))
	req, err := http.NewRequest(http.MethodPost, v.scheme+"://"+v.addr+"/webhooks/upload-post", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := auth.UploadPost.Sign(req.Header, secret, "", time.Now(), body); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	resp, err := v.client.Do(req)
	if err != nil {
		t.Fatalf("a good webhook: %v", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("a good webhook was answered %s, %v", resp.Status, err)
	}
	return time.Since(began)
}

// unsigned posts a large webhook that must be refused.
func (v *victim) unsigned(t *testing.T) {
	t.Helper()
	resp, err := v.client.Post(v.scheme+"://"+v.addr+"/webhooks/upload-post", "application/json", io.LimitReader(&loop{text: " "}, victimBody))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Fatalf("an unsigned webhook was answered %s", resp.Status)
	}
}

// median is what a good webhook usually takes.
func (v *victim) median(t *testing.T) time.Duration {
	t.Helper()
	var times []time.Duration
	for range 20 {
		times = append(times, v.good(t))
	}
	return quantile(times, 0.5)
}

func (v *victim) goroutines(t *testing.T) int {
	t.Helper()
	return int(v.value(t, "go_goroutines"))
}

func (v *victim) value(t *testing.T, series string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(v.metric(t, series), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// answers holds a relay that is under attack to its usual answers.
func (v *victim) answers(t *testing.T) {
	t.Helper()
	during := v.median(t)
	t.Logf("under attack: a good webhook takes %v, before %v; memory %d MiB, before %d MiB", during, v.medianBefore, v.rss(t)>>20, v.rssBefore>>20)
	if during > 2*time.Second {
		t.Errorf("under attack a good webhook takes %v", during)
	}
}

// recovers holds a relay that was attacked to what it was before: its answers,
// its memory, its goroutines. No answer was one of a server's fault.
func (v *victim) recovers(t *testing.T) {
	t.Helper()
	peak := v.rss(t)
	began := time.Now()
	eventually(t, "the relay's goroutines are those of before", func() bool { return v.goroutines(t) <= v.goroutinesBefore+20 })
	eventually(t, "the relay's memory is that of before, and 64 MiB", func() bool {
		if v.rss(t) <= v.rssBefore+64<<20 {
			return true
		}
		// Go gives memory back once it collects, which is when as much again
		// has been asked for, or after minutes. These are large, and refused.
		for range 20 {
			v.unsigned(t)
		}
		return false
	})
	back := time.Since(began)
	after := v.median(t)
	t.Logf("a good webhook takes %v, before %v; memory %d MiB after the attack, %d MiB %v later, before %d MiB; answers %v",
		after, v.medianBefore, peak>>20, v.rss(t)>>20, back.Round(time.Millisecond), v.rssBefore>>20, v.statuses)
	if limit := pick(2*time.Second, 3*v.medianBefore+20*time.Millisecond); after > limit {
		t.Errorf("a good webhook takes %v, before %v", after, v.medianBefore)
	}
	for status, n := range v.statuses {
		if status >= 500 {
			t.Errorf("%d requests were answered %d", n, status)
		}
	}
	for _, source := range []string{"upload-post", "open", "events"} {
		for _, outcome := range []string{"panic", "unavailable"} {
			if n := v.metric(t, fmt.Sprintf("postwire_received_total{outcome=%q,source=%q}", outcome, source)); n != "0" {
				t.Errorf("%s: %q requests of %s", outcome, n, source)
			}
		}
	}
}

// bounded samples the memory until stop, and holds it to a limit.
func (v *victim) bounded(t *testing.T, limit int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var peak int
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; {
			peak = max(peak, v.rss(t))
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
		t.Logf("at most %d MiB, before %d MiB", peak>>20, v.rssBefore>>20)
		if peak > v.rssBefore+limit {
			t.Errorf("the relay took %d MiB more, at most %d MiB are allowed", (peak-v.rssBefore)>>20, limit>>20)
		}
	}
}

// dial opens a connection, which is closed when the test ends.
func (v *victim) dial(t *testing.T) net.Conn {
	t.Helper()
	return v.dialFrom(t, -1)
}

// dialFrom is dial from one of many addresses, by its number.
func (v *victim) dialFrom(t *testing.T, from int) net.Conn {
	t.Helper()
	conn, err := dialerFrom(from).Dial("tcp", v.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// raw sends bytes and returns the statuses of the answers to them, up to the
// end of the connection, which the relay must bring about: what is sent ends
// with "Connection: close", or is an attack after which it hangs up. A reset
// before an answer gives none.
func (v *victim) raw(t *testing.T, text string) (statuses []int) {
	t.Helper()
	return v.send(t, strings.NewReader(text))
}

func (v *victim) send(t *testing.T, r io.Reader) (statuses []int) {
	t.Helper()
	conn := v.dial(t)
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(conn, r) // the relay may hang up in its midst
	}()
	statuses = v.read(t, conn)
	_ = conn.Close()
	<-sent
	return statuses
}

// read returns the statuses of all answers on a connection until its end.
func (v *victim) read(t *testing.T, conn net.Conn) (statuses []int) {
	t.Helper()
	answers := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Error("the relay did not end the connection")
			}
			return statuses
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
		v.mu.Lock()
		v.statuses[resp.StatusCode]++
		v.mu.Unlock()
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// each runs an attack n times at once.
func each(n int, attack func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { attack(i) })
	}
	wg.Wait()
}

// signed is the header of a good webhook.
func signed(t *testing.T, body []byte) string {
	t.Helper()
	h := http.Header{}
	if err := auth.UploadPost.Sign(h, secret, "", time.Now(), body); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := h.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestHostileSlowHeaders: headers that arrive a byte at a time are cut off in
// time, and meanwhile everybody else is served.
func TestHostileSlowHeaders(t *testing.T) {
	v := startVictim(t)
	n := pick(500, 5000)
	began := time.Now()
	var closed atomic.Int64
	var attack sync.WaitGroup
	attack.Go(func() {
		each(n, func(int) {
			conn := v.dial(t)
			defer conn.Close()
			_, _ = io.WriteString(conn, "POST /open HTTP/1.1\r\nHost: x\r\n")
			done := make(chan struct{})
			go func() {
				defer close(done)
				for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
					if _, err := io.WriteString(conn, "X-A: b\r\n"); err != nil {
						tick.Stop()
						return
					}
				}
			}()
			v.read(t, conn)
			closed.Add(1)
			_ = conn.Close()
			<-done
		})
	})
	v.answers(t)
	attack.Wait()
	if took := time.Since(began); closed.Load() != int64(n) || took > victimHeaderTime+10*time.Second {
		t.Errorf("%d of %d connections were ended in %v", closed.Load(), n, took)
	}
	v.recovers(t)
}

// TestHostileSlowBody: bodies that are announced and do not come take neither
// the memory that they announce nor more than their time.
func TestHostileSlowBody(t *testing.T) {
	v := startVictim(t)
	n := pick(1000, 5000)
	stop := v.bounded(t, 64<<20+n*64<<10)
	var attack sync.WaitGroup
	attack.Go(func() {
		each(n, func(int) {
			conn := v.dial(t)
			defer conn.Close()
			fmt.Fprintf(conn, "POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{", victimBody)
			if got := v.read(t, conn); len(got) != 1 || got[0] != http.StatusRequestTimeout {
				t.Errorf("answered %v", got)
			}
		})
	})
	eventually(t, "the connections are there", func() bool { return v.goroutines(t) > n })
	v.answers(t)
	if heap := v.value(t, "go_memstats_heap_alloc_bytes"); heap > 64<<20+float64(n*32<<10) {
		t.Errorf("there are %.0f MiB for bodies that have not come", heap/(1<<20))
	}
	attack.Wait()
	stop()
	v.recovers(t)
}

// TestHostileIdleConnections: connections that do nothing cost little, and
// nobody else's time.
func TestHostileIdleConnections(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	raised := limit
	raised.Cur = raised.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised); err == nil {
		limit = raised
		// The relay is given ours, and some files besides its connections.
	}
	n := min(10000, int(limit.Cur)-1000)
	if n < 4000 {
		t.Fatalf("%d files may be open, which is too few", limit.Cur)
	}
	t.Logf("%d connections", n)
	v := startVictim(t, fmt.Sprintf("max_connections: %d", n+100), "idle_timeout: 60s", "max_buffered_bytes: 512MiB")
	conns := make([]net.Conn, n)
	body := upload(8, 8)
	post := fmt.Sprintf("POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	each(50, func(worker int) {
		for i := worker; i < n; i += 50 {
			conn := v.dialFrom(t, i%100) // one address would have a quarter of them
			if _, err := io.WriteString(conn, post); err != nil {
				t.Error(err)
				return
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Error(err)
				return
			}
			_ = resp.Body.Close()
			conns[i] = conn
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	if open := v.goroutines(t); open < n {
		t.Fatalf("the relay has %d goroutines for %d connections", open, n)
	}
	v.answers(t)
	if more := v.rss(t) - v.rssBefore; more > n*40<<10 {
		t.Errorf("an idle connection takes %d KiB", more/n>>10)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	v.recovers(t)
}

// TestHostileConnectionLimit: who comes when all connections are taken waits,
// and is served as soon as those who do nothing have run out of time.
func TestHostileConnectionLimit(t *testing.T) {
	v := startVictim(t, "max_connections: 100", "idle_timeout: 1s")
	v.client.CloseIdleConnections()
	began := time.Now()
	for range 300 {
		v.dial(t) // and says nothing
	}
	v.good(t)
	t.Logf("a good webhook behind 300 connections of 100 took %v", time.Since(began))
	v.recovers(t)
}

// TestHostilePipelinedGarbage: what is no request ends the connection, and what
// came before it is answered.
func TestHostilePipelinedGarbage(t *testing.T) {
	v := startVictim(t)
	each(pick(100, 1000), func(i int) {
		garbage := make([]byte, 64<<10)
		seed := rand.New(rand.NewPCG(uint64(i), 1))
		for k := range garbage {
			garbage[k] = byte(seed.Uint32())
		}
		got := v.raw(t, "POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"+string(garbage))
		if len(got) == 0 || got[0] != http.StatusBadRequest || len(got) > 2 {
			t.Errorf("answered %v", got)
		}
	})
	// Answers that nobody reads do not pile up.
	stop := v.bounded(t, 128<<20)
	each(20, func(int) {
		conn := v.dial(t)
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(conn, io.LimitReader(endless("GET /open HTTP/1.1\r\nHost: x\r\n\r\n"), 64<<20))
	})
	stop()
	v.recovers(t)
}

// loop is a text without end.
type loop struct {
	text string
	at   int
}

func (l *loop) Read(p []byte) (n int, err error) {
	for n < len(p) {
		copied := copy(p[n:], l.text[l.at:])
		n, l.at = n+copied, (l.at+copied)%len(l.text)
	}
	return n, nil
}

func endless(text string) io.Reader { return &loop{text: text} }

// behind is a text without end behind another one.
func behind(first, text string) io.Reader {
	return io.MultiReader(strings.NewReader(first), endless(text))
}

// TestHostileOversizedBody: too much is refused by what is announced, and by
// what comes.
func TestHostileOversizedBody(t *testing.T) {
	v := startVictim(t)
	stop := v.bounded(t, pick(192<<20, 384<<20))
	chunk := fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat("x", 0x10000))
	for _, tt := range []struct {
		name, header, first, then string
		want                      []int
	}{
		{"one byte over", fmt.Sprintf("Content-Length: %d", victimBody+1), "", "x", []int{413}},
		{"a terabyte", "Content-Length: 1099511627776", "", "x", []int{413}},
		{"more than there are numbers", "Content-Length: 99999999999999999999", "", "x", []int{400}},
		{"less than nothing", "Content-Length: -1", "", "x", []int{400}},
		{"chunks without end", "Transfer-Encoding: chunked", "", chunk, []int{413}},
		{"a chunk of a terabyte", "Transfer-Encoding: chunked", "10000000000\r\n", "x", []int{413}},
		{"a chunk larger than numbers", "Transfer-Encoding: chunked", "fffffffffffffffff\r\n", "x", []int{400}},
		{"chunks of a byte", "Transfer-Encoding: chunked", "", "1\r\nx\r\n", []int{400, 408, 413}},
		{"an endless extension of a chunk", "Transfer-Encoding: chunked", "1;", "x", []int{400}},
		{"an endless trailer", "Transfer-Encoding: chunked", "0\r\n", "A: b\r\n", []int{400}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var answered atomic.Int64
			each(pick(8, 64), func(int) {
				got := v.send(t, behind("POST /open HTTP/1.1\r\nHost: x\r\n"+tt.header+"\r\n\r\n"+tt.first, tt.then))
				answered.Add(int64(len(got)))
				// A reset may come before the answer is read.
				if len(got) > 1 || len(got) == 1 && !slices.Contains(tt.want, got[0]) {
					t.Errorf("answered %v, want %v", got, tt.want)
				}
			})
			if answered.Load() == 0 {
				t.Error("there was no answer")
			}
		})
	}
	stop()
	v.recovers(t)
}

// TestHostileDeepJSON: a body that nests deep is refused without a reader that
// goes as deep.
func TestHostileDeepJSON(t *testing.T) {
	v := startVictim(t)
	stop := v.bounded(t, pick(256<<20, 768<<20))
	deep := strings.Repeat("[", victimBody-200)
	for name, body := range map[string]string{
		"brackets":       deep,
		"braces":         strings.Repeat(`{"a":`, (victimBody-200)/5),
		"in a field":     `{"event":"x","a":` + deep,
		"in an envelope": `{"specversion":"1.0","id":"1","source":"s","type":"t","data":` + deep,
		"in a batch":     "[" + deep,
		"wide":           `{"event":"x","a":[` + strings.Repeat("[],", (victimBody-200)/3) + "[]]}",
		"many events":    manyEvents(),
		"many names":     `{` + strings.TrimSuffix(strings.Repeat(`"a":1,`, (victimBody-200)/6), ",") + "}",
	} {
		t.Run(name, func(t *testing.T) {
			for _, way := range []struct{ path, contentType string }{
				{"/open", "application/json"},
				{"/events", "application/cloudevents+json"},
				{"/events", "application/cloudevents-batch+json"},
				{"/webhooks/upload-post", "application/json"},
			} {
				want, times := http.StatusBadRequest, pick(4, 32)
				head := "Content-Type: " + way.contentType + "\r\n"
				if way.path == "/webhooks/upload-post" { // what is proven is set aside
					want, times, head = http.StatusAccepted, 1, signed(t, []byte(body))
				}
				if name == "wide" && strings.HasPrefix(way.contentType, "application/json") {
					want = http.StatusAccepted // it is not deep
				}
				each(times, func(int) {
					began := time.Now()
					got := v.raw(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", way.path, head, len(body), body))
					ok := len(got) == 1 && (got[0] == want || want == http.StatusAccepted && got[0] == http.StatusOK)
					if took := time.Since(began); !ok || took > 10*time.Second {
						t.Errorf("%s %s: answered %v in %v, want %d", way.path, way.contentType, got, took, want)
					}
				})
			}
		})
	}
	stop()
	v.recovers(t)
}

// manyEvents is a batch of as many events as a body has room for.
func manyEvents() string {
	var b strings.Builder
	for i := 0; b.Len() < victimBody-200; i++ { // which is more than max_batch
		fmt.Fprintf(&b, `,{"specversion":"1.0","id":"%d","source":"s","type":"t"}`, i)
	}
	return "[" + b.String()[1:] + "]"
}

// TestHostileGzipBomb: a body that inflates is refused before it has.
func TestHostileGzipBomb(t *testing.T) {
	v := startVictim(t)
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	if _, err := io.Copy(w, io.LimitReader(endless(" "), pick[int64](256<<20, 900<<20))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB", bomb.Len()>>10)
	stop := v.bounded(t, pick(128<<20, 192<<20))
	for _, encoding := range []string{"gzip", "x-gzip", "GZIP", "gzip, gzip", "deflate", "br"} {
		for _, path := range []string{"/open", "/webhooks/upload-post", "/events"} {
			each(pick(4, 16), func(int) {
				got := v.raw(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s",
					path, encoding, bomb.Len(), bomb.String()))
				for _, status := range got {
					if status != http.StatusRequestEntityTooLarge && status != http.StatusUnsupportedMediaType {
						t.Errorf("%s on %s: answered %v", encoding, path, got)
					}
				}
				if len(got) > 1 {
					t.Errorf("%s on %s: answered %v", encoding, path, got)
				}
			})
		}
	}
	stop()
	v.recovers(t)
}

// TestHostileHeaders: headers that are too many or too large are refused, and
// those that just are not cost little.
func TestHostileHeaders(t *testing.T) {
	v := startVictim(t)
	stop := v.bounded(t, 192<<20)
	var small strings.Builder
	for i := range 240 {
		fmt.Fprintf(&small, "A%d: %s\r\n", i, strings.Repeat("b", 250))
	}
	var many strings.Builder
	for i := 0; many.Len() < victimHeader-1000; i++ {
		fmt.Fprintf(&many, "A%d: b\r\n", i)
	}
	const head = "POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
	t.Run("each", func(t *testing.T) {
		for _, tt := range []struct {
			name string
			text io.Reader
			want int
		}{
			{"many that are allowed", strings.NewReader(head + "Connection: close\r\n" + small.String() + "\r\n"), 400},
			{"many of attributes", strings.NewReader(strings.Replace(head, "/open", "/events", 1) + "Connection: close\r\n" + strings.ReplaceAll(small.String(), "A", "ce-a") + "\r\n"), 0},
			{"many small ones", strings.NewReader(head + "Connection: close\r\n" + many.String() + "\r\n"), 431},
			{"without end", behind(head, "A: b\r\n"), 431},
			{"one without end", behind(head+"A: ", "x"), 431},
			{"a name without end", behind(head, "x"), 431},
			{"a request line without end", behind("POST /", "x"), 431},
			{"a method without end", endless("x"), 431},
			{"an obsolete fold", strings.NewReader("POST /open HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), 400},
			{"a control character", strings.NewReader(head + "A: b\x00c\r\nConnection: close\r\n\r\n"), 400},
			{"a space before the colon", strings.NewReader(head + "A : b\r\nConnection: close\r\n\r\n"), 400},
			{"no name", strings.NewReader(head + ": b\r\nConnection: close\r\n\r\n"), 400},
			{"no host", strings.NewReader("POST /open HTTP/1.1\r\nConnection: close\r\n\r\n"), 400},
			{"two hosts", strings.NewReader(head + "Host: y\r\nConnection: close\r\n\r\n"), 400},
			{"a host that is none", strings.NewReader("POST /open HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n"), 400},
		} {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				got := v.send(t, tt.text)
				switch {
				case len(got) == 0 && tt.want == 431: // the answer was lost to the reset
				case len(got) != 1, tt.want != 0 && got[0] != tt.want, got[0] < 400:
					t.Errorf("answered %v, want %d", got, tt.want)
				}
			})
		}
	})
	each(pick(50, 500), func(int) { v.raw(t, head+"Connection: close\r\n"+many.String()+"\r\n") })
	stop()
	v.recovers(t)
}

// TestHostilePaths: a path leads somewhere only as it is written in the
// configuration, and webhooks come by POST only.
func TestHostilePaths(t *testing.T) {
	v := startVictim(t)
	number := 0
	ask := func(t *testing.T, line string) []int {
		t.Helper()
		number++
		body := upload(3, number) // it would be taken if it got through
		return v.raw(t, fmt.Sprintf("%s\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", line, signed(t, body), len(body), body))
	}
	for _, tt := range []struct {
		target string
		want   int
	}{
		{"/webhooks/upload-post", 202},
		{"/webhooks/upload-post?a=/../b", 202},
		{"http://elsewhere.example/webhooks/upload-post", 202}, // RFC 9112, section 3.2.2
		{"/webhooks/upload%2dpost", 202},                       // is the same URL
		{"/webhooks/../webhooks/upload-post", 404},
		{"/./webhooks/upload-post", 404},
		{"//webhooks/upload-post", 404},
		{"/webhooks//upload-post", 404},
		{"/webhooks/upload-post/", 404},
		{"/webhooks/upload-post/.", 404},
		{"/webhooks/upload-post/..", 404},
		{"/%2e%2e/webhooks/upload-post", 404},
		{"/webhooks/%2e%2e/webhooks/upload-post", 404},
		{"/webhooks%2fupload-post", 404},
		{"/webhooks%2Fupload-post", 404},
		{"/webhooks/upload-post%2f", 404},
		{"/webhooks%5cupload-post", 404},
		{`/webhooks\upload-post`, 404},
		{"/webhooks/upload-post;a=b", 404},
		{"/webhooks/upload-post%00", 404},
		{"/webhooks/upload-post%0d%0aX:%20y", 404},
		{"/WEBHOOKS/UPLOAD-POST", 404},
		{"/webhooks/upload%252dpost", 404},
		{"/webhooks/%zz", 400},
		{"/webhooks/upload-post\x00", 400},
		{"/webhooks/upload-post\x7f", 400},
		{"webhooks/upload-post", 400},
		{"", 400},
		{"x:80", 404},
		{"*", 404},
		{"file:///etc/passwd", 404},
		{"http:///webhooks/upload-post", 202}, // Host says the rest
		{"/" + strings.Repeat("a", 60000), 404},
		{"/" + strings.Repeat("../", 20000), 404},
		{"/" + strings.Repeat("a", 100000), 431},
	} {
		t.Run(tt.target[:min(40, len(tt.target))], func(t *testing.T) {
			if got := ask(t, "POST "+tt.target+" HTTP/1.1"); len(got) != 1 || got[0] != tt.want {
				t.Errorf("answered %v, want %d", got, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		line string
		want []int
	}{
		{"GET /webhooks/upload-post HTTP/1.1", []int{405}},
		{"PUT /webhooks/upload-post HTTP/1.1", []int{405}},
		{"PATCH /webhooks/upload-post HTTP/1.1", []int{405}},
		{"DELETE /webhooks/upload-post HTTP/1.1", []int{405}},
		{"OPTIONS /webhooks/upload-post HTTP/1.1", []int{405}},
		{"TRACE /webhooks/upload-post HTTP/1.1", []int{405}},
		{"post /webhooks/upload-post HTTP/1.1", []int{405}},
		{"POSTPOST /webhooks/upload-post HTTP/1.1", []int{405}},
		{"CONNECT /webhooks/upload-post HTTP/1.1", []int{405}},
		{"CONNECT x:80 HTTP/1.1", []int{404}},
		{"PO\x00ST /webhooks/upload-post HTTP/1.1", []int{400}},
		{"POST  /webhooks/upload-post HTTP/1.1", []int{400}},
		{"POST /webhooks/upload-post HTTP/1.1 x", []int{400}},
		{"POST /webhooks/upload-post", []int{400}},
		{"POST /webhooks/upload-post HTTP/x", []int{400}},
	} {
		t.Run(tt.line, func(t *testing.T) {
			if got := ask(t, tt.line); len(got) != 1 || got[0] != tt.want[0] {
				t.Errorf("answered %v, want %v", got, tt.want)
			}
		})
	}
	v.recovers(t)
}

// TestHostileSmuggling: where a proxy might see one request, the relay does not
// see two.
func TestHostileSmuggling(t *testing.T) {
	v := startVictim(t)
	const (
		head     = "POST /open HTTP/1.1\r\nHost: x\r\n"
		smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	)
	with := func(header, body string) string { return head + header + "\r\n\r\n" + body }
	for _, tt := range []struct {
		name, text string
		want       int
	}{
		{"a length and chunks", with("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"+smuggled), 400},
		{"chunks and a length", with("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 400},
		{"a length that counts the second one", with(fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked", 5+len(smuggled)), "0\r\n\r\n"+smuggled), 400},
		{"two lengths", with("Content-Length: 2\r\nContent-Length: 40", "{}"+smuggled), 400},
		{"two lengths in one", with("Content-Length: 2, 40", "{}"+smuggled), 400},
		{"a length with a sign", with("Content-Length: +2", "{}"+smuggled), 400},
		{"a length in hex", with("Content-Length: 0x2", "{}"+smuggled), 400},
		{"a length behind a fold", with("Connection: close\r\nContent-Length:\r\n 2", "{}"+smuggled), 400}, // a fold is a space (RFC 9112, section 5.2)
		{"a length with a space before the colon", with("Content-Length : 2", "{}"+smuggled), 400},
		{"chunks with a space before the colon", with("Transfer-Encoding : chunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 400},
		{"chunks behind a fold", with("Transfer-Encoding:\r\n chunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 400},
		{"chunks of another name", with("Transfer-Encoding: xchunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 501}, // RFC 9112, section 6.1
		{"chunks twice", with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"+smuggled), 501},
		{"chunks behind a tab", with("Transfer-Encoding:\x0bchunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 400},
		{"chunks behind identity", with("Transfer-Encoding: identity, chunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 501},
		{"a size with a sign", with("Transfer-Encoding: chunked", "+0\r\n\r\n"+smuggled), 400},
		{"a size in 0x", with("Transfer-Encoding: chunked", "0x0\r\n\r\n"+smuggled), 400},
		{"a chunk that is longer than its size", with("Transfer-Encoding: chunked", "2\r\n{}x\r\n0\r\n\r\n"+smuggled), 400},
		{"an extension with a line feed", with("Transfer-Encoding: chunked", "2;\n{}\r\n0\r\n\r\n"+smuggled), 400},
		{"a length in the trailer", with("Transfer-Encoding: chunked\r\nTrailer: Content-Length", "0\r\nContent-Length: 40\r\n\r\n"+smuggled), 400},
		{"a bare carriage return", with("X: y\rTransfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"+smuggled), 400},
		{"in a value", with("Content-Length: 2\r\nX: y\r\n\x00Transfer-Encoding: chunked", "{}"+smuggled), 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := v.raw(t, tt.text)
			if len(got) != 1 || got[0] != tt.want {
				t.Errorf("answered %v, want %d once, and the end of the connection", got, tt.want)
			}
			if tt.want == http.StatusNotImplemented {
				v.mu.Lock() // which is as it must be
				delete(v.statuses, http.StatusNotImplemented)
				v.mu.Unlock()
			}
		})
	}
	if n := v.metric(t, `postwire_received_total{outcome="not_found",source=""}`); n != "" && n != "0" {
		t.Errorf("%s smuggled requests were seen", n)
	}
	v.recovers(t)
}

// TestHostileHTTP2 resets streams as soon as they are opened, and floods a
// connection in the other ways that HTTP/2 has.
func TestHostileHTTP2(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfsigned.Certificate(t, dir, "relay")
	v := startVictim(t, fmt.Sprintf("tls: {cert_file: %q, key_file: %q}", cert, key))
	stop := v.bounded(t, 192<<20)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/open"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	n := pick(20000, 1000000)
	for _, tt := range []struct {
		name  string
		frame func(f *http2.Framer, i int) error
		ends  bool // by the relay, as too much
	}{
		{"rapid reset", func(f *http2.Framer, i int) error {
			stream := uint32(2*i + 1)
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
				return err
			}
			return f.WriteRSTStream(stream, http2.ErrCodeCancel)
		}, false},
		{"streams that are never ended", func(f *http2.Framer, i int) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: block.Bytes(), EndHeaders: true})
		}, true},
		{"continuation without end", func(f *http2.Framer, i int) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()})
			}
			return f.WriteContinuation(1, false, []byte(strings.Repeat("\x00\x01a\x01b", 200)))
		}, true},
		{"pings", func(f *http2.Framer, i int) error { return f.WritePing(false, [8]byte{byte(i)}) }, false},
		{"settings", func(f *http2.Framer, i int) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		}, false},
		{"empty data", func(f *http2.Framer, i int) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
			}
			return f.WriteData(1, false, nil)
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var attack sync.WaitGroup
			attack.Go(func() { each(pick(2, 8), func(int) { v.http2(t, n, tt.frame, tt.ends) }) })
			v.answers(t)
			attack.Wait()
		})
	}
	stop()
	v.recovers(t)
}

// http2 sends frames over one connection, until it has sent all or the relay
// ends it.
func (v *victim) http2(t *testing.T, n int, frame func(f *http2.Framer, i int) error, ends bool) {
	t.Helper()
	conn, err := tls.Dial("tcp", v.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(pick(3*time.Second, time.Minute))); err != nil {
		t.Error(err)
		return
	}
	out := bufio.NewWriterSize(conn, 64<<10)
	_, _ = out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(out, conn)
	ended := make(chan struct{})
	go func() { // answers are read as fast as they come
		defer close(ended)
		for {
			got, err := f.ReadFrame()
			if err != nil {
				return
			}
			if _, away := got.(*http2.GoAwayFrame); away {
				return
			}
		}
	}()
	err = f.WriteSettings()
	for i := 0; i < n && err == nil; i++ {
		err = frame(f, i)
		select {
		case <-ended:
			i = n
		default:
		}
	}
	if err == nil {
		err = out.Flush()
	}
	if ends && err == nil {
		<-ended // or the deadline
	}
	_ = conn.Close()
	<-ended
	if ends && isTimeout(err) {
		t.Errorf("the relay did not end the connection: %v", err)
	}
}
