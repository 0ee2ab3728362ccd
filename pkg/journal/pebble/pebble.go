// Package pebble is the journal engine on the local disk: one Pebble store holds events,
// identity keys and cursors. One committer groups waiting appends into one synced batch, so
// that deduplication and durability are one atomic write, and many appends share a sync.
package pebble

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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

	memTable uint64 // bytes; 0 is 16 MiB, or less in a small journal. Tests use a small size to rotate files.
}

// Journal implements journal.Journal.
type Journal struct {
	opts     Options
	log      *zap.Logger
	lock     *pebble.Lock
	requests chan *request
	stop     chan struct{} // closed by Close
	life     context.Context
	end      context.CancelFunc // with stop
	ended    chan struct{}      // closed when the committer has answered all requests
	done     sync.WaitGroup

	tail tail
	room atomic.Pointer[room]
	// reserved: the reserve exists or cannot be made.
	reserved atomic.Bool
	trimmed  atomic.Uint64 // events removed before their retention
	// Bytes of groups since the journal was opened: written, and counted by the engine
	// after the sync.
	written, counted atomic.Uint64
	quarantineCount  atomic.Int64 // quarantined requests on stable storage
	freed            freed
	discards         discards

	mu      sync.Mutex
	store   *store        // nil while the store is reopened
	failure error         // why the store is reopened
	changed chan struct{} // closed and replaced when store, durable or closed changes
	id      string
	durable journal.Seq
	oldest  journal.Seq // no event before this sequence is stored
	cursors map[string]*cursor
	closed  bool
}

var _ journal.Journal = (*Journal)(nil)

// memTables is the number of full memtables at which appends wait for a flush.
const memTables = 4

const (
	formatFile    = "FORMAT"
	formatName    = "postwire-journal"
	formatVersion = 3
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
	if err := checkFormat(opts.FS, opts.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), lock.Close())
	}
	if p, ok := opts.FS.(private); ok {
		p.tighten(opts.Dir, opts.Log)
	}
	j := &Journal{
		opts: opts, log: opts.Log, lock: lock,
		requests: make(chan *request, maxGroupRequests),
		stop:     make(chan struct{}),
		ended:    make(chan struct{}),
		changed:  make(chan struct{}),
		cursors:  map[string]*cursor{},
	}
	j.life, j.end = context.WithCancel(context.Background())
	j.room.Store(&room{})
	st, err := j.open()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), lock.Close())
	}
	_, err = opts.FS.Stat(opts.FS.PathJoin(opts.Dir, reserveFile))
	j.reserved.Store(err == nil)
	j.measure()
	j.done.Go(func() { j.run(st) })
	j.done.Go(j.expire)
	j.done.Go(j.watch)
	j.done.Go(j.makeRoom)
	j.done.Go(j.reclaim)
	return j, nil
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
	if o.memTable == 0 {
		// Pebble keeps one recycled log more than memtables. In a small journal logs must
		// be small.
		o.memTable = 16 << 20
		if o.MaxBytes > 0 {
			o.memTable = min(max(o.MaxBytes/64, 4<<20), o.memTable)
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

// marker is the content of the format marker.
func marker() string { return fmt.Sprintf("%s %d\n", formatName, formatVersion) }

// errMarker is wrapped if the format marker is missing or invalid.
var errMarker = errors.New("no marker of a journal")

// checkFormat checks the format marker and that it belongs to Pebble's files, or
// initializes a new folder.
func checkFormat(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return fmt.Errorf("listing the folder: %w", err)
	}
	data := slices.IndexFunc(names, isEngineFile)
	err = checkVersion(fsys, dir)
	switch {
	case interrupted(names):
		return errInterrupted
	case errors.Is(err, fs.ErrNotExist) && data >= 0:
		return fmt.Errorf("it holds %s and has no file %s: %s", names[data], formatFile, advice)
	case errors.Is(err, fs.ErrNotExist):
		for _, name := range names {
			// A crash may have left the lock and half of the marker.
			if name != "LOCK" && name != formatFile+".tmp" {
				return fmt.Errorf("the folder is not empty (it holds %s) and has no file %s, so it is no journal; set journal.dir to a new folder", name, formatFile)
			}
		}
		return writeFile(fsys, dir, formatFile, marker())
	case err != nil:
		return err
	}
	engine, err := pebble.Peek(dir, fsys)
	if err != nil {
		return fmt.Errorf("looking for the manifest: %w", err)
	}
	if !engine.Exists && data >= 0 {
		return fmt.Errorf("it holds %s, and the file manifest that ties its data together is missing: %s", names[data], advice)
	}
	return nil
}

// advice is the advice for a damaged journal.
const advice = "restore it, or stop the relay and run 'postwire journal check', which says what is wrong, and 'postwire journal repair', which saves what can be read"

// damaged explains an error in the journal's files.
func damaged(err error) error {
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		return fmt.Errorf("the journal's file %s is damaged (%w): %s", info.Path, info.Details, advice)
	}
	return fmt.Errorf("the journal is damaged (%w): %s", err, advice)
}

