package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// command runs the binary in a folder of its own.
func command(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Run(); e != nil {
		exit, ok := errors.AsType[*exec.ExitError](e)
		if !ok {
			t.Fatal(e)
		}
		code = exit.ExitCode()
	}
	return out.String(), err.String(), code
}

const goodConfig = `sources:
  - name: upload-post
    type: uploadpost
    paths: [/webhooks/upload-post]
    auth: {signature: {secrets: [whsec_that_is_printed]}}
sinks:
  - name: nats
    type: nats
    url: nats://user:hunter2@localhost:4222
    subject: "events.{platform}"
    stream: EVENTS
`

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good.yaml", goodConfig)
	write("typo.yaml", strings.Replace(goodConfig, "stream:", "steam:", 1))
	write("twice.yaml", goodConfig+`  - name: nats
    type: stdout
`)
	write("paths.yaml", strings.Replace(goodConfig, "sinks:", `  - name: second
    type: uploadpost
    paths: [/other, /webhooks/upload-post]
    auth: none
sinks:`, 1))
	write("empty.yaml", "")
	write("jetstream.yaml", goodConfig+"journal: {engine: jetstream}\n")

	write("hooks.yaml", `sources:
  - {name: orders, type: webhook, paths: [/orders, /others], event: {type: '"shop." + body.event + path', subject: query.of, id: 'headers["x-id"]'}, dedupe: [body.n], auth: {bearer: {tokens: [confidential-text]}}}
  - {name: slack, type: webhook, preset: slack, paths: [/slack], auth: none}
  - {name: parts, type: webhook, paths: [/parts], event: {type: body.t}, split: body, auth: none}
  - {name: upload-post, type: uploadpost, paths: [/up], auth: none}
sinks: [{name: out, type: stdout}]
`)
	write("caret.yaml", `sources:
  - name: orders
    type: webhook
    paths: [/orders]
    event: {type: bdy.event}
    auth: none
sinks: [{name: out, type: stdout}]
`)
	write("order.json", `{"event":"paid","n":"7","big":12345678901234567890123}`)
	write("parts.json", `[{"t":"a"},{"t":"b"}]`)
	write("none.json", `[]`)
	write("bad.json", `{"event":`)
	write("challenge.json", `{"type":"url_verification","challenge":"abc"}`)
	write("upload.json", `{"event":"ping"}`)
	try := func(args ...string) []string { return append([]string{"config", "test", "-c", "hooks.yaml"}, args...) }

	for _, tt := range []struct {
		name      string
		args      []string
		code      int
		out, errs []string // what must be there
		not       string   // what must not
	}{
		{name: "no arguments", args: nil, code: 0, out: []string{"serve", "dev", "send", "config", "version"}},
		{name: "unknown command", args: []string{"srve"}, code: 2, errs: []string{"unknown command"}},
		{name: "unknown flag", args: []string{"serve", "--confg", "x"}, code: 2, errs: []string{"unknown flag"}},
		{name: "a stray argument", args: []string{"serve", "x"}, code: 2},
		{name: "version", args: []string{"version"}, out: []string{"postwire"}},
		{name: "version, other output", args: []string{"version", "-o", "xml"}, code: 2, errs: []string{"text or json"}},
		{name: "valid", args: []string{"config", "validate", "-c", "good.yaml"}, out: []string{"good.yaml is valid"}},
		{
			name: "typo", args: []string{"config", "validate", "-c", "typo.yaml"}, code: 2,
			errs: []string{"typo.yaml:11:5: sinks[0].steam", `did you mean "stream"`},
		},
		{name: "serve with a typo", args: []string{"serve", "-c", "typo.yaml"}, code: 2, errs: []string{"typo.yaml:11:5: sinks[0].steam"}},
		{name: "two sinks of one name", args: []string{"config", "validate", "-c", "twice.yaml"}, code: 2, errs: []string{"twice.yaml:12:11: sinks[1].name"}},
		{name: "two sources on one path", args: []string{"config", "validate", "-c", "paths.yaml"}, code: 2, errs: []string{"paths.yaml:8:21: sources[1].paths[1]: /webhooks/upload-post is a path of source upload-post"}},
		{name: "no such file", args: []string{"config", "validate", "-c", "none.yaml"}, code: 2, errs: []string{"none.yaml"}},
		{name: "a file as argument", args: []string{"config", "validate", "good.yaml"}, out: []string{"good.yaml is valid"}},
		{name: "two configurations", args: []string{"config", "validate", "good.yaml", "-c", "typo.yaml"}, code: 2, errs: []string{"not with both"}},
		{name: "empty standard input", args: []string{"config", "validate", "-"}, code: 2, errs: []string{"standard input is empty"}},
		{name: "nothing to do", args: []string{"serve", "-c", "empty.yaml"}, code: 2, errs: []string{"sources", "sinks"}},
		{name: "a cluster without servers", args: []string{"serve", "-c", "jetstream.yaml"}, code: 2, errs: []string{"journal.jetstream.url", "is required"}},
		{
			name: "print", args: []string{"config", "print", "-c", "good.yaml"},
			out: []string{"window: 24h", "max_body_bytes", "***"}, not: "whsec_that_is_printed",
		},
		{
			name: "test", args: try("--source", "orders", "--file", "order.json", "--header", "X-Id: i 1", "--query", "of=a&b", "--path", "/others"),
			out: []string{`"type": "shop.paid/others"`, `"subject": "a&b"`, `"id": "i 1"`, `"big": 12345678901234567890123`, `key: "orders" "dedupe" "0" "7"`}, not: "confidential",
		},
		{
			name: "test, as JSON", args: try("--source", "parts", "--file", "parts.json", "-o", "json"),
			out: []string{`"type": "a"`, `"type": "b"`, `"keys": [`, `"sha256:`},
		},
		{name: "test, several events", args: try("--source", "parts", "--file", "parts.json"), out: []string{"event 1 of 2", "event 2 of 2"}},
		{name: "test, no events", args: try("--source", "parts", "--file", "none.json"), out: []string{"no events"}},
		{name: "test, another kind", args: try("--source", "upload-post", "--file", "upload.json"), out: []string{"com.upload-post.ping"}},
		{name: "test, a challenge", args: try("--source", "slack", "--file", "challenge.json"), out: []string{"answered 200 with: abc"}},
		{name: "test, malformed", args: try("--source", "orders", "--file", "bad.json"), code: 1, errs: []string{"malformed: body: is not valid JSON at byte 9"}},
		{name: "test, no id", args: try("--source", "orders", "--file", "order.json"), code: 1, errs: []string{"malformed: event.id: finds nothing"}},
		{
			name: "test, malformed, as JSON", args: try("--source", "orders", "--file", "order.json", "-o", "json"), code: 1,
			out: []string{`"field": "event.id"`, `"reason": "finds nothing in the request"`},
		},
		{name: "test, which source", args: try("--file", "order.json"), code: 2, errs: []string{"--source", "orders, slack, parts, upload-post"}},
		{name: "test, no such source", args: try("--source", "x", "--file", "order.json"), code: 2, errs: []string{`no source "x"`}},
		{name: "test, no file", args: try("--source", "orders"), code: 2, errs: []string{"--file"}},
		{name: "test, no such file", args: try("--source", "orders", "--file", "x.json"), code: 2, errs: []string{"x.json"}},
		{name: "test, a header that is none", args: try("--source", "orders", "--file", "order.json", "--header", "X-Id"), code: 2, errs: []string{"'Name: value'"}},
		{name: "test, a query that is none", args: try("--source", "orders", "--file", "order.json", "--query", "of"), code: 2, errs: []string{"name=value"}},
		{name: "test, other output", args: try("--source", "orders", "--file", "order.json", "-o", "xml"), code: 2, errs: []string{"text or json"}},
		{
			name: "a mistake in an expression", args: []string{"config", "test", "-c", "caret.yaml", "--file", "order.json"}, code: 2,
			errs: []string{"caret.yaml:5:19: sources[0].event.type: is not an expression: undeclared reference to 'bdy'", "\n    bdy.event\n    ^"},
		},
		{name: "print hides passwords in URLs", args: []string{"config", "print", "-c", "good.yaml"}, not: "hunter2"},
		{name: "send to nobody", args: []string{"send", "--url", "http://127.0.0.1:1/"}, code: 1, errs: []string{"refused"}},
		{name: "send what is not there", args: []string{"send", "--event", "nothing"}, code: 2, errs: []string{"upload_completed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errs, code := command(t, dir, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, tt.code, out, errs)
			}
			for _, want := range tt.out {
				if !strings.Contains(out, want) {
					t.Errorf("the output lacks %q:\n%s", want, out)
				}
			}
			for _, want := range tt.errs {
				if !strings.Contains(errs, want) {
					t.Errorf("the error lacks %q:\n%s", want, errs)
				}
			}
			if tt.not != "" && strings.Contains(out+errs, tt.not) {
				t.Errorf("the output holds %q:\n%s", tt.not, out)
			}
		})
	}

	out, _, _ := command(t, dir, "config", "schema")
	if !json.Valid([]byte(out)) {
		t.Error("the schema is not JSON")
	}
	// What print prints is a configuration again, when its secrets are put back.
	printed, _, _ := command(t, dir, "config", "print", "-c", "good.yaml")
	write("printed.yaml", strings.ReplaceAll(printed, "'***'", "whsec_that_is_printed"))
	if out, errs, code := command(t, dir, "config", "validate", "-c", "printed.yaml"); code != 0 {
		t.Errorf("what was printed is not valid:\n%s%s\n%s", out, errs, printed)
	}
}

