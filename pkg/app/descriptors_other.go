//go:build !unix

package app

// descriptorLimit is how many files the process may open; 0 is unknown.
func descriptorLimit() uint64 { return 0 }