// checkVersion reads the format marker.
func checkVersion(fsys vfs.FS, dir string) error {
	path := fsys.PathJoin(dir, formatFile)
	text, err := readFile(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errMarker, err)
	}
	if err != nil {
		return fmt.Errorf("reading the format marker: %w", err)
	}
	name, number, _ := strings.Cut(strings.TrimSpace(text), " ")
	version, err := strconv.Atoi(number)
	if err != nil || name != formatName {
		return fmt.Errorf("%w: %s does not hold one, such as %q: restore that file, set journal.dir to a new folder, or run 'postwire journal repair'", errMarker, path, strings.TrimSpace(marker()))
	}
	if version != formatVersion {
		return fmt.Errorf("it was written in format %d by another version of postwire, this version reads format %d: install that version again, or set journal.dir to a new folder", version, formatVersion)
	}
	return nil
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
	g := newGuard(j.opts.FS)
	db, err := pebble.Open(j.opts.Dir, engineOptions(j.opts, g, j.lock))
	if _, disk := errors.AsType[*fs.PathError](err); disk && !errors.Is(err, fs.ErrNotExist) || diskFull(err) {
		return nil, fmt.Errorf("opening: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening: %w", damaged(err))
	}
	st := &store{
		db: db, guard: g, clock: j.opts.Clock, keepKeys: j.opts.KeepKeys, dedupeEntries: map[event.Key]dedupeEntry{}, share: j.opts.Quarantine,
		room: j.roomFor, wrote: func(bytes uint64) { j.written.Add(bytes) },
	}
	err = st.load(j.opts.Window)
	if err == nil && !j.opts.filling {
		err = st.checkFinished()
	}
	if err := errors.Join(err, g.failure()); err != nil {
		return nil, errors.Join(fmt.Errorf("opening: %w", err), db.Close())
	}
	oldest, err := st.number(metaFirstKey(), 1)
	var id string
	if err == nil {
		id, err = st.identity()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening: %w", err), db.Close())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.store, j.failure, j.id, j.durable, j.oldest = st, nil, id, st.last, oldest
	j.quarantineCount.Store(st.requests())
	j.counted.Store(j.written.Load()) // without the writes that the failure has cut off
	j.notify()
	return st, nil
}

