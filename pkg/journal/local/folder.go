package local

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func lockDir(opts Options) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(opts.Dir, opts.FS)
	if diskFull(err) {
		return nil, fmt.Errorf("locking the folder: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("another process uses this folder (one journal serves one process; stop the other, start this one with --takeover, or set journal.dir): %w", err)
	}
	return lock, nil
}

// makeDir creates dir and syncs its parent folders, so that a crash does not remove one of
// them with the journal. The sync happens until the folder has a format marker, because the
// folders that a failed attempt created are unknown.
func makeDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(fsys.PathJoin(dir, formatFile)); err == nil {
		return nil
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for path := dir; fsys.PathDir(path) != path; {
		path = fsys.PathDir(path)
		// An earlier attempt did not create a folder that this process may not read.
		if err := syncDir(fsys, path); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// advice is the advice for a damaged journal.
const advice = "restore it, or stop the relay and run 'postwire journal check', which says what is wrong, and 'postwire journal repair', which saves what can be read"

// damageError is an error in the journal's files.
type damageError struct {
	file string // in the folder of the journal; may be empty
	err  error
}

func (e *damageError) Error() string {
	if e.file == "" {
		return fmt.Sprintf("the journal is damaged (%v): %s", e.err, advice)
	}
	return fmt.Sprintf("the journal's file %s is damaged (%v): %s", e.file, e.err, advice)
}

func (e *damageError) Unwrap() error { return e.err }

// damaged explains an error in the journal's files.
func damaged(err error) error {
	if e, ok := errors.AsType[*damageError](err); ok {
		return e
	}
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		return &damageError{indexDir + "/" + filepath.Base(info.Path), info.Details}
	}
	return &damageError{err: err}
}
