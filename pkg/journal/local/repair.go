package local

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"

	"github.com/postwire/postwire/pkg/journal/record"
)

// Repaired is the result of a repair.
type Repaired struct {
	Contents
	Kept string `json:"kept"` // folder with the old files; empty if nothing was damaged
}

// A repair has three steps, and each step can be repeated after a crash:
//
//  1. repairing/ is filled with a new journal, which is complete when it has a FORMAT.
//     Sound files are links to the old files, except for the last segment, which grows.
//  2. The files of the folder move to damaged-<time>/, FORMAT first; then repairing/
//     becomes repaired/.
//  3. The files of repaired/ move into the folder, FORMAT last.
//
// A folder during a repair has no FORMAT, so that it cannot be opened.
const (
	repairingDir = "repairing"
	repairedDir  = "repaired"
	damagedDir   = "damaged-" // and the time
	keptFile     = "KEPT"     // in repairing/ and repaired/: the name of that folder
)

var errInterrupted = errors.New("a repair of it was interrupted: run 'postwire journal repair' again")

// interrupted reports whether a repair of the folder was interrupted.
func interrupted(names []string) bool {
	return !slices.Contains(names, formatFile) && (slices.Contains(names, repairingDir) || slices.Contains(names, repairedDir))
}

// ours reports whether a file belongs to the journal.
func ours(name string) bool {
	return name != "LOCK" && name != repairingDir && name != repairedDir && !strings.HasPrefix(name, damagedDir)
}

// Repair makes a journal of the readable data in opts.Dir, and keeps the old files in a
// subfolder. It does not change a sound journal. The journal must not be in use. Repair can
// be repeated after an interruption.
func Repair(ctx context.Context, opts Options) (Repaired, error) {
	opts = opts.withDefaults()
	done, err := repair(ctx, opts)
	if err != nil {
		return done, fmt.Errorf("repairing the journal %s: %w", opts.Dir, err)
	}
	return done, nil
}

func repair(ctx context.Context, opts Options) (done Repaired, err error) {
	lock, names, err := enter(opts)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	fsys, dir := opts.FS, opts.Dir
	building, ready := fsys.PathJoin(dir, repairingDir), fsys.PathJoin(dir, repairedDir)

	if !slices.Contains(names, repairedDir) {
		// With a FORMAT the folder may have been used since an earlier repair.
		if slices.Contains(names, formatFile) || !exists(opts, fsys.PathJoin(building, formatFile)) {
			if err := fsys.RemoveAll(building); err != nil {
				return done, err
			}
			sound, err := rebuild(ctx, opts, building, &done.Contents)
			if err != nil || sound {
				return done, err
			}
		}
		if done.Kept, err = moveOldFiles(opts); err != nil {
			return done, err
		}
		if err := errors.Join(fsys.Rename(building, ready), syncDir(fsys, dir)); err != nil {
			return done, err
		}
	}
	moved, err := fsys.List(ready)
	if err != nil {
		return done, err
	}
	moved = slices.DeleteFunc(moved, func(name string) bool { return name == keptFile })
	slices.SortFunc(moved, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	if err := move(opts, moved, ready, dir); err != nil {
		return done, err
	}
	if err := errors.Join(fsys.RemoveAll(ready), syncDir(fsys, dir)); err != nil {
		return done, err
	}
	s, err := examine(ctx, opts)
	if err != nil {
		return done, err
	}
	damage := done.Damage
	done.Contents = s.contents(s.lost)
	done.Damage = append(damage, done.Damage...)
	return done, s.close()
}

// rank sorts the format marker last.
func rank(name string) int {
	if name == formatFile {
		return 1
	}
	return 0
}

// moveOldFiles moves the files of the folder to a subfolder, whose name the new journal has
// for a repair that continues.
func moveOldFiles(opts Options) (kept string, err error) {
	fsys := opts.FS
	building := fsys.PathJoin(opts.Dir, repairingDir)
	kept, err = readFile(fsys, fsys.PathJoin(building, keptFile))
	if errors.Is(err, fs.ErrNotExist) {
		kept = damagedDir + opts.Clock().UTC().Format("20060102T150405.000Z")
		err = writeFile(fsys, building, keptFile, kept)
	}
	if err != nil {
		return "", err
	}
	kept = fsys.PathJoin(opts.Dir, kept)
	names, err := fsys.List(opts.Dir)
	if err := errors.Join(err, fsys.MkdirAll(kept, 0o700), syncDir(fsys, opts.Dir)); err != nil {
		return "", err
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(rank(b), rank(a)) })
	return kept, move(opts, slices.DeleteFunc(names, func(n string) bool { return !ours(n) }), opts.Dir, kept)
}

