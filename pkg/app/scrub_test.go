package app

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/config"
)

// What a broker or a client library says of our secrets is shown nowhere: not
// in the log, not in a dead letter, not by the API, before and after a rotation.
func TestErrorsOfSinksAreScrubbed(t *testing.T) {
	const botToken, rotated, password = "12345:sesame-of-the-bot", "54321:rotated-of-the-bot", "pa55w0rd of a broker"
	leaks := []string{"sesame", "rotated-of", "pa55w0rd", "broker-t0ken", "admin-t0ken", base64.StdEncoding.EncodeToString([]byte(password))}
	var echo atomic.Value // what the receiver says
	echo.Store("")
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := map[string]any{"ok": false, "error_code": 400, "description": "text is too long: " + echo.Load().(string)}
		switch {
		case strings.HasPrefix(echo.Load().(string), "transient"):
			answer = map[string]any{"ok": false, "error_code": 500, "description": echo.Load().(string)}
		case strings.HasSuffix(r.URL.Path, "/getMe"):
			answer = map[string]any{"ok": true}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	defer receiver.Close()
	text := `
server: {listen: "127.0.0.1:0"}
journal: {dir: "` + t.TempDir() + `"}
admin: {listen: "127.0.0.1:0", token: admin-t0ken-0123456789}
sources: [{name: in, type: cloudevents, paths: [/in], auth: none}]
sinks:
  - {name: chat, type: telegram, token: "` + botToken + `", chat_id: "1", url: "` + receiver.URL + `", retry: {initial: 10ms, max: 20ms}}
  - {name: broker, type: nats, url: "nats://broker-t0ken@127.0.0.1:1", subject: s, mode: core, retry: {initial: 10ms, max: 20ms}}
  - {name: kafka, type: kafka, brokers: ["127.0.0.1:1"], topic: t, sasl: {mechanism: scram-sha-512, username: u, password: "` + password + `"}}
`
	plan, err := Parse("postwire.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	core, seen := observer.New(zapcore.DebugLevel)
	a, err := New(t.Context(), plan, LogTo(zap.New(core)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	post := func(id string) {
		t.Helper()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+a.Addr().String()+"/in", strings.NewReader("{}"))
		for name, value := range map[string]string{"ce-specversion": "1.0", "ce-id": id, "ce-source": "s", "ce-type": "t", "Content-Type": "application/json"} {
			r.Header.Set(name, value)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusAccepted {
			t.Fatal(resp.Status)
		}
	}
	get := func(path string) string {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.AdminAddr().String()+path, nil)
		r.Header.Set("Authorization", "Bearer admin-t0ken-0123456789")
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	until := func(path, want string) string {
		t.Helper()
		for range 500 {
			if got := get(path); strings.Contains(got, want) {
				return got
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s never has %q: %s", path, want, get(path))
		return ""
	}
	say := func(about, token string) {
		echo.Store(fmt.Sprintf("%s %s %q %s admin-t0ken-0123456789 broker-t0ken", about, token, password, base64.StdEncoding.EncodeToString([]byte("u:"+password))))
	}
	say("transient-1", botToken)
	post("1")
	answers := until("/api/v1/status", "transient-1")
	say("permanent-1", botToken)
	answers += until("/api/v1/dlq", "permanent-1")
	// The old secret and the new one are known.
	next, err := Parse("postwire.yaml", []byte(strings.ReplaceAll(text, botToken, rotated)), plan.env)
	if err != nil {
		t.Fatal(err)
	}
	a.plan.Load().text = next.text
	if _, err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	say("transient-2 "+botToken, rotated)
	post("2")
	answers += until("/api/v1/status", "transient-2")
	say("permanent-2 "+botToken, rotated)
	answers += until("/api/v1/dlq", "permanent-2") + get("/api/v1/status") + get("/api/v1/configuration") + get("/api/v1/dlq/nothing") + get("/api/v1/events")
	var lines strings.Builder
	for _, e := range seen.All() {
		fmt.Fprintln(&lines, e.Message, e.ContextMap())
	}
	for _, leak := range leaks {
		for where, shown := range map[string]string{"the API": answers, "the log": lines.String()} {
			if at := strings.Index(shown, leak); at >= 0 {
				t.Errorf("%s shows %q: %s", where, leak, shown[max(0, at-200):min(len(shown), at+100)])
			}
		}
	}
	if !strings.Contains(lines.String(), "permanent-2") || !strings.Contains(answers, "***") {
		t.Errorf("the reasons are lost: %s", lines.String())
	}
}

// Each kind of field of the log is scrubbed, also those that a logger was made with.
func TestLogIsScrubbed(t *testing.T) {
	const secret = "sesame-open-0123456789"
	core, seen := observer.New(zapcore.InfoLevel)
	l := LogTo(zap.New(core))
	l.scrubbed(config.NewScrubber(secret))
	var none *stringer
	log := l.With(zap.String("with", secret)).Named("part")
	log.Info("about "+secret, zap.String("text", secret), zap.Error(fmt.Errorf("wrapped: %w", errors.New(secret))), zap.Strings("list", []string{"a", secret}),
		zap.Any("any", map[string]string{"k": secret}), zap.ByteString("bytes", []byte(secret)), zap.Stringer("stringer", &stringer{secret}), zap.Stringer("none", none),
		zap.Duration("kept", time.Second), zap.Strings("kept too", []string{"a"}), zap.Int("number", 7))
	log.Debug("below the level")
	if seen.Len() != 1 {
		t.Fatalf("%d lines", seen.Len())
	}
	line := fmt.Sprint(seen.All()[0].Message, seen.All()[0].ContextMap())
	if strings.Contains(line, "sesame") || strings.Count(line, "***") != 8 {
		t.Error(line)
	}
	for _, want := range []string{"kept:1s", "kept too:[a]", "number:7", "wrapped: ***", "none:<nil>"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %s", want, line)
		}
	}
	if l, lines := logged(t, config.Log{Level: "info", Format: "json"}, func(l *Log) {
		l.scrubbed(config.NewScrubber(secret))
		for range 5000 {
			l.Warn("request refused", zap.String("source", secret))
		}
	}); len(lines) > 1000 || lines[0]["source"] != "***" || l.dropped.Load() == 0 {
		t.Errorf("under a flood: %d lines, %v, %d dropped", len(lines), lines[0], l.dropped.Load())
	}
}

type stringer struct{ text string }

func (u *stringer) String() string { return u.text }
