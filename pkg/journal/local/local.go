// Package local is the journal engine on the local disk. A log of segments holds every
// event with its identity keys, and every other change. One committer groups waiting
// requests into one synced write, so that deduplication and durability are one atomic act,
// and many appends share a sync. An index, a Pebble store, follows the log: identity keys,
// positions of events, cursors, dead letters. After a crash the index is brought up to date
// from the end of the log. The bodies of quarantined requests are files.
package local

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Options of the engine. Dir and Window are needed.
type Options struct {
	Dir       string
	Window    time.Duration // dedupe window, from the first receipt of a key
	Retention time.Duration // how long the journal keeps events that every cursor has passed
	MaxBytes  uint64        // size of the journal at which appends fail; 0 is no limit
	MinFree   uint64        // bytes of free disk space below which appends fail

	// Quarantine is the limit of the quarantined requests of one source, in bytes. Beyond
	// the limit the engine discards the oldest; 0 is journal.DefaultQuarantine.
	Quarantine uint64
	// Discarded is called by one goroutine when quarantined requests were discarded. Nil is
	// allowed.
	Discarded func(journal.QuarantineDiscards)

	Name     string // name of this process, the owner of cursors
	KeepKeys bool   // read the identity keys with the records

	Log   *zap.Logger      // nil logs nothing
	FS    vfs.FS           // nil is the disk
	Clock func() time.Time // nil is time.Now
	Every time.Duration    // interval between two removals of expired data; 0 is a minute

	filling bool // a migration writes the journal and may be unfinished
	// Synced is called by one goroutine with the number of changes of each synced write.
	// Nil is allowed.
	Synced func(changes int)

	segment int64 // size of a segment in bytes; 0 is 16 MiB, or less in a small journal. Tests use small segments.
}

// Journal implements journal.Journal.
type Journal struct {
	opts     Options
	log      *zap.Logger
	lock     *pebble.Lock
	marker   marker
	requests chan *request
	stop     chan struct{} // closed by Close
	life     context.Context
	end      context.CancelFunc // with stop
	ended    chan struct{}      // closed when the committer has answered all requests
	done     sync.WaitGroup

	tail      tail
	room      atomic.Pointer[room]
	measuring sync.Mutex // one measurement at a time
	// reserved: the reserve exists or cannot be made.
	reserved        atomic.Bool
	trimmed         atomic.Uint64 // events removed before their retention
	quarantineCount atomic.Int64  // quarantined requests on stable storage
	quarantineBytes atomic.Int64  // their size
	rotated         chan struct{} // wakes makeRoom
	bodies          *bodies
	discards        discards

	mu      sync.Mutex
	store   *store        // nil while the store is reopened
	failure error         // why the store is reopened
	changed chan struct{} // closed and replaced when store, durable or closed changes
	durable journal.Seq
	oldest  journal.Seq // no event before this sequence is stored
	cursors map[string]*cursor
	pins    map[string]pin
	closed  bool
}

var _ journal.Journal = (*Journal)(nil)

const (
	formatFile    = "FORMAT"
	formatName    = "postwire-journal"
	formatVersion = 4
)

// Open opens or creates the journal in opts.Dir. It refuses a folder that another process
// uses, and a journal of another format.
func Open(opts Options) (_ *Journal, err error) {
	defer func() { err = explained(err, opts.Dir) }()
	if opts.Window <= 0 {
		return nil, fmt.Errorf("journal: the dedupe window is %v, it must be longer than 0", opts.Window)
	}
	opts = opts.withDefaults()
	if err := makeDir(opts.FS, opts.Dir); err != nil {
		return nil, fmt.Errorf("journal %s: making the folder: %w", opts.Dir, err)
	}
	lock, err := lockDir(opts)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", opts.Dir, err)
	}
	m, err := checkFormat(opts.FS, opts.Dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), lock.Close())
	}
	if p, ok := opts.FS.(private); ok {
		p.tighten(opts.Dir, opts.Log)
	}
	j := newJournal(opts, lock, m)
	st, err := j.open()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), lock.Close())
	}
	if err := errors.Join(j.bodies.sweep(st), j.pinAll(j.life)); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: opening: %w", opts.Dir, err), st.close(), lock.Close())
	}
	_, err = opts.FS.Stat(opts.FS.PathJoin(opts.Dir, reserveFile))
	j.reserved.Store(err == nil)
	j.measure()
	j.done.Go(func() { j.run(st) })
	j.done.Go(j.expire)
	j.done.Go(j.watch)
	j.done.Go(j.makeRoom)
	j.done.Go(j.removeBodies)
	return j, nil
}

