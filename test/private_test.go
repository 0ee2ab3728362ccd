package test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"go.yaml.in/yaml/v3"
)

// What webhooks of this suite hold.
const (
	email   = "user@example.com"
	title   = "a personal title"
	caption = "a personal caption"
)

// private is what no log may hold: personal data of the webhooks, and secrets of
// a relay's configuration, old ones included.
type private struct{ values map[string]bool }

func newPrivate() private {
	return private{map[string]bool{email: true, "owner@example.com": true, title: true, caption: true, secret: true}}
}

// secretKeys are the keys of a configuration whose values are secrets.
var secretKeys = regexp.MustCompile(`^(password|passwords|token|tokens|secret|secrets|values|key)$`)

// learn adds the secrets of a configuration, with what its files hold now.
// Values so short that they may stand in any text are left out.
func (p private) learn(t *testing.T, config string) {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(config), &doc); err != nil {
		t.Fatal(err)
	}
	var visit func(n *yaml.Node, secret bool)
	visit = func(n *yaml.Node, secret bool) {
		if n.Kind == yaml.ScalarNode && secret {
			value := n.Value
			if path, ok := strings.CutPrefix(value, "${file:"); ok {
				text, err := os.ReadFile(strings.TrimSuffix(path, "}"))
				if err != nil {
					return
				}
				value = strings.TrimSpace(string(text))
			}
			if len(value) >= 8 && !strings.HasPrefix(value, "${") {
				p.values[value] = true
			}
		}
		for i, inner := range n.Content {
			inside := secret && n.Kind != yaml.MappingNode
			if n.Kind == yaml.MappingNode && i%2 == 1 {
				inside = secretKeys.MatchString(n.Content[i-1].Value)
			}
			visit(inner, inside)
		}
	}
	visit(&doc, false)
}

// check fails the test where a log holds any of it.
func (p private) check(t *testing.T, log string) {
	t.Helper()
	for value := range p.values {
		before, after, found := strings.Cut(log, value)
		if !found {
			continue
		}
		begin := strings.LastIndexByte(before, '\n') + 1
		rest, _, _ := strings.Cut(after, "\n")
		t.Errorf("the log holds %q: %s%s%s", value, before[begin:], value, rest)
	}
}

// watched is a log for a relay in this process: what it says at any level is
// checked at the end of the test, and its warnings are shown.
func watched(t *testing.T, config string) *zap.Logger {
	t.Helper()
	var all buffer
	p := newPrivate()
	p.learn(t, config)
	t.Cleanup(func() { p.check(t, all.String()) })
	whole := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), &all, zap.DebugLevel)
	return zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel), zaptest.WrapOptions(zap.WrapCore(func(shown zapcore.Core) zapcore.Core {
		return zapcore.NewTee(shown, whole)
	})))
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) Sync() error { return nil }

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The check finds what it is for.
func TestPrivateIsFound(t *testing.T) {
	p := newPrivate()
	p.learn(t, "sources: [{auth: {signature: {secrets: [one-of-several]}, header: {name: X, values: [another-one]}}}]\nsinks: [{password: \"${P}\", token: a-long-token}]\nlog: {level: debugging}\n")
	for _, value := range []string{"one-of-several", "another-one", "a-long-token", email, secret} {
		if !p.values[value] {
			t.Errorf("%s is not looked for", value)
		}
	}
	if p.values["debugging"] || p.values["${P}"] {
		t.Errorf("looked for are %v", p.values)
	}
}

// TestLogTellsNothingPrivate does what makes a relay talk, with its log turned to its
// most talkative: the check is at the end of every relay of this suite.
func TestLogTellsNothingPrivate(t *testing.T) {
	w := newWorld(t)
	config := w.change(t, "topic: "+w.topic, `topic: "none-{platform}"`)
	config = strings.Replace(config, "log: {level: info}", "log: {level: error}", 1)
	config = strings.Replace(config, "sources:\n", `sources:
  - {name: token, type: webhook, paths: [/token], event: {type: body.kind}, auth: {path_token: {tokens: [a-token-of-a-path]}, basic: {username: relay, passwords: [a-password-of-a-source]}}}
`, 1)
	r := start(t, config)
	if out := r.must(t, nil, "log-level", "debug"); out != "debug\n" {
		t.Errorf("log-level printed %q", out)
	}
	for number := range 20 {
		if status, err := r.post(upload(0, number)); err != nil || status != "accepted" {
			t.Fatalf("%s, %v", status, err)
		}
	}
	for _, body := range []string{
		`{"event":"upload_completed","user_email":"` + email + `","title":"` + title + `"`,
		`{"event":"upload_completed","user_email":"` + email + `","platform":{"caption":"` + caption + `"}}`,
		`{"event":["` + email + `"]}`,
		`{"user_email":"` + email + `","` + email + `":1,"` + email + `":2}`,
		"\x00" + email,
	} {
		if status, err := r.post([]byte(body)); err != nil || status != "quarantined" {
			t.Errorf("%s: %s, %v", body, status, err)
		}
	}
	if code := r.postSigned(t, "whsec_of_somebody_else", upload(0, 1)); code != 401 {
		t.Errorf("another secret is answered %d", code)
	}
	for _, path := range []string{"/token/a-token-of-a-path", "/token/another-token", "/token?email=" + email, "/nowhere/" + email} {
		resp, err := client.Post("http://"+r.addr+path, "application/json", bytes.NewReader(upload(0, 1)))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	eventually(t, "Kafka refused them", func() bool {
		return r.metric(t, `postwire_sink_dead_letters_total{reason="no_destination",sink="kafka"}`) == "20"
	})
	w.nats.Stop(t)
	if status, err := r.post(upload(0, 100)); err != nil || status != "accepted" {
		t.Fatalf("%s, %v", status, err)
	}
	eventually(t, "NATS is away", func() bool { return r.metric(t, `postwire_sink_up{sink="nats"}`) == "0" })
	w.nats.Restart(t)
	eventually(t, "NATS is back", func() bool { return r.metric(t, `postwire_sink_lag_events{sink="nats"}`) == "0" })
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	for _, said := range []string{`"event stored"`, `"event_id":"` + id(0, 1) + `"`, `"source":"upload-post"`, `"sink":"nats"`, "request quarantined", "request refused", "event dead-lettered", "sink delivery failing"} {
		if !strings.Contains(r.log.String(), said) {
			t.Errorf("the log does not say %s", said)
		}
	}
}
