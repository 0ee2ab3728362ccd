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

// Sampling: the first lines of a message per second, and then every nth line, so that a
// flood of refused webhooks does not fill the disk.
const (
	logFirst  = 100
	logEachOf = 100
)

// Log is the log of a process. Its level can change at run time.
type Log struct {
	*zap.Logger
	level   zap.AtomicLevel
	dropped atomic.Uint64 // lines dropped by sampling
}

// NewLog returns the log of a configuration. It writes to standard error.
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
	// Escape text of senders and brokers for terminals.
	to := zapcore.Lock(zapcore.AddSync(terminal.NewWriter(os.Stderr)))
	core := zapcore.NewSamplerWithOptions(zapcore.NewCore(encoder, to, l.level), time.Second, logFirst, logEachOf, zapcore.SamplerHook(func(_ zapcore.Entry, d zapcore.SamplingDecision) {
		if d&zapcore.LogDropped != 0 {
			l.dropped.Add(1)
		}
	}))
	l.Logger = zap.New(core, zap.ErrorOutput(to))
	return l, nil
}

// LogTo returns a Log on an existing logger, with the level of that logger.
func LogTo(log *zap.Logger) *Log {
	return &Log{Logger: log, level: zap.NewAtomicLevelAt(log.Level())}
}