func newJournal(opts Options, lock *pebble.Lock, m marker) *Journal {
	j := &Journal{
		opts: opts, log: opts.Log, lock: lock, marker: m,
		requests: make(chan *request, maxGroupRequests),
		stop:     make(chan struct{}),
		ended:    make(chan struct{}),
		changed:  make(chan struct{}),
		rotated:  make(chan struct{}, 1),
		bodies:   newBodies(opts),
		cursors:  map[string]*cursor{},
		pins:     map[string]pin{},
	}
	j.life, j.end = context.WithCancel(context.Background())
	j.room.Store(&room{})
	return j
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	o.FS = privateDisk(o.FS)
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Every <= 0 {
		o.Every = time.Minute
	}
	if o.segment == 0 {
		// Room is made and limits are kept in segments.
		o.segment = 16 << 20
		if o.MaxBytes > 0 {
			o.segment = min(max(int64(o.MaxBytes/64), 256<<10), o.segment)
		}
	}
	if o.Quarantine == 0 {
		o.Quarantine = journal.DefaultQuarantine(o.MaxBytes)
	}
	if o.Discarded == nil {
		o.Discarded = func(journal.QuarantineDiscards) {}
	}
	return o
}

func lockDir(opts Options) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(opts.Dir, opts.FS)
	if diskFull(err) {
		return nil, fmt.Errorf("locking the folder: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("another process uses this folder (one journal serves one process; stop the other, or set journal.dir): %w", err)
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

// marker is the format marker of a journal. The index has a copy.
type marker struct {
	salt uint32 // see segment.go
	id   uuid.UUID
}

func newMarker() (m marker, err error) {
	var salt [4]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return m, fmt.Errorf("making the salt of the journal: %w", err)
	}
	m.salt = binary.BigEndian.Uint32(salt[:])
	if m.id, err = uuid.NewRandom(); err != nil {
		return m, fmt.Errorf("making the ID of the journal: %w", err)
	}
	return m, nil
}

func (m marker) String() string {
	return fmt.Sprintf("%s %d %08x %s\n", formatName, formatVersion, m.salt, m.id)
}

// errMarker is wrapped if the format marker is missing or invalid.
var errMarker = errors.New("no marker of a journal")

// checkFormat checks the format marker and that it belongs to the other files, or
// initializes a new folder.
func checkFormat(fsys vfs.FS, dir string) (m marker, err error) {
	names, err := fsys.List(dir)
	if err != nil {
		return m, fmt.Errorf("listing the folder: %w", err)
	}
	data := slices.IndexFunc(names, func(name string) bool {
		if !isData(name) {
			return false
		}
		files, err := fsys.List(fsys.PathJoin(dir, name))
		return err != nil || len(files) > 0 // a crash may leave new folders
	})
	m, err = readMarker(fsys, dir)
	switch {
	case interrupted(names):
		return m, errInterrupted
	case errors.Is(err, fs.ErrNotExist) && data >= 0:
		return m, fmt.Errorf("it holds %s and has no file %s: %s", names[data], formatFile, advice)
	case errors.Is(err, fs.ErrNotExist):
		for _, name := range names {
			// A crash may have left the lock and half of the marker.
			if name != "LOCK" && name != formatFile+".tmp" && !isData(name) {
				return m, fmt.Errorf("the folder is not empty (it holds %s) and has no file %s, so it is no journal; set journal.dir to a new folder", name, formatFile)
			}
		}
		if m, err = newMarker(); err != nil {
			return m, err
		}
		return m, writeFile(fsys, dir, formatFile, m.String())
	case err != nil:
		return m, err
	}
	if data >= 0 && (!slices.Contains(names, indexDir) || !slices.Contains(names, logDir)) {
		return m, fmt.Errorf("it holds %s, and one of the folders %s and %s is missing: %s", names[data], indexDir, logDir, advice)
	}
	return m, nil
}

// isData reports whether a file belongs to the data of a journal.
func isData(name string) bool { return name == logDir || name == indexDir || name == quarantineDir }

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

// readMarker reads the format marker.
func readMarker(fsys vfs.FS, dir string) (m marker, err error) {
	path := fsys.PathJoin(dir, formatFile)
	text, err := readFile(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w: %w", errMarker, err)
	}
	if err != nil {
		return m, fmt.Errorf("reading the format marker: %w", err)
	}
	if m, err = parseMarker(text); errors.Is(err, errMarker) {
		return m, fmt.Errorf("%w: %s does not hold one: restore that file, set journal.dir to a new folder, or run 'postwire journal repair'", errMarker, path)
	}
	return m, err
}

// parseMarker parses a format marker. Its error may be errMarker.
func parseMarker(text string) (m marker, err error) {
	fields := strings.Fields(text)
	if len(fields) < 2 || fields[0] != formatName {
		return m, errMarker
	}
	version, err := strconv.Atoi(fields[1])
	if err != nil {
		return m, errMarker
	}
	if version != formatVersion {
		return m, fmt.Errorf("it was written in format %d by another version of postwire, this version reads format %d: install that version again, or set journal.dir to a new folder", version, formatVersion)
	}
	if len(fields) != 4 {
		return m, errMarker
	}
	salt, err := strconv.ParseUint(fields[2], 16, 32)
	if err != nil {
		return m, errMarker
	}
	m.salt = uint32(salt)
	if m.id, err = uuid.Parse(fields[3]); err != nil || m.String() != text {
		return m, errMarker
	}
	return m, nil
}

func readFile(fsys vfs.FS, path string) (string, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return "", err
	}
	b := make([]byte, 256)
	n, err := f.ReadAt(b, 0)
	if err != nil && n == 0 {
		return "", errors.Join(err, f.Close())
	}
	return string(b[:n]), f.Close()
}

