// Package boottime reads the clock that also runs while the machine is suspended. The
// monotonic clock of Go stands still then on Linux, so that a deadline on the monotonic
// clock lasts as much longer as the machine slept.
package boottime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time since the machine was started, with the time of suspension.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("boottime: %v", err)) // the clock exists since Linux 2.6.39
	}
	return time.Duration(t.Nano())
}
