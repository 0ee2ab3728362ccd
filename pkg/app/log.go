package app

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/terminal"
)

// Of one message at one level, so many a second are logged, and then each of so
// many: a flood of webhooks that are refused does not fill the disk.
const (
	logFirst  = 100
	logEachOf = 100
)

// Log is the log of a process, whose level may be changed while it runs.
type Log struct {
	*zap.Logger
	level   zap.AtomicLevel
	dropped atomic.Uint64 // lines, under a flood
}

// NewLog makes the log of a configuration. It writes to standard error.
func NewLog(c config.Log) (*Log, error) {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	l := &Log{level: zap.NewAtomicLevelAt(level)}
	how := zap.NewProductionEncoderConfig()
	how.TimeKey = "time"
	how.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	how.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(how)
	if c.Format == "console" {
		how.EncodeLevel = zapcore.CapitalLevelEncoder
		how.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		encoder = zapcore.NewConsoleEncoder(how)
	}
	// Whatever is logged of senders and brokers, a terminal only shows it.
	to := zapcore.Lock(zapcore.AddSync(terminal.NewWriter(os.Stderr)))
	core := zapcore.NewSamplerWithOptions(zapcore.NewCore(encoder, to, l.level), time.Second, logFirst, logEachOf, zapcore.SamplerHook(func(_ zapcore.Entry, d zapcore.SamplingDecision) {
		if d&zapcore.LogDropped != 0 {
			l.dropped.Add(1)
		}
	}))
	l.Logger = zap.New(core, zap.ErrorOutput(to))
	return l, nil
}

// LogTo makes a log of one that exists, whose own level stays what it is.
func LogTo(log *zap.Logger) *Log {
	return &Log{Logger: log, level: zap.NewAtomicLevelAt(log.Level())}
}
