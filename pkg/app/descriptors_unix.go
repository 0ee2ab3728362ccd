//go:build unix

package app

import "golang.org/x/sys/unix"

// descriptorLimit is how many files the process may open; 0 is unknown.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur) //nolint:unconvert // it is signed on some systems
}
