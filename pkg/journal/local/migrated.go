package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

// migratedFile marks a journal that was migrated completely and has not been opened for
// writing since. The file contains the location of the new journal.
const migratedFile = "MIGRATED"

// MarkMigrated records in opts.Dir that the journal was migrated completely. Open removes
// the mark, because the journal may then have events that were not migrated.
func MarkMigrated(opts Options, to string) error {
	opts = opts.withDefaults()
	lock, err := lockDir(opts)
	if err == nil {
		err = errors.Join(writeFile(opts.FS, opts.Dir, migratedFile, to+"\n"), lock.Close())
	}
	if err != nil {
		return fmt.Errorf("journal %s: recording the migration: %w", opts.Dir, err)
	}
	return nil
}

// removeMigrated removes the mark of a migrated journal.
func removeMigrated(opts Options) error {
	if !exists(opts, opts.FS.PathJoin(opts.Dir, migratedFile)) {
		return nil
	}
	if err := opts.FS.Remove(opts.FS.PathJoin(opts.Dir, migratedFile)); err != nil {
		return fmt.Errorf("removing the file %s, which says that the journal was migrated: %w", migratedFile, err)
	}
	return syncDir(opts.FS, opts.Dir)
}

// Migrated reports whether opts.Dir has a journal that was migrated completely and has not been
// opened for writing since.
func Migrated(opts Options) (bool, error) {
	opts = opts.withDefaults()
	_, err := opts.FS.Stat(opts.FS.PathJoin(opts.Dir, migratedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("journal %s: %w", opts.Dir, err)
	}
	return true, nil
}

// Exists reports whether opts.Dir has a journal.
func Exists(opts Options) (bool, error) {
	opts = opts.withDefaults()
	names, err := opts.FS.List(opts.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("journal %s: %w", opts.Dir, err)
	}
	for _, name := range names {
		if name == formatFile || isData(name) || interrupted(names) {
			return true, nil
		}
	}
	return false, nil
}

// Pending returns those of the sinks that have an undelivered event in the journal in
// opts.Dir. A folder without a journal has no events, and those of a migrated journal are
// in the new journal. Pending does not change the journal, and refuses a folder that
// another process uses.
func Pending(ctx context.Context, opts Options, sinks []string) (pending []string, err error) {
	opts = opts.withDefaults()
	if found, err := Exists(opts); err != nil || !found || exists(opts, opts.FS.PathJoin(opts.Dir, migratedFile)) {
		return nil, err
	}
	src, err := OpenSource(opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return transfer.Pending(ctx, src, sinks)
}

// Migration returns the state of the migration that filled the journal in opts.Dir, or nil.
func Migration(opts Options) (state []byte, err error) {
	opts = opts.withDefaults()
	if found, err := Exists(opts); err != nil || !found {
		return nil, err
	}
	s, err := openSource(opts)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", opts.Dir, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	state, err = s.store.get(valueKey(carriedState))
	if errors.Is(err, journal.ErrNotFound) {
		return nil, nil
	}
	return state, err
}
