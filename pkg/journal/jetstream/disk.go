package jetstream

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
)

// Disk is the disk of the server in this process. A server whose disk is full turns its
// storage off, so appends of this process fail before.
type Disk struct {
	Dir     string // folder of the server
	MinFree uint64 // bytes of free disk space below which appends fail; 0 is no limit
}

// readDisk reads the free space of the disk.
func (j *Journal) readDisk() {
	if j.opts.Disk == nil {
		return
	}
	usage, err := vfs.Default.GetDiskUsage(j.opts.Disk.Dir)
	if err != nil {
		j.free.Store(nil) // unknown
		return
	}
	j.free.Store(&usage.AvailBytes)
}

// checkDisk returns why the disk does not allow appends, or nil.
func (j *Journal) checkDisk() error {
	free := j.free.Load()
	if free == nil || *free >= j.opts.Disk.MinFree {
		return nil
	}
	return fmt.Errorf("%w: %d bytes are free on the disk of %s, journal.min_free_bytes is %d", journal.ErrFull, *free, j.opts.Disk.Dir, j.opts.Disk.MinFree)
}

// diskUsage adds the disk to u.
func (j *Journal) diskUsage(u *journal.Usage) {
	if j.opts.Disk == nil {
		return
	}
	u.MinFree = j.opts.Disk.MinFree
	if free := j.free.Load(); free != nil {
		u.Free = *free
	}
}