// move moves files in the order of their names, and syncs the folders.
func move(opts Options, names []string, from, to string) error {
	for i, name := range names {
		if name == "LOCK" {
			continue
		}
		// the marker moves before or after the other files
		if i > 0 && (rank(names[i-1]) == 1 || rank(name) == 1) {
			if err := errors.Join(syncDir(opts.FS, to), syncDir(opts.FS, from)); err != nil {
				return err
			}
		}
		if err := opts.FS.Rename(opts.FS.PathJoin(from, name), opts.FS.PathJoin(to, name)); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(opts.FS, to), syncDir(opts.FS, from))
}

func exists(opts Options, path string) bool {
	_, err := opts.FS.Stat(path)
	return err == nil
}

// enter locks a journal folder and lists its files.
func enter(opts Options) (*pebble.Lock, []string, error) {
	names, err := opts.FS.List(opts.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errors.New("there is no such folder")
	}
	if err != nil {
		return nil, nil, err
	}
	if !interrupted(names) && !slices.ContainsFunc(names, isData) && !slices.Contains(names, formatFile) {
		return nil, nil, errors.New("the folder holds no journal")
	}
	lock, err := lockDir(opts)
	if err != nil {
		return nil, nil, err
	}
	return lock, names, nil
}

// rebuild writes a new journal of the readable data in opts.Dir, and reports true instead if
// the journal is sound.
func rebuild(ctx context.Context, opts Options, to string, c *Contents) (sound bool, err error) {
	s, err := examine(ctx, opts)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	*c = s.contents(s.unadmitted())
	if c.Sound() {
		return true, nil
	}
	if err := makeDir(opts.FS, to); err != nil {
		return false, err
	}
	// New events may get the sequences of lost events, so they must not share a message ID
	// with events that a broker has.
	m := s.marker
	if m.id, err = uuid.NewRandom(); err != nil {
		return false, err
	}
	building := opts
	building.Dir = to
	if err := errors.Join(s.copyLog(building), s.copyBodies(building), s.copyIndex(ctx, building)); err != nil {
		return false, err
	}
	st, err := newJournal(building, nil, m).openStore(newGuard(building.FS))
	if err != nil {
		return false, err
	}
	err = s.finish(st)
	if err := errors.Join(err, st.db.Flush(), st.guard.failure(), st.close()); err != nil {
		return false, err
	}
	return false, writeFile(building.FS, to, formatFile, m.String())
}

// copyLog links the intact segments, and writes the others anew with their readable frames.
func (s *survey) copyLog(building Options) error {
	fsys := s.opts.FS
	from, to := fsys.PathJoin(s.opts.Dir, logDir), fsys.PathJoin(building.Dir, logDir)
	if err := fsys.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for i, seg := range s.segments {
		name := segmentName(seg.number)
		if seg.intact && i+1 < len(s.segments) {
			if err := fsys.Link(fsys.PathJoin(from, name), fsys.PathJoin(to, name)); err != nil {
				return err
			}
			continue
		}
		var next uint32
		if i+1 < len(s.segments) {
			next = s.segments[i+1].number
		}
		if err := s.rewriteSegment(from, to, seg.number, next); err != nil {
			return fmt.Errorf("rewriting %s: %w", segmentFile(seg.number), err)
		}
	}
	return syncDir(fsys, to)
}

