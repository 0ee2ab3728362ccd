package test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/admin"
)

// writeToken puts a token into a file, as Kubernetes does: the file is another one.
func writeToken(t *testing.T, path, token string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// audit returns the lines of the audit log.
func (r *postwire) audit(t *testing.T) (lines []map[string]any) {
	t.Helper()
	all := bufio.NewScanner(strings.NewReader(r.log.String()))
	for all.Scan() {
		var line map[string]any
		if json.Unmarshal(all.Bytes(), &line) == nil && strings.HasPrefix(fmt.Sprint(line["msg"]), "admin change ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestNamedOperators: the audit log names who changed what; a token that is rotated
// in its file, without a reload, ends what it has opened; and no token is printed.
func TestNamedOperators(t *testing.T) {
	dir := t.TempDir()
	alice, bob := filepath.Join(dir, "alice"), filepath.Join(dir, "bob")
	const first, second, viewers = "alice:first-0123456789", "alice:sécond-0123456789", "bob-0123456789abcdef"
	writeToken(t, alice, first)
	writeToken(t, bob, viewers)
	w := newWorld(t)
	r := start(t, w.change(t, `admin: {listen: "${ADMIN}"}`, `admin: {listen: "${ADMIN}", tokens: [{name: alice, role: operator, token: "${file:`+alice+`}"}, {name: bob, role: viewer, token: "${file:`+bob+`}"}]}`))
	r.must(t, nil, "sinks", "pause", "nats", "--token-file", alice)
	r.must(t, nil, "sinks", "resume", "nats", "--token-file", alice)
	if _, errs, code := r.ask(t, "sinks", "pause", "nats", "--token-file", bob); code != 1 || !strings.Contains(errs, "role operator") {
		t.Errorf("a viewer's pause ended with %d: %s", code, errs)
	}
	lines := r.audit(t)
	if len(lines) != 3 {
		t.Fatalf("%d lines in the audit log: %v", len(lines), lines)
	}
	for i, want := range []string{"pause-sink applied alice nats", "resume-sink applied alice nats", "pause-sink denied bob nats"} {
		l := lines[i]
		if got := fmt.Sprint(l["operation"], " ", l["outcome"], " ", l["by"], " ", l["sink"]); got != want || l["remote"] != "127.0.0.1" {
			t.Errorf("line %d is %v, want %s", i, l, want)
		}
	}
	for name, value := range r.env() {
		t.Setenv(name, value)
	}
	out, _, code := command(t, dir, "config", "print", "-c", r.config)
	if code != 0 || !strings.Contains(out, "name: alice") || strings.Contains(out, "0123456789") {
		t.Errorf("config print ended with %d:\n%s", code, out)
	}
	// The token of nobody in particular is not in the file: whose it is must be said.
	if _, errs, code := command(t, dir, "status", "-c", r.config); code != 2 || !strings.Contains(errs, "--token-file") {
		t.Errorf("status with the tokens of others ended with %d: %s", code, errs)
	}

	tail := func(token string) (resp *http.Response, ended chan time.Time) {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+r.admin+"/api/v1/events/tail", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if resp, err = http.DefaultClient.Do(req); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		ended = make(chan time.Time, 1)
		go func() {
			_, _ = io.Copy(io.Discard, resp.Body)
			ended <- time.Now()
		}()
		return resp, ended
	}
	resp, operators := tail(first)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("a tail is answered %s", resp.Status)
	}
	_, viewing := tail(viewers)
	rotated := time.Now()
	writeToken(t, alice, second)
	select {
	case at := <-operators:
		t.Logf("the tail ended %v after the file changed", at.Sub(rotated))
	case <-time.After(10 * time.Second):
		t.Error("the tail goes on with a token that is gone")
	}
	select {
	case <-viewing:
		t.Error("the tail of another token has ended")
	default:
	}
	if resp, _ := tail(first); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the old token is answered %s", resp.Status)
	}
	r.must(t, nil, "sinks", "pause", "nats", "--token-file", alice)

	// What is not right is refused whole, and the tokens before it go on.
	text := strings.Replace(w.config, `admin: {listen: "${ADMIN}"}`, `admin: {listen: "${ADMIN}", tokens: [{name: alice, role: operator, token: "${file:`+alice+`}"}, {name: alice, role: viewer, token: "${file:`+bob+`}"}]}`, 1)
	r.configure(t, text)
	if _, errs, code := r.ask(t, "reload", "--token-file", alice); code != 1 || !strings.Contains(errs, "admin.tokens[1].name") {
		t.Errorf("a reload with one name twice ended with %d: %s", code, errs)
	}
	r.must(t, nil, "status", "--token-file", bob)
	select {
	case <-viewing:
		t.Error("a reload that was refused has ended a tail")
	default:
	}
}

// TestTailAcrossConnections: postwire tail sees each event once, in order, over
// connections that grow old each second, and over a restart of the relay.
func TestTailAcrossConnections(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.change(t, `admin: {listen: "${ADMIN}"}`, `admin: {listen: "${ADMIN}", max_connection_age: 1s}`))
	const profiles, wanted = 20, 200 // a second
	l := startLoad(t, r.endpoint, profiles, profiles*time.Second/wanted, func(l *load) { l.steady = true })
	out := filepath.Join(t.TempDir(), "tail")
	file, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tail := exec.Command(program, "tail", "--from", "1h", "-o", "json", "--admin", "http://"+r.admin)
	var errs buffer
	tail.Stdout, tail.Stderr = file, &errs
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = tail.Process.Kill()
		_ = tail.Wait()
	}()
	l.more(t, pick(400, 4000))
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	l.more(t, pick(200, 2000))
	l.stop()
	seen := func() (seqs []uint64) {
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var m struct{ Event struct{ Seq uint64 } }
			if json.Unmarshal([]byte(line), &m) == nil && m.Event.Seq > 0 {
				seqs = append(seqs, m.Event.Seq)
			}
		}
		return seqs
	}
	var status admin.Status
	r.must(t, &status, "status")
	eventually(t, "the tail has seen all events", func() bool { return len(seen()) >= int(status.Journal.Events) })
	for i, seq := range seen() {
		if seq != uint64(i)+1 {
			t.Fatalf("the event behind %d is %d: a gap or a repeat", i, seq)
		}
	}
	t.Logf("%d events; the tail said: %s", status.Journal.Events, errs.String())
	if n := strings.Count(errs.String(), "shutdown"); n != 1 || tail.ProcessState != nil {
		t.Errorf("the tail said %q", errs.String())
	}
}

