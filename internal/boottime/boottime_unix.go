//go:build unix && !linux

// Package boottime reads the clock that also runs while the machine is suspended.
package boottime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time since some moment before this process began. The clock also runs
// while a machine with macOS is suspended.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(fmt.Sprintf("boottime: %v", err)) // POSIX requires the clock
	}
	return time.Duration(t.Nano())
}