// writeFile writes a small file atomically.
func writeFile(fsys vfs.FS, dir, name, text string) error {
	tmp := fsys.PathJoin(dir, name+".tmp")
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = f.Write([]byte(text))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := fsys.Rename(tmp, fsys.PathJoin(dir, name)); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return syncDir(fsys, dir)
}

// pebbleLog logs Pebble's messages. Pebble calls Fatalf if its state is broken; because of
// the guard no disk error reaches Fatalf.
type pebbleLog struct{ log *zap.Logger }

func (l pebbleLog) Infof(format string, args ...any)  { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l pebbleLog) Errorf(format string, args ...any) { l.log.Error(fmt.Sprintf(format, args...)) }
func (l pebbleLog) Fatalf(format string, args ...any) { l.log.Panic(fmt.Sprintf(format, args...)) }

// openFiles opens the files behind a new guard.
func (j *Journal) openFiles() (*store, error) {
	st, err := j.openStore(newGuard(j.opts.FS))
	if err != nil {
		return nil, err
	}
	oldest, err := st.number(metaFirstKey(), 1)
	if err == nil && !j.opts.filling {
		err = st.checkFinished()
	}
	if err := errors.Join(err, st.guard.failure()); err != nil {
		return nil, errors.Join(fmt.Errorf("opening: %w", err), st.close())
	}
	st.window.stored.load(st.db.NewSnapshot(), st.window.seed, j.log)
	st.flush(st.segments.active().number)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.store, j.failure, j.durable, j.oldest = st, nil, st.last, oldest
	requests, bytes := st.quarantineSize()
	j.quarantineCount.Store(requests)
	j.quarantineBytes.Store(bytes)
	j.notify()
	return st, nil
}

