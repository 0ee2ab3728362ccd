package local

import (
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// smallDisk refuses new files while it is full, until the reserve is removed.
type smallDisk struct {
	vfs.FS
	free atomic.Uint64
	full atomic.Bool
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free.Load()}, nil
}

func (d *smallDisk) refuse(name string) error {
	if d.full.Load() {
		return &fs.PathError{Op: "create", Path: name, Err: syscall.ENOSPC}
	}
	return nil
}

func (d *smallDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.refuse(name); err != nil {
		return nil, err
	}
	return d.FS.Create(name, c)
}

func (d *smallDisk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.refuse(to); err != nil {
		return nil, err
	}
	return d.FS.ReuseForWrite(from, to, c)
}

func (d *smallDisk) Remove(name string) error {
	err := d.FS.Remove(name)
	if err == nil && strings.HasSuffix(name, reserveFile) {
		d.full.Store(false)
	}
	return err
}

// A journal on a full disk opens with what its reserve gives; without one it
// says first that the disk is full.
func TestReserve(t *testing.T) {
	const floor = 1 << 20
	d := &smallDisk{FS: vfs.NewCrashableMem()}
	d.free.Store(100 * floor)
	o := options(t, d, "data", newClock())
	o.MinFree = floor
	has := func() bool { _, err := d.Stat("data/" + reserveFile); return err == nil }
	j := mustOpen(t, o)
	if !has() {
		t.Fatal("there is no reserve")
	}
	if _, err := j.Append(t.Context(), journaltest.Event("1")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	d.full.Store(true)
	d.free.Store(floor / 2)
	j = mustOpen(t, o)
	if has() {
		t.Error("the reserve is still there")
	}
	if records, err := j.Read(t.Context(), 1, 10); err != nil || len(records) != 1 {
		t.Errorf("stored events: %d, %v", len(records), err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("2")); !errors.Is(err, journal.ErrFull) {
		t.Errorf("an append: %v, want ErrFull", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	d.full.Store(true)
	if j, err := Open(o); err == nil || !strings.HasPrefix(err.Error(), "disk full: free space on the disk of data: journal data: ") || strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "another process") {
		t.Errorf("a start without the reserve: %v, %v", j, err)
	}

	d.full.Store(false)
	d.free.Store(100 * floor)
	j = mustOpen(t, o)
	if !has() {
		t.Error("the reserve is not made anew")
	}
	if _, err := j.Append(t.Context(), journaltest.Event("3")); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}