// engineOptions returns the options of Pebble. Without a lock Pebble takes its own.
func engineOptions(opts Options, fsys vfs.FS, lock *pebble.Lock) *pebble.Options {
	log := opts.Log.Named("pebble")
	o := &pebble.Options{
		FS:                          fsys,
		Lock:                        lock,
		Logger:                      pebbleLog{log},
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                opts.memTable,
		MemTableStopWritesThreshold: memTables,
		// Pebble subtracts memtables from the cache, which would leave no room for the
		// filters.
		CacheSize: 32<<20 + memTables*int64(opts.memTable),
		// Events are in order and filters find new keys, so that many tables cost little,
		// and late merging saves a twentieth of all work.
		L0CompactionThreshold: 8,
		L0StopWritesThreshold: 24,
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
		// Nearly every look-up is for a new key: the filter answers without reading a
		// block.
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	return o
}

// load reads the end of the log and the generations of keys.
func (st *store) load(width time.Duration) error {
	var err error
	if st.window, err = openWindow(st.db, width); err != nil {
		return err
	}
	if st.last, err = st.number(metaLastKey(), 0); err != nil {
		return err
	}
	it, err := st.events(0)
	if err != nil {
		return err
	}
	if it.Last() {
		st.last = max(st.last, seqOf(it.Key()))
		accepted, err := record.Accepted(it.Value())
		if err != nil {
			return errors.Join(fmt.Errorf("event %d: %w", st.last, err), it.Close())
		}
		st.accepted = accepted.UnixNano()
	}
	return errors.Join(it.Close(), st.readLost(), st.checkPositions(), st.readHoldings())
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

// events iterates over the events from a sequence on.
func (st *store) events(from journal.Seq) (*pebble.Iterator, error) {
	return st.db.NewIter(&pebble.IterOptions{LowerBound: eventKey(from), UpperBound: []byte{eventSpace + 1}})
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

// identity returns the ID of the journal, and creates a missing ID.
func (st *store) identity() (string, error) {
	id, err := st.get(metaIDKey())
	if errors.Is(err, journal.ErrNotFound) {
		random, err := uuid.NewRandom()
		if err != nil {
			return "", fmt.Errorf("making the ID of the journal: %w", err)
		}
		if err := st.db.Set(metaIDKey(), random[:], pebble.Sync); err != nil {
			return "", fmt.Errorf("storing the ID of the journal: %w", err)
		}
		return random.String(), nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the ID of the journal: %w", err)
	}
	stored, err := uuid.FromBytes(id)
	if err != nil {
		return "", damaged(fmt.Errorf("the ID of the journal: %w", err))
	}
	return stored.String(), nil
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
		if err := st.db.Close(); err != nil && failure == nil {
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
	j.counted.Add(g.bytes)
	j.tail.add(g.appended)
	j.quarantineCount.Add(g.added)
	j.freed.add(g.freed)
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
func (j *Journal) ID() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.id
}

// Oldest implements journal.Log.
func (j *Journal) Oldest() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.oldest
}

// Read implements journal.Log.
func (j *Journal) Read(ctx context.Context, from journal.Seq, limit int) (records []journal.Record, err error) {
	err = j.read(ctx, func(st *store) error {
		j.mu.Lock()
		from, through := max(from, j.oldest), j.durable
		j.mu.Unlock()
		if records = nil; from > through {
			return nil
		}
		records, err = st.read(from, through, limit)
		if err != nil && j.Oldest() > from {
			err = nil // the event has just expired; the caller continues with the remaining events
			records, err = st.read(j.Oldest(), through, limit)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading from %d: %w", from, err)
	}
	return records, nil
}

// Since implements journal.Log.
func (j *Journal) Since(ctx context.Context, t time.Time) (s journal.Seq, err error) {
	err = j.read(ctx, func(st *store) error {
		j.mu.Lock()
		oldest, durable := j.oldest, j.durable
		j.mu.Unlock()
		s, err = st.before(t, oldest, durable)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("looking for events since %v: %w", t, err)
	}
	return s + 1, nil
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
	return j.roomFor(0)
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
		value := make([]byte, 8, 512+len(e.CloudEvent.DataEncoded))
		encode := record.AppendSourced
		if j.opts.KeepKeys {
			value, encode = record.AppendKeys(value, e.Keys), record.AppendEvent
		}
		value, err := encode(value, e)
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