// openStore opens the index and the log, and brings the index up to date.
func (j *Journal) openStore(g *guard) (*store, error) {
	opts := j.opts
	for _, dir := range []string{indexDir, logDir, quarantineDir} {
		if err := opts.FS.MkdirAll(opts.FS.PathJoin(opts.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("opening: making the folder %s: %w", dir, err)
		}
	}
	if err := syncDir(opts.FS, opts.Dir); err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	db, err := pebble.Open(opts.FS.PathJoin(opts.Dir, indexDir), indexOptions(opts, g))
	if _, disk := errors.AsType[*fs.PathError](err); disk && !errors.Is(err, fs.ErrNotExist) || diskFull(err) {
		return nil, fmt.Errorf("opening: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening: %w", damaged(err))
	}
	st := &store{
		db: db, guard: g, clock: opts.Clock, keepKeys: opts.KeepKeys, share: opts.Quarantine,
		segments: &segmentLog{fs: opts.FS, dir: opts.FS.PathJoin(opts.Dir, logDir), size: opts.segment, salt: j.marker.salt},
		room:     j.roomFor, rotated: j.wakeMakeRoom, bodies: j.bodies,
		window: &window{},
	}
	err = errors.Join(st.recover(opts.Window, j.marker), g.failure())
	if err == nil {
		err = st.load()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening: %w", err), st.close())
	}
	return st, nil
}

// indexOptions returns the options of the index. The log of the journal is its log.
func indexOptions(opts Options, fsys vfs.FS) *pebble.Options {
	log := opts.Log.Named("index")
	o := &pebble.Options{
		FS:                 fsys,
		Logger:             pebbleLog{log},
		FormatMajorVersion: pebble.FormatNewest,
		DisableWAL:         true,
		MemTableSize:       4 << 20,
		CacheSize:          12 << 20,
		// The filter in memory finds new keys, so that many tables cost little, and late
		// merging saves most of the work.
		L0CompactionThreshold: 32,
		L0StopWritesThreshold: 512,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				log.Warn("background work failed, it will be tried again", zap.String("error", err.Error()))
			},
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				if g, ok := fsys.(*guard); ok && g.failure() != nil {
					return // the last writes of Pebble went to memory
				}
				log.Error("a file of the journal is damaged", zap.String("path", info.Path), zap.String("error", info.Details.Error()), zap.String("advice", advice))
			},
		},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	return o
}

// recover brings the index up to date from the log.
func (st *store) recover(width time.Duration, m marker) error {
	known, from, generation, err := st.readSegments()
	if err != nil {
		return err
	}
	if from.number == 0 {
		// The log of a new journal begins with the first segment, and has every change.
		numbers, _, err := listSegments(st.segments.fs, st.segments.dir)
		if err != nil {
			return fmt.Errorf("listing the segments: %w", err)
		}
		if len(numbers) > 0 && numbers[0] != 1 {
			return damaged(fmt.Errorf("the index in the folder %s is empty", indexDir))
		}
	}
	w, err := openWindow(st.db, width)
	if err != nil {
		return damaged(err)
	}
	r := &replayer{db: st.db, window: w, batch: st.db.NewBatch()}
	err = (&recovery{
		l: st.segments, known: known, from: from, newest: generation, apply: r.apply,
		ended: func(s segmentInfo) error { return r.batch.Set(segmentKey(s.number), s.appendTo(nil), nil) },
	}).run()
	if err != nil {
		return errors.Join(err, r.batch.Close())
	}
	s := st.segments.active().segmentInfo
	if err := r.batch.Set(metaMarkerKey(), []byte(m.String()), nil); err != nil {
		return err
	}
	if err := r.flush(s, s.end, st.segments.generation); err != nil {
		return fmt.Errorf("applying the log: %w", err)
	}
	if err := r.batch.Close(); err != nil {
		return fmt.Errorf("applying the log: %w", err)
	}
	st.last, st.accepted = r.last, r.accepted
	// The log may have ended segments and generations of keys.
	if known, _, _, err = st.readSegments(); err != nil {
		return err
	}
	linked, err := st.number(metaLinkedKey(), 0)
	if err != nil {
		return err
	}
	st.segments.linked = uint32(linked)
	if err := st.segments.keepOnly(known); err != nil {
		return err
	}
	st.window, err = openWindow(st.db, width)
	return err
}

