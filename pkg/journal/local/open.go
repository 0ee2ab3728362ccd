package local

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

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
	var kept retained
	if err == nil {
		kept, err = st.readRetained()
	}
	if err := errors.Join(err, st.guard.failure()); err != nil {
		return nil, errors.Join(fmt.Errorf("opening: %w", err), st.close())
	}
	st.window.stored.load(st.db.NewSnapshot(), st.window.seed, j.log)
	st.flush(st.segments.active().number)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.store, j.failure, j.durable, j.oldest, j.retained = st, nil, st.last, oldest, kept
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
	indexed, err := st.readSegments()
	if err != nil {
		return err
	}
	from, generation, err := st.logPosition()
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
		l: st.segments, indexed: indexed, from: from, newest: generation, apply: r.apply,
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
	if indexed, err = st.readSegments(); err != nil {
		return err
	}
	linked, err := st.number(metaLinkedKey(), 0)
	if err != nil {
		return err
	}
	st.segments.linked = uint32(linked)
	if err := st.segments.keepOnly(indexed); err != nil {
		return err
	}
	st.window, err = openWindow(st.db, width)
	return err
}

// readSegments returns the segments of the index.
func (st *store) readSegments() (map[uint32]segmentInfo, error) {
	indexed := map[uint32]segmentInfo{}
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{segmentSpace}, UpperBound: []byte{segmentSpace + 1}})
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var s segmentInfo
		if s, err = decodeSegmentInfo(it.Value()); err == nil {
			indexed[s.number] = s
		}
	}
	if err := cmp.Or(err, it.Error(), it.Close()); err != nil {
		return nil, damaged(err)
	}
	return indexed, nil
}

// logPosition returns the position through which the index is complete, and the newest
// generation at that time. The number of the segment is 0 for a new index.
func (st *store) logPosition() (at segmentInfo, generation uint32, err error) {
	value, err := st.get(metaLogKey())
	if errors.Is(err, journal.ErrNotFound) {
		return at, 0, nil
	}
	if err == nil {
		at, generation, err = decodeLogPosition(value)
	}
	if err != nil {
		return at, 0, damaged(err)
	}
	return at, generation, nil
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
