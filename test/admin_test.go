package test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	if _, errs, code := r.ask(t, "sinks", "pause", "nats", "--token-file", bob); code != 1 || !strings.Contains(errs, "operators") {
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