// readSegments returns the segments of the index, and the position through which the index
// is complete.
func (st *store) readSegments() (known map[uint32]segmentInfo, from segmentInfo, generation uint32, err error) {
	known = map[uint32]segmentInfo{}
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{segmentSpace}, UpperBound: []byte{segmentSpace + 1}})
	if err != nil {
		return nil, from, 0, err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var s segmentInfo
		if s, err = decodeSegmentInfo(it.Value()); err == nil {
			known[s.number] = s
		}
	}
	if err := cmp.Or(err, it.Error(), it.Close()); err != nil {
		return nil, from, 0, damaged(err)
	}
	value, err := st.get(metaLogKey())
	if errors.Is(err, journal.ErrNotFound) {
		return known, from, 0, nil
	}
	if err == nil {
		from, generation, err = decodeLogPosition(value)
	}
	if err != nil {
		return nil, from, 0, damaged(err)
	}
	return known, from, generation, nil
}

// load reads the end of the log and the quarantine.
func (st *store) load() error {
	last, err := st.number(metaLastKey(), 0)
	if err != nil {
		return err
	}
	st.last = max(st.last, last)
	for _, s := range st.segments.infos() {
		st.last, st.accepted = max(st.last, s.last), max(st.accepted, s.newest)
	}
	return errors.Join(st.readLost(), st.checkPositions(), st.readQuotas())
}

// checkPositions returns an error if a cursor is beyond the end of the log: the log is
// written in order, so its end is missing.
func (st *store) checkPositions() error {
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{cursorSpace}, UpperBound: []byte{cursorSpace + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var committed journal.Seq
		if committed, _, err = decodeCursor(it.Value()); err == nil && committed > st.last {
			err = damaged(fmt.Errorf("sink %s has been given events through %d, and the log ends at %d", it.Key()[1:], committed, st.last))
		}
	}
	return errors.Join(err, it.Close())
}

// number returns the number stored under a key, or a default.
func (st *store) number(key []byte, none journal.Seq) (journal.Seq, error) {
	value, err := st.get(key)
	if errors.Is(err, journal.ErrNotFound) {
		return none, nil
	}
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, record.ErrTruncated
	}
	return seqOf(value), nil
}

// readLost reads the ranges that a repair found lost.
func (st *store) readLost() error {
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{lostSpace}, UpperBound: []byte{lostSpace + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		st.lost = append(st.lost, Range{seqOf(it.Key()), seqOf(it.Value())})
	}
	return it.Close()
}

// notify wakes all waiting goroutines. The caller holds mu.
func (j *Journal) notify() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// run commits on the current store until Close, and reopens the store after a failure.
func (j *Journal) run(st *store) {
	defer close(j.ended)
	for {
		failure := st.commit(j.requests, j.stop, j.synced)
		j.mu.Lock()
		j.store, j.failure = nil, failure
		j.notify()
		j.mu.Unlock()
		st.users.Wait()
		if err := st.close(); err != nil && failure == nil {
			j.log.Error("closing the journal", zap.Error(err))
		}
		if failure == nil {
			return
		}
		j.log.Error("the journal's disk failed; new events are refused until it has been opened again",
			zap.String("dir", j.opts.Dir), zap.Error(failure))
		if st = j.reopen(); st == nil {
			return
		}
		j.log.Info("the journal is open again", zap.String("dir", j.opts.Dir), zap.Uint64("last", uint64(j.Last())))
	}
}

// reopen reopens the store, with retries, and refuses requests meanwhile. It returns nil
// after Close.
func (j *Journal) reopen() *store {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, 5*time.Second
	for {
		retry := time.NewTimer(wait.NextBackOff())
		for waiting := true; waiting; {
			select {
			case <-retry.C:
				waiting = false
			case r := <-j.requests:
				r.done <- j.Check()
			case <-j.stop:
				retry.Stop()
				return nil
			}
		}
		st, err := j.open()
		if err == nil {
			return st
		}
		j.mu.Lock()
		j.failure = err
		j.mu.Unlock()
		j.log.Warn("the journal cannot be opened yet", zap.String("dir", j.opts.Dir), zap.Error(err))
	}
}

