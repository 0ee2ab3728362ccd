//go:build !unix

package app

// descriptorLimit returns the limit of open files; 0 is unknown.
func descriptorLimit() uint64 { return 0 }
