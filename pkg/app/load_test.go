package app

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
)

// Pages under docs/reference are generated; CI fails when they are stale.
func TestGeneratedPagesAreFresh(t *testing.T) {
	for name, generate := range map[string]func() ([]byte, error){
		"configuration.md":     Reference,
		"postwire.schema.json": Schema,
	} {
		page, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, filepath.Join("..", "..", "docs", "reference", name), string(page))
	}
}

// env answers every variable, with what has the form that is asked for.
func env(name string) (string, bool) {
	if name == "TELEGRAM_BOT_TOKEN" {
		return "123456:value-of-" + name, true
	}
	return "value-of-" + name, true
}

// The other half of an example that shows one kind only.
const (
	otherSource = "\nsources: [{name: other, type: uploadpost, paths: [/other], auth: none}]\n"
	otherSink   = "\nsinks: [{name: other, type: stdout}]\n"
)

func TestExamplesAreValid(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../../config/examples/*.yaml", "../../sinks/*/example.yaml", "../../pkg/source/*/example.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		whole := string(text)
		if !strings.Contains("\n"+whole, "\nsources:") {
			whole += otherSource
		}
		if !strings.Contains("\n"+whole, "\nsinks:") {
			whole += otherSink
		}
		if strings.Contains(whole, "/etc/postwire/") { // certificates that are not here
			whole = strings.Replace(whole, "  tls: {cert_file", "  # tls: {cert_file", 1)
		}
		if _, err := Parse(file, []byte(whole), env); err != nil {
			t.Errorf("%v", err)
		}
	}
}

// The README's configuration is one that serve would run.
func TestReadmeIsValid(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("there is no configuration in it")
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		block = strings.ReplaceAll(block, "/run/secrets/kafka-password", secret)
		if _, err := Parse("README.md", []byte(block), env); err != nil {
			t.Error(err)
		}
	}
}

// All errors are told at once, those of blocks and those between blocks.
func TestMistakesAcrossBlocks(t *testing.T) {
	text := `
journal: {engine: jetstream, jetstream: {url: "nats://a:4222"}}
sources:
  - {name: a, type: uploadpost, paths: [/hook], auth: none}
  - {name: b, type: uploadpost, paths: [/hook], auth: none}
  - {name: c, type: uplodpost, paths: [/c], auth: none}
sinks:
  - {name: s, type: nats, stream: E, subject: "a.*"}
  - {name: s, type: kafka, brokers: ["k:1"], topic: "t.{Platform}"}
  - {name: x, type: stdout, filter: "platform =="}
`
	_, err := Parse("postwire.yaml", []byte(text), env)
	if err == nil {
		t.Fatal("it was accepted")
	}
	golden.Check(t, "testdata/mistakes.txt", err.Error()+"\n")
	if _, ok := errors.AsType[config.Problems](err); !ok {
		t.Errorf("the error is a %T", err)
	}
	_, err = Parse("postwire.yaml", []byte("log: {level: info}\n"), env)
	golden.Check(t, "testdata/empty.txt", err.Error()+"\n")
}

// What is wrong with the proof of a source is shown where it is written.
func TestMistakesInAuth(t *testing.T) {
	text := `
sources:
  - name: form
    type: uploadpost
    paths: [/form, /100%25]
    auth:
      signature: {secrets: [a], preset: github, header: X-Signature, tolerance: 1m}
  - name: preset
    type: uploadpost
    paths: [/preset]
    auth: {signature: {secrets: [a], preset: gitlab}}
  - name: template
    type: uploadpost
    paths: [/template]
    auth:
      signature:
        secrets: ["${SECRET:-}"]
        header: X-Signature
        signed: "{id}:{timestamp}"
        timestamp_header: X-Timestamp
  - name: missing
    type: uploadpost
    paths: [/missing]
    auth:
      signature: {tolerance: 1m}
      basic: {username: a}
  - name: credentials
    type: uploadpost
    paths: [/credentials]
    auth:
      basic: {username: "a:b", passwords: [b]}
      bearer: {tokens: []}
      header: {name: "X Token", values: [b]}
  - name: token
    type: uploadpost
    paths: [/token]
    auth:
      path_token:
        tokens:
          - tiny-token
          - with/a/slash/in/it
  - name: certificate
    type: uploadpost
    paths: [/certificate]
    auth: {client_certificate: {sans: [hooks.example.com]}}
  - name: nobody
    type: uploadpost
    paths: [/nobody]
    auth: {client_certificate: {}}
  - name: nothing
    type: uploadpost
    paths: [/nothing]
    auth: {}
  - name: word
    type: uploadpost
    paths: [/word]
    auth: basic
sinks: [{name: other, type: stdout}]
`
	_, err := Parse("postwire.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err == nil {
		t.Fatal("it was accepted")
	}
	golden.Check(t, "testdata/auth-mistakes.txt", err.Error()+"\n")
}

// Of a signature, what is in effect is shown, in the form that was chosen, and
// can be read again.
func TestYAMLShowsSignatures(t *testing.T) {
	text := `
sources:
  - {name: default, type: uploadpost, paths: [/a], auth: {signature: {secrets: [confidential-text]}}}
  - {name: github, type: uploadpost, paths: [/b], auth: {signature: {secrets: [confidential-text], preset: github}}}
  - {name: stripe, type: uploadpost, paths: [/c], auth: {signature: {secrets: [confidential-text], preset: stripe, tolerance: 1h}}}
  - {name: body, type: uploadpost, paths: [/d], auth: {signature: {secrets: [confidential-text], header: X-Signature}}}
  - {name: spelled, type: uploadpost, paths: [/e], auth: {signature: {secrets: [confidential-text], header: X-Signature, prefix: v1=, algorithm: sha512, encoding: base64, signed: "{id}.{timestamp}.{body}", timestamp_header: X-Timestamp, id_header: X-Id}}}
  - {name: others, type: uploadpost, paths: [/f], auth: {basic: {username: a, passwords: [confidential-text]}, header: {name: X-Token, values: [confidential-text]}}}
sinks: [{name: other, type: stdout}]
`
	plan, err := Parse("postwire.yaml", []byte(text), env)
	if err != nil {
		t.Fatal(err)
	}
	printed, err := plan.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(printed), "confidential-text") {
		t.Error("a secret is printed")
	}
	begin, end := strings.Index(string(printed), "sources:"), strings.Index(string(printed), "sinks:")
	golden.Check(t, "testdata/signatures.yaml", string(printed[begin:end]))
	again, err := Parse("printed.yaml", bytes.ReplaceAll(printed, []byte("'***'"), []byte("whsec_c29tZXRoaW5nLW9mLTE2LWJ5dGVz")), env)
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := again.YAML(); err != nil || string(twice) != string(printed) {
		t.Errorf("it is printed in another way the second time: %v\n%s", err, twice)
	}
}

// What a preset stands for is printed, and means the same when it is read.
func TestYAMLShowsPresets(t *testing.T) {
	text, err := os.ReadFile("../../config/examples/webhook.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := Parse("webhook.yaml", text, func(string) (string, bool) { return "c29tZXRoaW5nLW9mLTE2LWJ5dGVz", true })
	if err != nil {
		t.Fatal(err)
	}
	printed, err := plan.YAML()
	if err != nil {
		t.Fatal(err)
	}
	begin, end := strings.Index(string(printed), "sources:"), strings.Index(string(printed), "sinks:")
	golden.Check(t, "testdata/presets.yaml", string(printed[begin:end]))
	again, err := Parse("printed.yaml", bytes.ReplaceAll(printed, []byte("'***'"), []byte("whsec_c29tZXRoaW5nLW9mLTE2LWJ5dGVz")), env)
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := again.YAML(); err != nil || string(twice) != string(printed) {
		t.Errorf("it is printed in another way the second time: %v\n%s", err, twice)
	}
}

func TestYAMLShowsDefaultsAndNoSecrets(t *testing.T) {
	text, err := os.ReadFile("../../config/examples/production.yaml")
	if err != nil {
		t.Fatal(err)
	}
	whole := strings.Replace(string(text), "  tls: {cert_file", "  # tls: {cert_file", 1)
	plan, err := Parse("production.yaml", []byte(whole), env)
	if err != nil {
		t.Fatal(err)
	}
	printed, err := plan.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(printed), "value-of-") {
		t.Error("a secret is printed")
	}
	golden.Check(t, "testdata/printed.yaml", string(printed))
	// What is printed is a configuration again, but for the secrets.
	again, err := Parse("printed.yaml", bytes.ReplaceAll(printed, []byte("'***'"), []byte("a-long-secret-in-its-place")), env)
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Sinks) != len(plan.Sinks) {
		t.Errorf("%d sinks are left of %d", len(again.Sinks), len(plan.Sinks))
	}
}
