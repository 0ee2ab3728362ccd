package app

import (
	"fmt"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/postwire/postwire/config"
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
	z := zap.NewProductionConfig()
	z.Level = l.level
	z.Encoding = c.Format
	z.DisableStacktrace = true
	z.DisableCaller = true
	z.Sampling = &zap.SamplingConfig{Initial: logFirst, Thereafter: logEachOf, Hook: func(_ zapcore.Entry, d zapcore.SamplingDecision) {
		if d&zapcore.LogDropped != 0 {
			l.dropped.Add(1)
		}
	}}
	z.EncoderConfig.TimeKey = "time"
	z.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	z.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	if c.Format == "console" {
		z.EncoderConfig.EncodeLevel = zapcore.CapitalLevelEncoder
		z.EncoderConfig.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	}
	if l.Logger, err = z.Build(); err != nil {
		return nil, fmt.Errorf("making the log: %w", err)
	}
	return l, nil
}

// LogTo makes a log of one that exists, whose own level stays what it is.
func LogTo(log *zap.Logger) *Log {
	return &Log{Logger: log, level: zap.NewAtomicLevelAt(log.Level())}
}
