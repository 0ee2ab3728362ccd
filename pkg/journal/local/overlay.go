package local

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// overlay is a file system that reads from the disk and keeps every change in memory, for
// commands that look at a journal and must not change it.
type overlay struct {
	disk vfs.FS
	mem  *vfs.MemFS

	mu      sync.Mutex
	removed map[string]bool // files on the disk that were removed or renamed
}

func newOverlay(disk vfs.FS) vfs.FS {
	return &overlay{disk: disk, mem: vfs.NewMem(), removed: map[string]bool{}}
}

func (o *overlay) isRemoved(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.removed[name]
}

func (o *overlay) setRemoved(name string, removed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.removed[name] = removed
}

func notExist(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

// changed reports whether memory has a file, or an error if the file is removed.
func (o *overlay) changed(op, name string) (bool, error) {
	if _, err := o.mem.Stat(name); err == nil {
		return true, nil
	}
	if o.isRemoved(name) {
		return false, notExist(op, name)
	}
	return false, nil
}

// layer returns the file system that has a file.
func (o *overlay) layer(op, name string) (vfs.FS, error) {
	changed, err := o.changed(op, name)
	if changed {
		return o.mem, nil
	}
	return o.disk, err
}

// take copies a file from the disk to memory, where it can be changed.
func (o *overlay) take(name string) error {
	changed, err := o.changed("open", name)
	if err != nil || changed {
		return err
	}
	if err := o.mem.MkdirAll(o.PathDir(name), 0o700); err != nil {
		return err
	}
	from, err := o.disk.Open(name)
	if err != nil {
		return err
	}
	to, err := o.mem.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return errors.Join(err, from.Close())
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, from.Close(), to.Close())
}

func (o *overlay) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := o.mem.MkdirAll(o.PathDir(name), 0o700); err != nil {
		return nil, err
	}
	return o.mem.Create(name, category)
}

func (o *overlay) Link(oldname, newname string) error {
	if err := o.take(oldname); err != nil {
		return err
	}
	return o.mem.Link(oldname, newname)
}

func (o *overlay) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	layer, err := o.layer("open", name)
	if err != nil {
		return nil, err
	}
	return layer.Open(name, opts...)
}

func (o *overlay) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := o.take(name); err != nil {
		return nil, err
	}
	return o.mem.OpenReadWrite(name, category, opts...)
}

func (o *overlay) OpenDir(name string) (vfs.File, error) {
	if err := o.mem.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	return o.mem.OpenDir(name)
}

func (o *overlay) Remove(name string) error {
	changed, err := o.changed("remove", name)
	if err != nil {
		return err
	}
	if changed {
		o.setRemoved(name, true)
		return o.mem.Remove(name)
	}
	if _, err := o.disk.Stat(name); err != nil {
		return err
	}
	o.setRemoved(name, true)
	return nil
}

func (o *overlay) RemoveAll(name string) error { return o.mem.RemoveAll(name) }

func (o *overlay) Rename(oldname, newname string) error {
	if err := o.take(oldname); err != nil {
		return err
	}
	o.setRemoved(oldname, true)
	return o.mem.Rename(oldname, newname)
}

func (o *overlay) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := o.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return o.OpenReadWrite(newname, category)
}

func (o *overlay) MkdirAll(dir string, perm os.FileMode) error { return o.mem.MkdirAll(dir, perm) }

// Lock locks nothing: the caller has locked the folder of the journal.
func (o *overlay) Lock(name string) (io.Closer, error) {
	if err := o.mem.MkdirAll(o.PathDir(name), 0o700); err != nil {
		return nil, err
	}
	return o.mem.Lock(name)
}

func (o *overlay) List(dir string) ([]string, error) {
	names, err := o.disk.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return o.isRemoved(o.PathJoin(dir, name)) })
	changed, missing := o.mem.List(dir)
	if err != nil && missing != nil {
		return nil, err
	}
	for _, name := range changed {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (o *overlay) Stat(name string) (vfs.FileInfo, error) {
	layer, err := o.layer("stat", name)
	if err != nil {
		return nil, err
	}
	return layer.Stat(name)
}

func (o *overlay) PathBase(path string) string                     { return o.disk.PathBase(path) }
func (o *overlay) PathJoin(elem ...string) string                  { return o.disk.PathJoin(elem...) }
func (o *overlay) PathDir(path string) string                      { return o.disk.PathDir(path) }
func (o *overlay) GetDiskUsage(path string) (vfs.DiskUsage, error) { return o.disk.GetDiskUsage(path) }

// Unwrap returns nil: changes must not bypass the overlay.
func (o *overlay) Unwrap() vfs.FS { return nil }
