package pebble

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// reserveFile holds disk space for the time when there is none: an engine that
// cannot write cannot open its files, and so can neither deliver what is stored
// nor remove what is delivered. The file is given up when opening fails on a full
// disk, and made anew when there is room again. It takes as much as
// journal.min_free_bytes, below which events are refused: what it gives is for
// opening, delivering and expiry, not for events.
const reserveFile = "RESERVE"

// diskFull reports whether an error says that the disk, or a share of it, is full.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// reserve makes the reserve where there is none and the disk has room for it,
// several times over. A file system that cannot hold space for a file has none.
func (j *Journal) reserve(free uint64) {
	if j.opts.MinFree == 0 || j.reserved.Load() || free/4 < j.opts.MinFree {
		return
	}
	path := j.opts.FS.PathJoin(j.opts.Dir, reserveFile)
	j.reserved.Store(true) // it is not tried four times a second
	f, err := j.opts.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		err = errors.Join(f.Preallocate(0, int64(j.opts.MinFree)), f.Sync(), f.Close())
	}
	if err != nil {
		_ = j.opts.FS.Remove(path) // it may not be there
		j.log.Info("no disk space can be reserved for a start on a full disk", zap.String("file", path), zap.Error(err))
	}
}

// spend gives up the reserve, and reports whether there was one.
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

// open opens the files, on a full disk with what the reserve gives.
func (j *Journal) open() (*store, error) {
	st, err := j.openFiles()
	if diskFull(err) && j.spend() {
		st, err = j.openFiles()
	}
	return st, err
}

// explained says first that the disk is full, where that is why.
func explained(err error, dir string) error {
	if !diskFull(err) {
		return err
	}
	return fmt.Errorf("disk full: free space on the disk of %s: %w", dir, err)
}
