package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// quarantineDir is the folder of the bodies of quarantined requests.
const quarantineDir = "quarantine"

// bodies stores the bodies of quarantined requests, one file each, so that a removed request
// frees its disk space at once. A file is on stable storage before the log has its request,
// and is removed after the log has the removal. A crash in between leaves a file without a
// request, which the next opening removes.
type bodies struct {
	fs  vfs.FS
	dir string

	// reserved are the sizes of bodies whose requests are not in the log yet.
	reserved atomic.Int64

	mu      sync.Mutex
	round   *syncRound // of the bodies that are being stored
	removed []string   // IDs of removed requests whose files are left
	syncing sync.Mutex
	wake    chan struct{} // has an element while removed may have some
}

func newBodies(opts Options) *bodies {
	return &bodies{fs: opts.FS, dir: opts.FS.PathJoin(opts.Dir, quarantineDir), round: &syncRound{}, wake: make(chan struct{}, 1)}
}

// syncRound is one sync of the folder for all bodies that wait for it.
type syncRound struct {
	once sync.Once
	err  error
}

// sync syncs the folder after the caller has made a file. Concurrent callers share a sync.
func (b *bodies) sync() error {
	b.mu.Lock()
	round := b.round
	b.mu.Unlock()
	round.once.Do(func() {
		b.syncing.Lock()
		defer b.syncing.Unlock()
		b.mu.Lock()
		b.round = &syncRound{} // of later files
		b.mu.Unlock()
		round.err = syncDir(b.fs, b.dir)
	})
	return round.err
}

// bodyName returns the name of the file of a request: an ID may hold any characters.
func bodyName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16])
}

func (b *bodies) path(id string) string { return b.fs.PathJoin(b.dir, bodyName(id)) }

// write stores the body of a request. An empty body has no file.
func (b *bodies) write(id string, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	f, err := b.fs.Create(b.path(id), vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("storing a body: %w", err)
	}
	_, err = f.WriteAt(body, 0) // Write of the in-memory file system may change body
	if err := errors.Join(err, f.Sync(), f.Close(), b.sync()); err != nil {
		return fmt.Errorf("storing a body: %w", err)
	}
	return nil
}

// read returns the body of a request. Its error may wrap fs.ErrNotExist.
func (b *bodies) read(id string) ([]byte, error) {
	f, err := b.fs.Open(b.path(id))
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(f)
	return body, errors.Join(err, f.Close())
}

// remove removes the files of removed requests in the background.
func (b *bodies) remove(ids []string) {
	if len(ids) == 0 {
		return
	}
	b.mu.Lock()
	b.removed = append(b.removed, ids...)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// removeBodies removes files until Close. After Close the next opening removes them.
func (j *Journal) removeBodies() {
	b := j.bodies
	for {
		select {
		case <-b.wake:
		case <-j.stop:
			return
		}
		b.mu.Lock()
		ids := b.removed
		b.removed = nil
		b.mu.Unlock()
		for _, id := range ids {
			if err := b.fs.Remove(b.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				j.log.Warn("removing the body of a quarantined request failed; the next start removes the file", zap.String("path", b.path(id)), zap.Error(err))
			}
		}
	}
}

// sweep removes the files without a request. Nothing writes bodies meanwhile.
func (b *bodies) sweep(st *store) error {
	names, err := b.fs.List(b.dir)
	if err != nil {
		return fmt.Errorf("listing the bodies of quarantined requests: %w", err)
	}
	if len(names) == 0 {
		return nil
	}
	known := map[string]bool{}
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{quarantineSpace}, UpperBound: []byte{quarantineSpace + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		known[bodyName(string(it.Key()[1:]))] = true
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return damaged(err)
	}
	for _, name := range names {
		if known[name] {
			continue
		}
		if err := b.fs.Remove(b.fs.PathJoin(b.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the body of a removed request: %w", err)
		}
	}
	return nil
}
