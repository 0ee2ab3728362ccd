package local

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// reserveFile reserves disk space: on a full disk Pebble cannot open its files, and so can
// neither deliver nor remove stored events. The engine deletes the file if opening fails on
// a full disk, and creates it again when there is room. The file has the size of
// journal.min_free_bytes, below which appends fail: the reserved space is for opening,
// delivery and expiry, not for events.
const reserveFile = "RESERVE"

// diskFull reports whether an error means that the disk, or a quota of it, is full.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// reserve creates the reserve if the disk has several times its size free. A file system
// without preallocation has no reserve.
func (j *Journal) reserve(free uint64) {
	if j.opts.MinFree == 0 || j.reserved.Load() || free/4 < j.opts.MinFree {
		return
	}
	path := j.opts.FS.PathJoin(j.opts.Dir, reserveFile)
	j.reserved.Store(true) // not retried four times a second
	f, err := j.opts.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		err = errors.Join(f.Preallocate(0, int64(j.opts.MinFree)), f.Sync(), f.Close())
	}
	if err != nil {
		_ = j.opts.FS.Remove(path) // may be missing
		j.log.Info("no disk space can be reserved for a start on a full disk", zap.String("file", path), zap.Error(err))
	}
}

// spend deletes the reserve, and reports whether it existed.
func (j *Journal) spend() bool {
	path := j.opts.FS.PathJoin(j.opts.Dir, reserveFile)
	if err := j.opts.FS.Remove(path); err != nil {
		return false
	}
	j.reserved.Store(false)
	j.log.Error("disk full: the journal's reserve is given up, so that stored events are delivered; new events are refused until there is room",
		zap.String("dir", j.opts.Dir), zap.Uint64("bytes", j.opts.MinFree))
	return true
}

// open opens the files, if necessary after spending the reserve.
func (j *Journal) open() (*store, error) {
	st, err := j.openFiles()
	if diskFull(err) && j.spend() {
		st, err = j.openFiles()
	}
	return st, err
}

// explained begins the error with the full disk if that is the cause.
func explained(err error, dir string) error {
	if !diskFull(err) {
		return err
	}
	return fmt.Errorf("disk full: free space on the disk of %s: %w", dir, err)
}
