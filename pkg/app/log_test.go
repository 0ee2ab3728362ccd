package app

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
)

// logged returns the lines that a log writes meanwhile.
func logged(t *testing.T, c config.Log, do func(*Log)) (l *Log, lines []map[string]any) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stderr
	os.Stderr = w
	l, err = NewLog(c)
	os.Stderr = before
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		for s := bufio.NewScanner(r); s.Scan(); {
			var line map[string]any
			if err := json.Unmarshal(s.Bytes(), &line); err != nil {
				t.Errorf("%s: %v", s.Text(), err)
			}
			lines = append(lines, line)
		}
	}()
	do(l)
	_ = w.Close()
	<-written
	return l, lines
}

// A flood of one message is sampled, and leaves others alone.
func TestLogUnderAFlood(t *testing.T) {
	const flood = 5000
	l, lines := logged(t, config.Log{Level: "info", Format: "json"}, func(l *Log) {
		for range flood {
			l.Warn("request refused", zap.String("source", "a"))
		}
		l.Info("taking webhooks")
	})
	if n := len(lines); n < logFirst || n > flood/5 || lines[n-1]["msg"] != "taking webhooks" {
		t.Errorf("%d lines of %d, the last is %v", n, flood, lines[n-1])
	}
	if sum := len(lines) - 1 + int(l.dropped.Load()); sum != flood {
		t.Errorf("%d were written or counted, want %d", sum, flood)
	}
}

// The level may be changed while the process runs, also of loggers that were
// made before.
func TestLogLevelIsChanged(t *testing.T) {
	_, lines := logged(t, config.Log{Level: "warn", Format: "json"}, func(l *Log) {
		early := l.Named("ingress")
		early.Info("too early")
		l.level.SetLevel(zap.DebugLevel)
		early.Debug("told")
		l.level.SetLevel(zap.ErrorLevel)
		early.Warn("too late")
	})
	if len(lines) != 1 || lines[0]["msg"] != "told" || lines[0]["logger"] != "ingress" {
		t.Errorf("logged %v", lines)
	}
}
