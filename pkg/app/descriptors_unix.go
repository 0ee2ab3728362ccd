//go:build unix

package app

import "golang.org/x/sys/unix"

// descriptorLimit returns the limit of open files; 0 is unknown.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur) //nolint:unconvert // signed on some systems
}
