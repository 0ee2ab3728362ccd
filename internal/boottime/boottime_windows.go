// Package boottime reads the clock that also runs while the machine is suspended.
package boottime

import (
	"time"

	"golang.org/x/sys/windows"
)

// Now returns the time since the machine was started, with the time of suspension.
func Now() time.Duration { return windows.DurationSinceBoot() }
