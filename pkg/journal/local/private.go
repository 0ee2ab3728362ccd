package local

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// private is a file system that makes files of the journal accessible to its user only,
// because webhooks contain personal data. It narrows the mode of a new file before any
// write.
type private struct {
	vfs.FS
	chmod func(name string, mode os.FileMode) error
}

const (
	privateDir  = 0o700
	privateFile = 0o600
)

// privateDisk wraps a file system on the local disk. Other file systems and Windows have no
// modes.
func privateDisk(fsys vfs.FS) vfs.FS {
	if _, ok := fsys.(private); ok || vfs.Root(fsys) != vfs.Default || runtime.GOOS == "windows" {
		return fsys
	}
	return private{fsys, os.Chmod}
}

// narrow makes a new file private. If that fails, the folder is private, or a warning was
// logged.
func (p private) narrow(name string) { _ = p.chmod(name, privateFile) }

func (p private) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(name, category)
	if err == nil {
		p.narrow(name)
	}
	return f, err
}

func (p private) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.OpenReadWrite(name, category, opts...)
	if err == nil {
		p.narrow(name)
	}
	return f, err
}

func (p private) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.ReuseForWrite(oldname, newname, category)
	if err == nil {
		p.narrow(newname)
	}
	return f, err
}

func (p private) Lock(name string) (io.Closer, error) {
	lock, err := p.FS.Lock(name)
	if err == nil {
		p.narrow(name)
	}
	return lock, err
}

func (p private) MkdirAll(dir string, perm os.FileMode) error {
	return p.FS.MkdirAll(dir, perm&privateDir)
}

func (p private) Unwrap() vfs.FS { return p.FS }

// tighten makes the folder and files of a journal private, and warns about files that it
// cannot change, such as a volume of another user with a group.
func (p private) tighten(dir string, log *zap.Logger) {
	var open []string
	root, err := filepath.EvalSymlinks(dir)
	if err == nil {
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil || info.Mode().Type()&^fs.ModeDir != 0 || info.Mode().Perm()&^privateDir == 0 {
				return nil //nolint:nilerr // removed meanwhile
			}
			if err := p.chmod(path, info.Mode().Perm()&privateDir); err != nil {
				open = append(open, fmt.Sprintf("%s (%v)", path, info.Mode()))
			}
			return nil
		})
	}
	if err != nil {
		log.Warn("the modes of the journal's files cannot be looked at", zap.String("dir", dir), zap.Error(err))
	}
	if len(open) == 0 {
		return
	}
	const shown = 5
	log.Warn("other users may reach the journal, and its user cannot change that", zap.String("dir", dir),
		zap.Strings("open", open[:min(shown, len(open))]), zap.Int("files", len(open)),
		zap.String("advice", "make the folder 0700 and its files 0600, and the relay's user their owner"))
}
