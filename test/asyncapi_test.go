package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAsyncAPIParser: the official parser finds nothing wrong with what the
// command prints, nor with the documents that other tests compare with.
func TestAsyncAPIParser(t *testing.T) {
	dir := os.Getenv("POSTWIRE_TEST_ASYNCAPI")
	if dir == "" {
		t.Skip("needs Node.js: POSTWIRE_TEST_ASYNCAPI names the folder test/asyncapi, in which 'npm ci' was run")
	}
	files, err := filepath.Glob("../pkg/app/testdata/asyncapi/*.golden.json")
	if err != nil || len(files) < 5 {
		t.Fatalf("there are %d documents, %v", len(files), err)
	}
	for i, file := range files {
		if files[i], err = filepath.Abs(file); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(t.TempDir(), "postwire.yaml")
	if err := os.WriteFile(config, []byte(`
sources: [{name: in, type: uploadpost, paths: [/a], auth: none}]
sinks:
  - {name: nats, type: nats, url: "nats://u:hidden@localhost:4222", subject: "events.{platform}", stream: EVENTS}
  - {name: kafka, type: kafka, brokers: ["localhost:9092"], topic: events, content_mode: structured}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"yaml", "json"} {
		text, stderr, code := command(t, t.TempDir(), "asyncapi", "-c", config, "-o", format)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if strings.Contains(text, "hidden") || !strings.Contains(text, "3.0.0") {
			t.Errorf("the document in %s:\n%s", format, text)
		}
		file := filepath.Join(t.TempDir(), "asyncapi."+format)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read := func(files ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "node", append([]string{"validate.mjs"}, files...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := read(files...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The parser does look: a parameter that is not described is an error.
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(strings.Replace(string(text), `"action": "send"`, `"action": "shout"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := read(broken); err == nil {
		t.Errorf("a document that is wrong is found right:\n%s", out)
	}
}
