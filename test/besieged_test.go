package test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/postwire/postwire/internal/figures"
	"github.com/postwire/postwire/pkg/source/auth"
)

// What must hold while a relay is attacked, with the default limits.
const (
	memoryLimit  = 1 << 30 // of the process, as the chart sets it
	honestP99    = time.Second
	idleAfter    = 3 * time.Second
	tableHostile = "hostile"
)

var hostileResults = figures.NewBook(map[string]string{
	tableHostile: "| attack | peak memory | honest webhooks | refused | p50, without → with the attack | p99, without → with the attack | idle again | ended on SIGTERM |\n|---|---|---|---|---|---|---|---|",
})

// dialerFrom connects from one of many addresses of this machine, by its number; -1
// is the usual one.
func dialerFrom(from int) *net.Dialer {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if from >= 0 {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 1, byte(from>>8), byte(from))}
	}
	return d
}

// besieged is a relay that is attacked, and an honest sender of one of its sources.
type besieged struct {
	*postwire
	scheme   string
	path     string      // to which the honest sender sends
	header   http.Header // that the honest sender adds
	size     int         // of its bodies, more or less; 0 is small
	secret   func() string
	number   int
	during   time.Duration // how long the attack lasts; 0 is the usual time
	patience time.Duration // of the honest sender; 0 is the usual one
	warm     *http.Client  // keeps its connection; the others do not
}

// sources are two sources of one kind, with a secret each, and one that is open.
const besiegedSources = `
sources:
  - {name: honest, type: uploadpost, paths: [/honest], auth: {signature: {secrets: ["${SECRET}"]}}}
  - {name: attacked, type: uploadpost, paths: [/attacked], auth: {signature: {secrets: ["${SECRET}"]}}}
  - {name: github, type: webhook, preset: github, paths: [/github], auth: {signature: {secrets: ["${SECRET}"]}}}
  - {name: open, type: uploadpost, paths: [/open], auth: none}
`

// besiege starts a relay with the default limits and more blocks of configuration.
// The relay runs under a command, if one is given.
func besiege(t *testing.T, blocks string, under ...string) *besieged {
	t.Helper()
	t.Setenv("GOMEMLIMIT", strconv.Itoa(memoryLimit/10*9)) // as it is in a container of that size
	if !strings.Contains(blocks, "sources:") {
		blocks += besiegedSources
	}
	if !strings.Contains(blocks, "server:") {
		blocks += "server: {listen: \"${INGRESS}\", shutdown_delay: 0s}\n"
	}
	if !strings.Contains(blocks, "admin:") {
		blocks += "admin: {listen: \"${ADMIN}\"}\n"
	}
	if !strings.Contains(blocks, "journal:") {
		blocks += fmt.Sprintf("journal: {dir: %q, min_free_bytes: 0}\n", filepath.Join(t.TempDir(), "journal"))
	}
	r := startUnder(t, blocks+"log: {level: error}\nsinks:\n  - {name: out, type: stdout, filter: 'sourcename == \"honest\"'}\n", under...)
	b := &besieged{postwire: r, scheme: "http", path: "/honest", secret: func() string { return secret }}
	if strings.Contains(blocks, "cert_file") {
		b.scheme = "https"
	}
	b.warm = b.client(false)
	t.Cleanup(b.warm.CloseIdleConnections)
	return b
}

// client returns a client that keeps its connection, or uses one for each request.
func (b *besieged) client(once bool) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: once, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
}

