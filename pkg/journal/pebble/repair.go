package pebble

import (
	"bytes"
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
	"github.com/cockroachdb/pebble/v2/wal"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Range is a range of events.
type Range struct {
	From journal.Seq `json:"from"`
	To   journal.Seq `json:"to"`
}

// Len returns the number of events.
func (r Range) Len() int { return int(r.To - r.From + 1) }

// Position is the position of a sink or of a replay.
type Position struct {
	Name      string      `json:"name"`
	Committed journal.Seq `json:"committed"`
	Waiting   int         `json:"waiting"` // stored events after the cursor
	Lost      int         `json:"lost"`    // lost events after the cursor
}

// Contents describes the contents of a journal.
type Contents struct {
	Oldest      journal.Seq `json:"oldest"` // no event before this sequence is stored
	Last        journal.Seq `json:"last"`   // newest sequence that any entry names
	Events      int         `json:"events"`
	Lost        []Range     `json:"lost"` // missing events
	Dead        int         `json:"dead_letters"`
	Quarantined int         `json:"quarantined"`
	Positions   []Position  `json:"positions"`
	Damage      []Damage    `json:"damage"` // unreadable data
}

// Repaired is the result of a repair.
type Repaired struct {
	Contents
	Kept string `json:"kept"` // folder with the old files
}

// A repair has three steps, and each step can be repeated after a crash:
//
//  1. repairing/ is filled with a new journal, which is complete when it has a FORMAT.
//  2. The files of the folder move to damaged-<time>/, FORMAT first; then repairing/
//     becomes repaired/.
//  3. The files of repaired/ move into the folder, FORMAT last.
//
// A folder during a repair has no FORMAT, so that it cannot be opened.
const (
	repairingDir = "repairing"
	repairedDir  = "repaired"
	damagedDir   = "damaged-" // and the time
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
// subfolder. The journal must not be in use. Repair needs as much free space as the journal
// has, and can be repeated after an interruption.
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
		if !slices.Contains(names, repairingDir) || !exists(opts, fsys.PathJoin(building, formatFile)) {
			if err := fsys.RemoveAll(building); err != nil {
				return done, err
			}
			if done.Contents, err = rebuild(ctx, opts, lock, building); err != nil {
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
	slices.SortFunc(moved, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	if err := move(opts, moved, ready, dir); err != nil {
		return done, err
	}
	if err := errors.Join(fsys.RemoveAll(ready), syncDir(fsys, dir)); err != nil {
		return done, err
	}
	if done.Kept == "" || done.Last == 0 { // the part with the report was done before the interruption
		damage := done.Damage
		if done.Contents, err = inspect(ctx, opts, lock, true); err != nil {
			return done, err
		}
		done.Damage = append(damage, done.Damage...)
	}
	return done, nil
}

// rank sorts the format marker last.
func rank(name string) int {
	if name == formatFile {
		return 1
	}
	return 0
}

// moveOldFiles moves the files of the folder to the subfolder.
func moveOldFiles(opts Options) (string, error) {
	names, err := opts.FS.List(opts.Dir)
	if err != nil {
		return "", err
	}
	kept := ""
	for _, name := range names {
		if strings.HasPrefix(name, damagedDir) && !slices.Contains(names, formatFile) {
			kept = max(kept, name) // the subfolder of the interrupted repair
		}
	}
	if kept == "" {
		kept = damagedDir + opts.Clock().UTC().Format("20060102T150405Z")
	}
	kept = opts.FS.PathJoin(opts.Dir, kept)
	if err := errors.Join(opts.FS.MkdirAll(kept, 0o700), syncDir(opts.FS, opts.Dir)); err != nil {
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
	if !interrupted(names) && !slices.ContainsFunc(names, isEngineFile) && !slices.Contains(names, formatFile) {
		return nil, nil, errors.New("the folder holds no journal")
	}
	lock, err := lockDir(opts)
	if err != nil {
		return nil, nil, err
	}
	return lock, names, nil
}

// isEngineFile reports whether a file belongs to Pebble.
func isEngineFile(name string) bool {
	_, _, isLog := wal.ParseLogFilename(name)
	return isLog || strings.HasSuffix(name, ".sst")
}

// rebuild writes a new journal of the readable data in opts.Dir.
func rebuild(ctx context.Context, opts Options, lock *pebble.Lock, to string) (c Contents, err error) {
	if err := checkVersion(opts.FS, opts.Dir); err != nil && !errors.Is(err, errMarker) {
		return c, err
	}
	// If Pebble can open the folder, its recovery selects the valid entries.
	settled, unsound := pebble.Open(opts.Dir, settling(opts, lock))
	if unsound == nil {
		if err := settled.Close(); err != nil {
			opts.Log.Debug("settling the journal before its repair", zap.Error(err))
		}
	}
	s, err := openSalvage(ctx, opts.FS, opts.Dir)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if unsound != nil {
		s.damage = append(s.damage, s.tails...)
	}
	if err := makeDir(opts.FS, to); err != nil {
		return c, err
	}
	db, err := pebble.Open(to, engineOptions(opts, opts.FS, nil))
	if err != nil {
		return c, err
	}
	defer func() {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	w := &rewriter{db: db, batch: db.NewBatch(), scanSummary: &scanSummary{receipts: map[identity]*receipts{}}}
	err = s.each(ctx, w.take)
	if err == nil {
		err = w.finish(s.damage)
	}
	c = w.contents(append(s.damage, w.damage...))
	if err != nil {
		return c, err
	}
	err = errors.Join(db.Flush(), db.Close())
	if db = nil; err != nil {
		return c, err
	}
	return c, writeFile(opts.FS, to, formatFile, marker())
}

// rewriter writes the readable entries.
type rewriter struct {
	db    *pebble.DB
	batch *pebble.Batch
	*scanSummary
}

// take writes a valid entry.
func (w *rewriter) take(key, value []byte) (err error) {
	if !w.count(key, value) {
		return nil
	}
	switch key[0] {
	case identitySpace, orderSpace:
		return nil // quarantined requests follow, with their receipts
	case quarantineSpace:
		err = w.quarantine(key, value)
	default:
		err = w.batch.Set(key, value, nil)
	}
	if err != nil {
		return err
	}
	if w.batch.Len() < 1<<20 {
		return nil
	}
	return w.flush()
}

// quarantine writes a quarantined request with its receipts, or with one receipt if they
// are damaged. If a damaged file has restored a second request of one identity, the request
// with receipts is kept.
func (w *rewriter) quarantine(key, value []byte) error {
	i, rest, err := splitRejected(value)
	if err != nil {
		return err
	}
	q, err := record.DecodeRejected(rest)
	if err != nil {
		return err
	}
	r := w.receipts[i]
	switch {
	case r == nil:
		w.received++
		q = q.WithDefaults(q.Received)
		r = &receipts{ID: q.ID, Source: q.Source, Number: w.received, Bytes: uint64(len(value)) + entryBytes, Count: q.Count, Last: q.LastReceived}
		w.receipts[i] = r
	case r.ID != q.ID:
		w.movedTo--
		return nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return errors.Join(
		w.batch.Set(key, value, nil),
		w.batch.Set(identityKey(i), text, nil),
		w.batch.Set(orderKey(r.Source, r.Number), encodeOrder(i, r.Bytes), nil),
	)
}

func (w *rewriter) flush() error {
	err := errors.Join(w.batch.Commit(pebble.NoSync), w.batch.Close())
	w.batch = w.db.NewBatch()
	return err
}

// finish records the lost events, so that cursors pass them.
func (w *rewriter) finish(damage []Damage) error {
	w.close()
	for _, l := range w.lost {
		if err := w.batch.Set(lostKey(l.From), binary.BigEndian.AppendUint64(nil, uint64(l.To)), nil); err != nil {
			return err
		}
	}
	if len(w.lost)+len(damage)+len(w.damage) > 0 {
		// New events may get the sequences of lost events, so they must not share a message
		// ID with events that a broker has.
		if err := w.batch.Delete(metaIDKey(), nil); err != nil {
			return err
		}
	}
	last := binary.BigEndian.AppendUint64(nil, uint64(w.last))
	first := binary.BigEndian.AppendUint64(nil, uint64(w.oldest))
	if err := errors.Join(w.batch.Set(metaLastKey(), last, nil), w.batch.Set(metaFirstKey(), first, nil)); err != nil {
		return err
	}
	for _, p := range w.positions {
		// A cursor right before lost events passes them.
		to := skip(w.lost, p.committed+1) - 1
		if to == p.committed {
			continue
		}
		if err := w.batch.Set(cursorKey(p.name), encodeCursor(to, p.began), nil); err != nil {
			return err
		}
	}
	// A sink with a lost position must not begin after undelivered events.
	if slices.ContainsFunc(damage, func(d Damage) bool { return d.mayHold(cursorSpace) }) {
		if err := w.batch.Set(metaRepairedKey(), last, nil); err != nil {
			return err
		}
	}
	return w.flush()
}

// scanSummary counts the contents of a journal from its keys in order.
type scanSummary struct {
	oldest        journal.Seq // no event before this sequence is stored; 0 before the first removal
	last          journal.Seq // newest sequence that any entry names
	events        int
	dead, movedTo int
	positions     []position
	stored        []Range // ranges of stored events
	lost          []Range // ranges of missing events
	admitted      []Range // lost ranges that an earlier repair recorded
	damage        []Damage

	receipts map[identity]*receipts // of quarantined requests; nil is not needed
	received uint64                 // newest receipt
}

type position struct {
	name             string
	committed, began journal.Seq
}

// count counts an entry, and reports whether the entry is valid.
func (c *scanSummary) count(key, value []byte) bool {
	err := c.see(key, value)
	if err != nil {
		c.damage = append(c.damage, Damage{File: fmt.Sprintf("entry %q", key), Err: err, from: slices.Clone(key), to: slices.Clone(key)})
	}
	return err == nil
}

func (c *scanSummary) see(key, value []byte) error {
	switch key[0] {
	case eventSpace:
		if len(key) != 9 {
			return record.ErrTruncated
		}
		at := seqOf(key)
		if _, err := record.Decode(at, value); err != nil {
			return err
		}
		c.events++
		if k := len(c.stored) - 1; k >= 0 && c.stored[k].To+1 == at {
			c.stored[k].To = at
		} else {
			c.stored = append(c.stored, Range{at, at})
		}
	case cursorSpace:
		committed, began, err := decodeCursor(value)
		if err != nil {
			return err
		}
		c.positions = append(c.positions, position{string(key[1:]), committed, began})
		c.last = max(c.last, committed)
	case deadSpace:
		if _, err := decodeDead(key, value); err != nil {
			return err
		}
		c.dead++
	case keySpace:
		if len(key) < 9 {
			return record.ErrTruncated
		}
		s, err := decodeDedupeEntry(value)
		if err != nil {
			return err
		}
		c.last = max(c.last, s.seq)
	case lostSpace:
		if len(key) != 9 || len(value) != 8 {
			return record.ErrTruncated
		}
		c.admitted = append(c.admitted, Range{seqOf(key), seqOf(value)})
	case metaSpace:
		if bytes.Equal(key, metaIDKey()) {
			_, err := uuid.FromBytes(value)
			return err
		}
		if len(value) != 8 {
			return record.ErrTruncated
		}
		switch at := seqOf(value); {
		case bytes.Equal(key, metaFirstKey()):
			c.oldest = at
			c.last = max(c.last, at-1)
		case bytes.Equal(key, metaLastKey()):
			c.last = max(c.last, at)
		}
	case dispositionSpace:
		var g journal.Disposition
		return json.Unmarshal(value, &g)
	case identitySpace:
		r, err := decodeReceipts(value)
		if err != nil || len(key) != 1+len(identity{}) {
			return cmp.Or(err, record.ErrTruncated)
		}
		if c.receipts != nil {
			c.receipts[identity(key[1:])] = r
		}
		c.received = max(c.received, r.Number)
	case orderSpace:
		if _, err := sinkOf(key); err != nil {
			return err
		}
		_, _, err := decodeOrder(value)
		return err
	case quarantineSpace:
		_, rest, err := splitRejected(value)
		if err != nil {
			return err
		}
		if _, err := record.DecodeRejected(rest); err != nil {
			return err
		}
		c.movedTo++
	case valueSpace:
	default:
		return fmt.Errorf("key of an unknown kind, %q", key[0])
	}
	return nil
}

// close finds the missing events after all entries are counted.
func (c *scanSummary) close() {
	// Only the oldest events are removed, so every later sequence up to the newest has an
	// event.
	c.oldest = max(c.oldest, 1)
	next := c.oldest
	for _, s := range c.stored {
		if s.From > next {
			c.lost = append(c.lost, Range{next, s.From - 1})
		}
		next = max(next, s.To+1)
	}
	c.last = max(c.last, next-1)
	if next <= c.last {
		c.lost = append(c.lost, Range{next, c.last})
	}
}

// unadmitted returns the lost events that no repair has recorded.
func (c *scanSummary) unadmitted() []Range {
	return slices.DeleteFunc(slices.Clone(c.lost), func(m Range) bool { return skip(c.admitted, m.From) == m.To+1 })
}

func (c *scanSummary) contents(damage []Damage) Contents {
	out := Contents{
		Oldest: c.oldest, Last: c.last, Events: c.events, Lost: c.lost, Dead: c.dead, Quarantined: c.movedTo, Damage: damage,
	}
	for _, p := range c.positions {
		at := Position{Name: p.name, Committed: p.committed}
		at.Waiting, at.Lost = after64(c.stored, p.committed), after64(c.lost, p.committed)
		out.Positions = append(out.Positions, at)
	}
	return out
}

// after64 counts the events of the ranges after a sequence.
func after64(ranges []Range, at journal.Seq) (n int) {
	for _, r := range ranges {
		if r.From = max(r.From, at+1); r.From <= r.To {
			n += r.Len()
		}
	}
	return n
}

// skip returns the first sequence from s on that is in no range.
func skip(ranges []Range, from journal.Seq) journal.Seq {
	for _, r := range ranges { // few and in order
		if r.From <= from && from <= r.To {
			from = r.To + 1
		}
	}
	return from
}

// Inspect checks a journal that is not in use, without changes: the checksum of every
// block, every record, and missing events. Damage is part of the result; an error means
// that the check failed.
func Inspect(ctx context.Context, opts Options) (Contents, error) {
	opts = opts.withDefaults()
	lock, names, err := enter(opts)
	if err == nil {
		defer lock.Close()
		if interrupted(names) {
			err = errInterrupted
		} else {
			var c Contents
			if c, err = inspect(ctx, opts, lock, false); err == nil {
				return c, nil
			}
		}
	}
	return Contents{}, fmt.Errorf("checking the journal %s: %w", opts.Dir, err)
}

// inspect is Inspect of a locked folder. With all, the result includes lost events that an
// earlier repair recorded.
func inspect(ctx context.Context, opts Options, lock *pebble.Lock, all bool) (c Contents, err error) {
	if err := checkVersion(opts.FS, opts.Dir); errors.Is(err, errMarker) {
		c.Damage = append(c.Damage, Damage{File: formatFile, Err: err})
	} else if err != nil {
		return c, err
	}
	// Each file by itself.
	s, err := openSalvage(ctx, opts.FS, opts.Dir)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	// All files together, or, if Pebble cannot open them, the result of a repair.
	n := &scanSummary{}
	live, whole := summaryOf(ctx, opts, lock, n)
	if live != nil { // other files are leftovers of a crash
		s.damage = slices.DeleteFunc(s.damage, func(d Damage) bool { return strings.HasSuffix(d.File, ".sst") && !live[d.File] })
	}
	if whole != nil {
		s.damage = append(s.damage, s.tails...)
		if len(s.damage) == 0 {
			s.damage = append(s.damage, Damage{File: "the whole", Err: whole})
		}
		n = &scanSummary{}
		err = s.each(ctx, func(key, value []byte) error { n.count(key, value); return nil })
	}
	if err := errors.Join(err, ctx.Err()); err != nil {
		return c, err
	}
	n.close()
	if !all {
		n.lost = n.unadmitted()
	}
	return n.contents(slices.Concat(c.Damage, s.damage, n.damage)), nil
}

// summaryOf counts the contents of an opened journal, and returns its tables.
func summaryOf(ctx context.Context, opts Options, lock *pebble.Lock, n *scanSummary) (live map[string]bool, err error) {
	o := settling(opts, lock)
	o.ReadOnly = true
	db, err := pebble.Open(opts.Dir, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	levels, err := db.SSTables()
	if err != nil {
		return nil, err
	}
	live = map[string]bool{}
	for _, tables := range levels {
		for _, t := range tables {
			live[fmt.Sprintf("%06d.sst", uint64(t.BackingSSTNum))] = true
		}
	}
	it, err := db.NewIter(nil)
	if err != nil {
		return live, err
	}
	defer func() { err = cmp.Or(err, it.Close()) }()
	for ok := it.First(); ok && ctx.Err() == nil; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return live, err
		}
		n.count(it.Key(), value)
	}
	return live, it.Error()
}

// settling returns options of Pebble without background work.
func settling(opts Options, lock *pebble.Lock) *pebble.Options {
	o := engineOptions(opts, opts.FS, lock)
	o.DisableAutomaticCompactions = true
	o.ErrorIfNotExists = true
	return o
}
