package app

import (
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
)

// LimitMemory sets Go's memory limit to nine tenths of the limit of the process's control
// group, so that the garbage collector works harder before the kernel kills the process.
// The environment variable GOMEMLIMIT takes precedence. Without a limit of the control
// group nothing changes.
func LimitMemory(log *Log) {
	limit, err := memlimit.Set(memlimit.WithRatio(0.9))
	switch {
	case err != nil:
		log.Warn("memory limit of the control group cannot be read, GOMEMLIMIT is left alone", zap.Error(err))
	case limit != math.MaxInt64:
		log.Info("memory limit", zap.Int64("bytes", limit))
	}
}
