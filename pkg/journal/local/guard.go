package local

import (
	"io"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guard is the file system of one opened store. It makes the first failed write final:
// after a failed sync the written data is not known to be safe (the kernel may drop the
// dirty pages and report success for the next sync), so the store must be reopened from the
// disk.
//
// Pebble ends the process if its log or manifest cannot be written. Therefore the guard
// hides the error from Pebble: it records the failure, reports success, and redirects all
// further changes to memory. The failed store can be closed, and the files on disk do not
// change. No request is acknowledged, because the committer checks failure after each sync.
type guard struct {
	vfs.FS

	mu     sync.RWMutex // read-locked by every change of the disk
	err    error        // the failure; nil before
	failed chan struct{}
	limbo  *vfs.MemFS // receives changes after the failure
}

func newGuard(fs vfs.FS) *guard {
	return &guard{FS: fs, failed: make(chan struct{}), limbo: vfs.NewMem()}
}

// fail makes the store fail with err. When fail returns, no change is in progress and none
// follows.
func (g *guard) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		close(g.failed)
	}
}

// failure returns the failure of the store, or nil.
func (g *guard) failure() error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.err
}

// change runs one change of the disk unless the store has failed, and reports whether the
// change succeeded.
func (g *guard) change(do func() error) bool {
	g.mu.RLock()
	if g.err != nil {
		g.mu.RUnlock()
		return false
	}
	err := do()
	g.mu.RUnlock()
	if err != nil {
		g.fail(err)
		return false
	}
	return true
}

// create opens a file for writing by do, or in limbo.
func (g *guard) create(name string, category vfs.DiskWriteCategory, do func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	if g.change(func() (err error) { f, err = do(); return err }) {
		return &guardedFile{File: f, g: g}, nil
	}
	if err := g.limbo.MkdirAll(g.limbo.PathDir(name), 0o755); err != nil {
		return nil, err
	}
	return g.limbo.Create(name, category)
}

func (g *guard) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return g.create(name, category, func() (vfs.File, error) { return g.FS.Create(name, category) })
}

func (g *guard) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return g.create(name, category, func() (vfs.File, error) { return g.FS.OpenReadWrite(name, category, opts...) })
}

func (g *guard) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return g.create(newname, category, func() (vfs.File, error) { return g.FS.ReuseForWrite(oldname, newname, category) })
}

func (g *guard) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if g.failure() != nil {
		if f, err := g.limbo.Open(name); err == nil {
			return f, nil
		}
	}
	return g.FS.Open(name, opts...)
}

func (g *guard) Stat(name string) (vfs.FileInfo, error) {
	if g.failure() != nil {
		if info, err := g.limbo.Stat(name); err == nil {
			return info, nil
		}
	}
	return g.FS.Stat(name)
}

func (g *guard) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &guardedFile{File: f, g: g}, nil
}

func (g *guard) Link(oldname, newname string) error {
	g.change(func() error { return g.FS.Link(oldname, newname) })
	return nil
}

func (g *guard) Rename(oldname, newname string) error {
	g.change(func() error { return g.FS.Rename(oldname, newname) })
	return nil
}

func (g *guard) MkdirAll(dir string, perm os.FileMode) error {
	g.change(func() error { return g.FS.MkdirAll(dir, perm) })
	return nil
}

// Remove and RemoveAll return their errors: Pebble removes missing files, and an extra file
// does no harm.
func (g *guard) Remove(name string) error    { return g.remove(name, g.FS.Remove) }
func (g *guard) RemoveAll(name string) error { return g.remove(name, g.FS.RemoveAll) }

func (g *guard) remove(name string, do func(string) error) error {
	var err error
	g.change(func() error { err = do(name); return nil })
	return err
}

func (g *guard) Lock(name string) (io.Closer, error) { return g.FS.Lock(name) }

func (g *guard) Unwrap() vfs.FS { return g.FS }

// guardedFile is a file on disk whose changes pass the guard.
type guardedFile struct {
	vfs.File
	g *guard
}

func (f *guardedFile) Write(p []byte) (int, error) {
	f.g.change(func() error { _, err := f.File.Write(p); return err })
	return len(p), nil
}

func (f *guardedFile) WriteAt(p []byte, off int64) (int, error) {
	f.g.change(func() error { _, err := f.File.WriteAt(p, off); return err })
	return len(p), nil
}

func (f *guardedFile) Sync() error {
	f.g.change(f.File.Sync)
	return nil
}

func (f *guardedFile) SyncData() error {
	f.g.change(f.File.SyncData)
	return nil
}

func (f *guardedFile) SyncTo(length int64) (fullSync bool, err error) {
	f.g.change(func() (err error) { fullSync, err = f.File.SyncTo(length); return err })
	return fullSync, nil
}

// Preallocate is a hint; a full disk may refuse the hint.
func (f *guardedFile) Preallocate(offset, length int64) error {
	var err error
	f.g.change(func() error { err = f.File.Preallocate(offset, length); return nil })
	return err
}

func (f *guardedFile) Close() error {
	// The descriptor must be closed in any case. An error of close is a failed write.
	if err := f.File.Close(); err != nil {
		f.g.fail(err)
	}
	return nil
}
