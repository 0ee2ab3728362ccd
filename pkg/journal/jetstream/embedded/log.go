package embedded

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.uber.org/zap"
)

// logger passes the lines of the NATS server to the log of the relay: the text of a line
// becomes the field report, because the texts are not stable. Each line is logged one level
// below the level that the server gives: to miss a peer, for example, is normal while relays
// start, and the relay itself logs what it means for the replicas.
type logger struct {
	log   *zap.Logger
	scrub *strings.Replacer

	mu  sync.Mutex
	err error // first fatal error
}

func newLogger(log *zap.Logger, secrets ...string) *logger {
	var pairs []string
	for _, s := range secrets {
		if s != "" {
			pairs = append(pairs, s, "***")
		}
	}
	return &logger{log: log.WithOptions(zap.AddCallerSkip(1)), scrub: strings.NewReplacer(pairs...)}
}

func (l *logger) report(format string, v []any) zap.Field {
	return zap.String("report", l.scrub.Replace(fmt.Sprintf(format, v...)))
}

// fatal returns the error for which the server gave up, or nil.
func (l *logger) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Noticef implements server.Logger.
func (l *logger) Noticef(format string, v ...any) {
	l.log.Debug("cluster server", l.report(format, v))
}

// Warnf implements server.Logger.
func (l *logger) Warnf(format string, v ...any) {
	l.log.Info("cluster server warns", l.report(format, v))
}

// Errorf implements server.Logger.
func (l *logger) Errorf(format string, v ...any) {
	l.log.Warn("cluster server failed", l.report(format, v))
}

// Fatalf implements server.Logger. The server gives up, and the process goes on.
func (l *logger) Fatalf(format string, v ...any) {
	report := l.report(format, v)
	l.log.Error("cluster server gave up", report)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = errors.New(report.String)
	}
}

// Debugf implements server.Logger.
func (l *logger) Debugf(format string, v ...any) {
	l.log.Debug("cluster server", l.report(format, v))
}

// Tracef implements server.Logger. The relay never asks for traces.
func (l *logger) Tracef(string, ...any) {}