// TestAdminTLS: the commands speak TLS to the admin port, with what the configuration
// says or with flags, and show a client certificate where one is wanted.
func TestAdminTLS(t *testing.T) {
	dir := t.TempDir()
	folder := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key := selfsigned.Certificate(t, folder("server"), "server")
	clientCert, clientKey := selfsigned.Certificate(t, folder("client"), "client")
	w := newWorld(t)
	r := &postwire{endpoint: newEndpoint(t), config: filepath.Join(t.TempDir(), "postwire.yaml"), secret: newPrivate()}
	text := w.change(t, `admin: {listen: "${ADMIN}"}`, fmt.Sprintf(`admin: {listen: "${ADMIN}", tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}`, cert, key, clientCert))
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r.launch(t)
	defer r.kill(t)
	for name, value := range r.env() {
		t.Setenv(name, value)
	}
	probe := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	eventually(t, "a probe without a certificate is answered", func() bool {
		resp, err := probe.Get("https://" + r.admin + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"flags":                        {[]string{"--admin", "https://" + r.admin, "--ca-file", cert, "--cert-file", clientCert, "--key-file", clientKey}, 0, "journal"},
		"the configuration":            {[]string{"-c", r.config, "--cert-file", clientCert, "--key-file", clientKey}, 0, "journal"},
		"without a client certificate": {[]string{"-c", r.config}, 1, "client certificate is required"},
		"without the authority":        {[]string{"--admin", "https://" + r.admin}, 1, "--ca-file"},
		"without TLS":                  {[]string{"--admin", "http://" + r.admin}, 1, "use https://"},
		"with a file that is none":     {[]string{"--admin", "https://" + r.admin, "--ca-file", key}, 2, "contains no PEM certificate"},
		"with half a pair":             {[]string{"-c", r.config, "--cert-file", clientCert}, 2, "--key-file"},
	} {
		out, errs, code := command(t, dir, append([]string{"status"}, tt.args...)...)
		if code != tt.code || !strings.Contains(out+errs, tt.says) {
			t.Errorf("%s: ended with %d: %s%s", name, code, out, errs)
		}
	}
}