// rewriteSegment writes the readable frames of a segment to a new file.
func (s *survey) rewriteSegment(from, to string, number, next uint32) (err error) {
	file, err := s.opts.FS.Create(s.opts.FS.PathJoin(to, segmentName(number)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var at int64
	write := func(payload []byte) error {
		b := append(make([]byte, headerBytes, headerBytes+len(payload)), payload...)
		seal(b, s.marker.salt, number, uint32(at))
		at += int64(len(b))
		_, err := file.Write(b)
		return err
	}
	err = eachFrame(s.opts.FS, from, number, s.marker.salt, func(_ *frameReader, f frame) error {
		if kind := f.payload[0]; kind != entriesFrame && kind != compressedFrame {
			return nil
		}
		if (&survey{}).readEntries(f.payload) != nil {
			return nil //nolint:nilerr // examine has reported the frame
		}
		return write(f.payload)
	}, func(r *frameReader, _ error) (bool, error) { return r.resume(number + generations) })
	if err == nil && next != 0 {
		err = write(binary.LittleEndian.AppendUint32([]byte{nextFrame}, next))
	}
	return errors.Join(err, file.Sync())
}

// copyBodies links the bodies of quarantined requests.
func (s *survey) copyBodies(building Options) error {
	fsys := s.opts.FS
	from, to := fsys.PathJoin(s.opts.Dir, quarantineDir), fsys.PathJoin(building.Dir, quarantineDir)
	names, err := fsys.List(from)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := fsys.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := fsys.Link(fsys.PathJoin(from, name), fsys.PathJoin(to, name)); err != nil {
			return err
		}
	}
	return syncDir(fsys, to)
}

// copyIndex writes the readable entries of the index to a new index, which is complete before
// the first segment: the log brings it up to date.
func (s *survey) copyIndex(ctx context.Context, building Options) error {
	db, err := pebble.Open(building.FS.PathJoin(building.Dir, indexDir), indexOptions(building, building.FS))
	if err != nil {
		return err
	}
	b := db.NewBatch()
	copied := &survey{opts: s.opts}
	for _, space := range spaces {
		if s.db == nil || space == eventSpace || space == segmentSpace || space == quarantineSpace || err != nil {
			continue
		}
		_, err = eachEntry(s.db, space, func(key, value []byte) error {
			if copied.readEntryOf(s.db, key, value) != nil {
				return nil //nolint:nilerr // examine has reported the entry
			}
			if err := b.Set(key, value, nil); err != nil || b.Len() < 1<<20 {
				return cmp.Or(err, ctx.Err())
			}
			err := errors.Join(b.Commit(pebble.NoSync), b.Close())
			b = db.NewBatch()
			return err
		})
	}
	if err == nil && s.db != nil {
		_, err = eachEntry(s.db, quarantineSpace, func(key, value []byte) error { return b.Set(key, value, nil) })
	}
	if len(s.segments) > 0 {
		first := segmentInfo{number: s.segments[0].number}
		err = errors.Join(err, b.Set(metaLogKey(), appendLogPosition(nil, first, first.number), nil))
	} else {
		err = errors.Join(err, b.Delete(metaLogKey(), nil))
	}
	// The cursors are behind the end of the log, also if that end is lost.
	err = errors.Join(err, b.Set(metaLastKey(), binary.BigEndian.AppendUint64(nil, uint64(s.last)), nil))
	return errors.Join(err, b.Commit(pebble.NoSync), b.Close(), db.Flush(), db.Close())
}

// finish records the lost events, so that cursors pass them, and removes the requests that
// cannot be read.
func (s *survey) finish(st *store) error {
	b := st.db.NewBatch()
	for _, l := range s.lost {
		if err := b.Set(lostKey(l.From), binary.BigEndian.AppendUint64(nil, uint64(l.To)), nil); err != nil {
			return err
		}
	}
	last := binary.BigEndian.AppendUint64(nil, uint64(s.last))
	first := binary.BigEndian.AppendUint64(nil, uint64(s.oldest))
	if err := errors.Join(b.Set(metaLastKey(), last, nil), b.Set(metaFirstKey(), first, nil)); err != nil {
		return err
	}
	if n := len(s.segments); n > 0 {
		linked := binary.BigEndian.AppendUint64(nil, uint64(s.segments[n-1].number))
		if err := b.Set(metaLinkedKey(), linked, nil); err != nil {
			return err
		}
	}
	_, err := eachEntry(st.db, cursorSpace, func(key, value []byte) error {
		committed, start, err := decodeCursor(value)
		if err != nil {
			return err
		}
		// A cursor right before lost events passes them.
		return b.Set(key, encodeCursor(skip(s.lost, committed+1)-1, start), nil)
	})
	if err != nil {
		return err
	}
	// A sink with a lost position must not begin after undelivered events.
	if slices.ContainsFunc(s.damage, func(d Damage) bool { return d.cursors }) {
		if err := b.Set(metaRepairedKey(), last, nil); err != nil {
			return err
		}
	}
	if err := s.repairQuarantine(st, b); err != nil {
		return err
	}
	return errors.Join(b.Commit(pebble.NoSync), b.Close())
}

// repairQuarantine removes the requests without a body, and makes the receipts of a request
// that has lost its receipts.
func (s *survey) repairQuarantine(st *store, b *pebble.Batch) error {
	if err := errors.Join(
		b.DeleteRange([]byte{identitySpace}, []byte{identitySpace + 1}, nil),
		b.DeleteRange([]byte{orderSpace}, []byte{orderSpace + 1}, nil),
	); err != nil {
		return err
	}
	type request struct {
		identity
		*receipts
	}
	var requests []request
	_, err := eachEntry(st.db, quarantineSpace, func(key, value []byte) error {
		i, r, err := s.requestWithReceipts(st, value)
		if errors.Is(err, errUnreadableRequest) {
			return b.Delete(key, nil)
		}
		requests = append(requests, request{i, r})
		return err
	})
	slices.SortStableFunc(requests, func(a, b request) int { return a.Last.Compare(b.Last) })
	for n, r := range requests {
		r.Number = uint64(n) + 1
		text, marshal := json.Marshal(r.receipts)
		err = errors.Join(err, marshal,
			b.Set(identityKey(r.identity), text, nil), b.Set(orderKey(r.Source, r.Number), encodeOrder(r.identity, r.Bytes), nil))
	}
	return err
}

var errUnreadableRequest = errors.New("the request cannot be read")

// requestWithReceipts returns the receipts of a readable request, or one receipt if they are
// lost.
func (s *survey) requestWithReceipts(st *store, value []byte) (i identity, r *receipts, err error) {
	i, rest, err := splitRejected(value)
	if err != nil {
		return i, nil, errUnreadableRequest
	}
	q, err := record.DecodeRejected(rest)
	if err != nil {
		return i, nil, errUnreadableRequest
	}
	body, err := st.bodies.read(q.ID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return i, nil, errUnreadableRequest
	}
	if q.Body = body; identity(q.Identity()) != i {
		return i, nil, errUnreadableRequest
	}
	text, err := st.get(identityKey(i))
	if err == nil {
		r, err = decodeReceipts(text)
	}
	if err == nil && r.ID == q.ID {
		return i, r, nil
	}
	if err == nil {
		return i, nil, errUnreadableRequest // another request of this identity has the receipts
	}
	q = q.WithDefaults(q.Received)
	r = &receipts{ID: q.ID, Source: q.Source, Bytes: sizeOf(len(value), len(body)), Count: q.Count, Last: q.LastReceived}
	return i, r, nil
}