// honest sends one webhook, by a connection of its own unless kept says otherwise.
func (b *besieged) honest(kept bool) error {
	b.number++
	body := upload(9, b.number)
	if b.size > 0 {
		body = bytes.Replace(body, []byte(`{`), []byte(`{"filler":"`+strings.Repeat("x", b.size)+`",`), 1)
	}
	req, err := http.NewRequest(http.MethodPost, b.scheme+"://"+b.addr+b.path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	maps.Copy(req.Header, b.header)
	if err := auth.UploadPost.Sign(req.Header, b.secret(), "", time.Now(), body); err != nil {
		return err
	}
	sender := b.warm
	if !kept {
		sender = b.client(true)
		defer sender.CloseIdleConnections()
	}
	resp, err := sender.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

// send sends webhooks for some time, one after the other, and returns what each took
// and what went wrong.
func (b *besieged) send(forTime time.Duration) (took []time.Duration, refused []error) {
	for end := time.Now().Add(forTime); time.Now().Before(end); time.Sleep(25 * time.Millisecond) {
		began := time.Now()
		if err := b.honest(len(took)%2 == 0); err != nil {
			refused = append(refused, err)
		}
		took = append(took, time.Since(began))
	}
	return took, refused
}

// status reads a figure of the process, in KiB, such as VmHWM.
func (b *besieged) status(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		t.Fatalf("the relay is gone: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// cpu is the time that the process has worked.
func (b *besieged) cpu(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// withstands attacks the relay, and holds it to what must hold: the process stays
// below its limit of memory, the honest sender is not refused and hardly waits, the
// process is idle soon after, and ends in time. The attack ends with its context.
func (b *besieged) withstands(t *testing.T, name string, attack func(ctx context.Context)) {
	t.Helper()
	control, refused := b.send(pick(500*time.Millisecond, 5*time.Second))
	if len(refused) > 0 {
		t.Fatalf("without an attack, refused: %v", refused)
	}
	ctx, stop := context.WithCancel(t.Context())
	var attacking sync.WaitGroup
	attacking.Go(func() { attack(ctx) })
	time.Sleep(pick(500*time.Millisecond, 2*time.Second)) // until it has begun
	during, refused := b.send(cmp.Or(b.during, pick(1500*time.Millisecond, 10*time.Second)))
	peak := b.status(t, "VmHWM")
	stop()
	attacking.Wait()
	b.warm.CloseIdleConnections()
	idle := b.idles(t)
	began := time.Now()
	ended := b.stop(t)
	endTook := time.Since(began)
	hostileResults.Add(t, tableHostile, fmt.Sprintf("| %s | %d MiB | %d | %d | %s → %s | %s → %s | %s | %s |", name, peak>>20, len(during), len(refused),
		ms(quantile(control, 0.5)), ms(quantile(during, 0.5)), ms(quantile(control, 0.99)), ms(quantile(during, 0.99)), idle, ms(endTook)))
	if len(refused) > 0 {
		t.Errorf("%d of %d honest webhooks were refused, such as: %v", len(refused), len(during), refused[0])
	}
	if p99 := quantile(during, 0.99); p99 > cmp.Or(b.patience, pick(5*honestP99, honestP99)) {
		t.Errorf("honest webhooks took %v", p99)
	}
	if peak > memoryLimit {
		t.Errorf("the process took %d MiB", peak>>20)
	}
	if ended != nil || endTook > 25*time.Second {
		t.Errorf("on SIGTERM it ended with %v after %v", ended, endTook)
	}
}

// idles waits until the process is idle after an attack, and returns when.
func (b *besieged) idles(t *testing.T) string {
	t.Helper()
	began := time.Now()
	for {
		before := b.cpu(t)
		time.Sleep(500 * time.Millisecond)
		busy, since := b.cpu(t)-before, time.Since(began)
		switch {
		case busy < 150*time.Millisecond:
			return "in " + ms(since)
		case since > pick(5*idleAfter, idleAfter):
			t.Errorf("%v after the attack the process still works %v in half a second", since, busy)
			return "no"
		}
	}
}

// files lets this process open as many files as it may, and returns how many.
func files(t *testing.T) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return int(limit.Cur)
}

// attackers keeps n attackers going until ctx ends, each of which does the same again
// and again, and is given its number. All together begin so many times a second: they
// are not to take the processor, but what the relay holds.
func attackers(ctx context.Context, n, perSecond int, attack func(ctx context.Context, i int)) {
	pace := rate.NewLimiter(rate.Limit(perSecond), perSecond/10+1)
	each(n, func(i int) {
		for pace.Wait(ctx) == nil {
			attack(ctx, i)
		}
	})
}

// open connects to an address, and sends a text; the connection ends with ctx. It is
// nil where there is none.
func open(ctx context.Context, address string, from int, text string) net.Conn {
	conn, err := dialerFrom(from).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		_ = conn.Close()
		return nil
	}
	return conn
}

// untilClosed waits until the relay ends a connection, or ctx ends.
func untilClosed(conn net.Conn) {
	if conn != nil {
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
}