// TestDev is the README's first command: it relays what send sends.
func TestDev(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(program, "dev", "--port", "18080", "--nats-port", "14222")
	cmd.Dir = dir
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		buffer := make([]byte, 64<<10)
		for {
			n, err := stdout.Read(buffer)
			for line := range strings.Lines(string(buffer[:n])) {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	var printed strings.Builder
	want := func(text string) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		for !strings.Contains(printed.String(), text) {
			select {
			case line, ok := <-lines:
				if !ok {
					t.Fatalf("dev ended; it printed\n%s%s", printed.String(), stderr.String())
				}
				printed.WriteString(line)
			case <-timeout:
				t.Fatalf("dev did not print %q, but\n%s%s", text, printed.String(), stderr.String())
			}
		}
	}
	want("Ctrl-C stops")
	for _, text := range []string{"/webhooks/upload-post", "nats sub", "curl -i"} {
		want(text)
	}
	_, rest, _ := strings.Cut(printed.String(), "http://")
	url, _, _ := strings.Cut("http://"+rest, "\n")
	eventually(t, "an event is sent", func() bool {
		_, _, code := command(t, dir, "send", "--url", strings.TrimSpace(url))
		return code == 0
	})
	want("upload_completed/instagram/17987654321098765/success")
	if _, err := os.Stat(filepath.Join(dir, ".postwire", "journal", "FORMAT")); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("dev ended with %v\n%s", err, stderr.String())
	}
}