// synced advances the durable sequence after the sync of a group.
func (j *Journal) synced(g *group) {
	if j.opts.Synced != nil {
		j.opts.Synced(len(g.requests))
	}
	j.tail.add(g.appended)
	j.quarantineCount.Add(g.added)
	j.quarantineBytes.Add(g.addedBytes)
	j.bodies.remove(g.dropped)
	j.discards.add(g.discarded)
	for _, d := range g.discarded {
		j.opts.Discarded(d)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if g.last > j.durable {
		j.durable = g.last
		j.notify()
	}
}

// Last implements journal.Journal.
func (j *Journal) Last() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// ID implements journal.Log.
func (j *Journal) ID() string { return j.marker.id.String() }

// Oldest implements journal.Log.
func (j *Journal) Oldest() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.oldest
}

// AcquireLease implements journal.Journal: one process uses this journal.
func (j *Journal) AcquireLease(context.Context, string, time.Duration) (bool, error) {
	return true, nil
}

// Wait implements journal.Log.
func (j *Journal) Wait(ctx context.Context, s journal.Seq) error {
	_, err := j.reach(ctx, s)
	return err
}

// Check implements journal.Journal.
func (j *Journal) Check() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return journal.ErrClosed
	case j.store == nil:
		return fmt.Errorf("%w: %w", journal.ErrUnavailable, j.failure)
	case j.room.Load().full != "":
		return fmt.Errorf("%w: %s", journal.ErrFull, j.room.Load().full)
	}
	return j.roomFor(j.store, 0)
}

// spare holds unused requests.
var spare = sync.Pool{New: func() any { return &request{done: make(chan error, 1)} }}

// do passes a change to the committer and waits for its result. If ctx ends first, the
// committer still makes the change.
func (j *Journal) do(ctx context.Context, size int, stage func(*group) error) error {
	return j.hand(ctx, size, false, stage)
}

// grow is do for a change that is refused if the journal is full.
func (j *Journal) grow(ctx context.Context, size int, stage func(*group) error) error {
	return j.hand(ctx, size, true, stage)
}

func (j *Journal) hand(ctx context.Context, size int, grows bool, stage func(*group) error) error {
	r := spare.Get().(*request)
	r.size, r.grows, r.stage = size, grows, stage
	select {
	case j.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-j.stop:
		return journal.ErrClosed
	}
	select {
	case err := <-r.done:
		r.stage = nil
		spare.Put(r) // the only place where no other goroutine uses the request
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-j.stop:
	}
	// Close waits until the committer has handled the received requests.
	<-j.ended
	select {
	case err := <-r.done:
		return err
	default:
		return journal.ErrClosed
	}
}

// Append implements journal.Appender.
func (j *Journal) Append(ctx context.Context, events ...event.Event) ([]journal.Receipt, error) {
	if err := j.Check(); err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	values, size, err := j.encodeAll(events)
	if err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	receipts := make([]journal.Receipt, len(events))
	err = j.grow(ctx, size, func(g *group) error { return g.appendAll(events, values, receipts) })
	if err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	return receipts, nil
}

// encodeAll encodes events, each after eight bytes for the acceptance time.
func (j *Journal) encodeAll(events []event.Event) (values [][]byte, size int, err error) {
	values = make([][]byte, len(events))
	for i, e := range events {
		if len(e.Keys) == 0 {
			return nil, 0, fmt.Errorf("%s: the event has no identity key", e.CloudEvent.ID())
		}
		value := make([]byte, 8, 768+len(e.CloudEvent.DataEncoded))
		value, err := record.AppendEvent(record.AppendKeys(value, e.Keys), e)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", e.CloudEvent.ID(), err)
		}
		values[i] = value
		size += len(value)
	}
	return values, size, nil
}

// Close implements io.Closer. A second call does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	close(j.stop)
	j.end()
	j.notify()
	j.mu.Unlock()
	j.done.Wait()
	j.discards.log(j.log, true)
	if err := j.lock.Close(); err != nil {
		return fmt.Errorf("closing the journal: %w", err)
	}
	return nil
}
