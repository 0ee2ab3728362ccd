//go:build !race

package natstest

import (
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ClockShifts reports whether Node.ShiftClock works on this platform.
const ClockShifts = true

// An internal time.Time with a monotonic reading.
const (
	hasMonotonic = 1 << 63
	nsecShift    = 30
	// Seconds from 1885, the beginning of a wall time with a monotonic reading, to 1970.
	from1885 = (1969-1884)*365*86400 + (1969/4-1884/4-(1969/100-1884/100)+(1969/400-1884/400))*86400
)

type timeFields struct {
	wall uint64
	ext  int64
	loc  *time.Location
}

// followClock makes time.Now in this process return the time plus the duration in a file,
// which may change. Only the wall clock jumps, as on a machine whose clock is set: the
// monotonic clock, timers and timeouts go on. The Go runtime cannot be told so, and the
// server has no clock of its own: followClock replaces the first instructions of time.Now
// with a jump. The race detector cannot follow there. It returns a function that keeps the replacement alive.
func followClock(path string) (keep func(), err error) {
	var shift atomic.Int64
	read := func() error {
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(strings.TrimSpace(string(text)))
		shift.Store(int64(d))
		return err
	}
	// The runtime's timers call time.Now where no system call may be announced to the
	// scheduler. The clocks exist on every Linux.
	clock := func(id uintptr) int64 {
		var t unix.Timespec
		_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&t)), 0)
		return t.Nano()
	}
	before := time.Now()
	start := clock(unix.CLOCK_MONOTONIC) - (*timeFields)(unsafe.Pointer(&before)).ext
	now := func() (t time.Time) {
		wall := clock(unix.CLOCK_REALTIME) + shift.Load()
		*(*timeFields)(unsafe.Pointer(&t)) = timeFields{
			hasMonotonic | uint64(wall/1e9+from1885)<<nsecShift | uint64(wall%1e9), clock(unix.CLOCK_MONOTONIC) - start, time.Local,
		}
		return t
	}
	if got := now(); got.Sub(before).Abs() > time.Second || got.Round(0).Sub(before.Round(0)).Abs() > time.Second {
		return nil, fmt.Errorf("time.Time has another layout than this file knows: %v instead of %v", got, before)
	}
	// mov rdx, address of the closure; jmp [rdx]
	code := []byte{0x48, 0xba, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0x22}
	*(*uintptr)(unsafe.Pointer(&code[2])) = *(*uintptr)(unsafe.Pointer(&now))
	entry := reflect.ValueOf(time.Now).Pointer()
	page := uintptr(os.Getpagesize())
	first := entry &^ (page - 1)
	text := unsafe.Slice(*(**byte)(unsafe.Pointer(&first)), (entry+uintptr(len(code))-first+page-1)&^(page-1))
	if err := unix.Mprotect(text, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC); err != nil {
		return nil, fmt.Errorf("replacing time.Now: %w", err)
	}
	copy(text[entry-first:], code)
	if err := unix.Mprotect(text, unix.PROT_READ|unix.PROT_EXEC); err != nil {
		return nil, fmt.Errorf("replacing time.Now: %w", err)
	}
	if err := read(); err != nil {
		return nil, err
	}
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			if err := read(); err != nil && !strings.Contains(err.Error(), "invalid duration") { // half written
				fmt.Fprintln(os.Stderr, "following the clock:", err)
			}
		}
	}()
	return func() { runtime.KeepAlive(now) }, nil
}
