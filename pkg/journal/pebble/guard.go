package pebble

import (
	"io"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guard is the file system of one opened store. It makes the first failed
// write final: what lies behind a failed sync is not known to be safe (the
// kernel may drop the dirty pages and report the next sync as good), so the
// store must be opened again from what the disk really holds.
//
// Pebble itself ends the process when its log or manifest cannot be written.
// The guard therefore never shows it such an error: it notes the failure,
// pretends that the call went well, and from then on sends every change into
// memory, to be forgotten. The doomed store can so be closed in good order
// while the files on disk stay as they were. Nothing is acknowledged on its
// word, because the committer asks failure after each sync.
type guard struct {
	vfs.FS

	mu     sync.RWMutex // held for reading by every change of the disk
	err    error        // the failure; nil while all is well
	failed chan struct{}
	limbo  *vfs.MemFS // where changes go after the failure
}

func newGuard(fs vfs.FS) *guard {
	return &guard{FS: fs, failed: make(chan struct{}), limbo: vfs.NewMem()}
}

// fail makes the store fail with err. When it returns, no change is under way
// and none follows.
func (g *guard) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		close(g.failed)
	}
}

// failure returns why the store failed, or nil.
func (g *guard) failure() error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.err
}

// change runs one change of the disk, unless the store has failed. It reports
// whether the change was made; a failed one was not.
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

// Remove and RemoveAll show their errors: Pebble asks for files that are not
// there, and a file too many does no harm.
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

// Preallocate is a hint, which a full disk may refuse without harm.
func (f *guardedFile) Preallocate(offset, length int64) error {
	var err error
	f.g.change(func() error { err = f.File.Preallocate(offset, length); return nil })
	return err
}

func (f *guardedFile) Close() error {
	// The descriptor must be given back in any case; what close reports of
	// earlier writes counts as a failed write.
	if err := f.File.Close(); err != nil {
		f.g.fail(err)
	}
	return nil
}
