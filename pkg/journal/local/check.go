package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
	"github.com/postwire/postwire/pkg/journal/seqset"
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
	Pending   int         `json:"pending"` // stored events that are not done
	Lost      int         `json:"lost"`    // lost events that were not done
}

// Contents describes the contents of a journal.
type Contents struct {
	Oldest      journal.Seq `json:"oldest"` // oldest event of the log; events that stay pending for a sink may be older
	Last        journal.Seq `json:"last"`   // newest sequence that any entry names
	Events      int         `json:"events"`
	Lost        []Range     `json:"lost"` // missing events
	Dead        int         `json:"dead_letters"`
	Quarantined int         `json:"quarantined"`
	Positions   []Position  `json:"positions"`
	Damage      []Damage    `json:"damage"` // unreadable data
	Bytes       int64       `json:"bytes"`  // size of the files that were read
}

// Sound reports whether everything that the journal has stored can be read.
func (c Contents) Sound() bool { return len(c.Damage) == 0 && len(c.Lost) == 0 }

// Damage is an unreadable part of the journal.
type Damage struct {
	File string // file in the folder
	Err  error

	cursors bool // positions of sinks may be lost
}

func (d Damage) String() string { return d.File + ": " + d.Err.Error() }

// MarshalText implements encoding.TextMarshaler.
func (d Damage) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Inspect checks a journal that is not in use, without changes. It reads every frame of the
// log, every entry of the index and every body of a quarantined request. Damage is part of
// the result; an error means that the check failed.
func Inspect(ctx context.Context, opts Options) (Contents, error) {
	opts = opts.withDefaults()
	lock, names, err := enter(opts)
	if err == nil {
		defer lock.Close()
		if interrupted(names) {
			err = errInterrupted
		} else {
			var s *survey
			if s, err = examine(ctx, opts); err == nil {
				return s.contents(s.unadmitted()), s.close()
			}
		}
	}
	return Contents{}, fmt.Errorf("checking the journal %s: %w", opts.Dir, err)
}

// survey is all that a check found.
type survey struct {
	opts      Options
	marker    marker
	db        *pebble.DB // the index as on the disk, without changes; nil if it cannot be opened
	segments  []surveyedSegment
	oldest    journal.Seq // no event before this sequence is stored
	last      journal.Seq // newest sequence that any entry names
	events    int
	dead      int
	positions []cursorPosition
	done      map[string]*seqset.Set // pages of done events of each cursor
	retained  []journal.Seq
	stored    []Range // ranges of stored events in the log
	lost      []Range // ranges of missing events
	admitted  []Range // lost ranges that an earlier repair recorded
	damage    []Damage
	bytes     int64

	quarantined int // readable requests
}

type surveyedSegment struct {
	number uint32
	next   uint32 // number in the last frame; 0 without
	intact bool
	empty  bool // it has no frame
}

type cursorPosition struct {
	name             string
	committed, start journal.Seq
}

// examine reads a locked folder.
func examine(ctx context.Context, opts Options) (s *survey, err error) {
	s = &survey{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	m, err := readMarker(opts.FS, opts.Dir)
	if err != nil && !errors.Is(err, errMarker) {
		return s, err
	}
	unmarked := err
	if s.db, err = openIndexReadOnly(opts); err != nil {
		s.damaged(indexDir, err, true)
		s.db = nil
	}
	if s.marker = m; unmarked != nil {
		s.damaged(formatFile, unmarked, false)
		if s.marker, err = s.copyOfMarker(); err != nil {
			return s, err
		}
	}
	if err := s.readLog(ctx); err != nil {
		return s, err
	}
	// The journal as the relay would see it, or the index by itself.
	db := s.db
	if st, opening := openReadOnly(opts, s.marker); opening == nil {
		defer func() { err = errors.Join(err, st.close()) }()
		db = st.db
	} else if s.db != nil && len(s.damage) == 0 {
		s.damaged("the journal", opening, true)
	}
	if db != nil {
		if err := s.readIndex(ctx, db); err != nil {
			return s, err
		}
	}
	s.findLost()
	return s, ctx.Err()
}

func (s *survey) close() error {
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

func (s *survey) damaged(file string, err error, cursors bool) {
	if e, ok := errors.AsType[*damageError](err); ok {
		file, err = cmp.Or(e.file, file), e.err
	}
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		file, err = indexDir+"/"+s.opts.FS.PathBase(info.Path), info.Details
	}
	for i, d := range s.damage { // one block, read for several kinds of entries
		if d.File == file && d.Err.Error() == err.Error() {
			s.damage[i].cursors = d.cursors || cursors
			return
		}
	}
	s.damage = append(s.damage, Damage{File: file, Err: err, cursors: cursors})
}

// openIndexReadOnly opens the index without the end of the log.
func openIndexReadOnly(opts Options) (*pebble.DB, error) {
	o := indexOptions(opts, newOverlay(opts.FS))
	o.ErrorIfNotExists = true
	o.DisableAutomaticCompactions = true
	return pebble.Open(opts.FS.PathJoin(opts.Dir, indexDir), o)
}

// copyOfMarker returns the copy of the format marker in the index.
func (s *survey) copyOfMarker() (m marker, err error) {
	err = errors.New("the index cannot be opened")
	if s.db != nil {
		var text []byte
		if text, err = (&store{db: s.db}).get(metaMarkerKey()); err == nil {
			if m, err = parseMarker(string(text)); err == nil {
				return m, nil
			}
		}
	}
	return m, fmt.Errorf("the file %s is missing or damaged, and the index has no copy (%w): restore the file", formatFile, err)
}

// readLog reads every segment.
func (s *survey) readLog(ctx context.Context) error {
	dir := s.opts.FS.PathJoin(s.opts.Dir, logDir)
	numbers, _, err := listSegments(s.opts.FS, dir)
	if err != nil {
		return err
	}
	limit := uint32(generations)
	for _, n := range numbers {
		limit = max(limit, n+generations)
	}
	for _, number := range numbers {
		if n := len(s.segments); n > 0 {
			before := &s.segments[n-1]
			if before.next != 0 && before.next != number {
				s.damaged(segmentFile(before.next), errMissing, true)
				before.intact = false
			}
		}
		seg, err := s.readSegment(ctx, dir, number, limit)
		if err != nil {
			return fmt.Errorf("%s: %w", segmentFile(number), err)
		}
		s.segments = append(s.segments, seg)
	}
	for i, seg := range s.segments {
		if seg.next == 0 && i+1 < len(s.segments) && seg.intact && !s.emptyAfter(i) {
			s.damaged(segmentFile(seg.number), errors.New("the end of the file is missing"), true)
			s.segments[i].intact = false
		}
		if i+1 == len(s.segments) && seg.next != 0 {
			s.damaged(segmentFile(seg.next), errMissing, true)
			s.segments[i].intact = false
		}
	}
	return nil
}

// emptyAfter reports whether a crash left the next segment empty.
func (s *survey) emptyAfter(i int) bool {
	return i+2 == len(s.segments) && s.segments[i+1].intact && s.segments[i+1].empty
}

// readSegment reads the frames of a segment, also after damage.
func (s *survey) readSegment(ctx context.Context, dir string, number, limit uint32) (seg surveyedSegment, err error) {
	seg = surveyedSegment{number: number, intact: true, empty: true}
	err = eachFrame(s.opts.FS, dir, number, s.marker.salt, func(_ *frameReader, f frame) error {
		s.bytes += int64(headerBytes + len(f.payload))
		seg.empty = false
		switch f.payload[0] {
		case nextFrame:
			if len(f.payload) == 5 {
				seg.next = binary.LittleEndian.Uint32(f.payload[1:])
				return io.EOF
			}
		case entriesFrame, compressedFrame:
			if err := s.readEntries(f.payload); err != nil {
				s.damaged(segmentFile(number), fmt.Errorf("frame at offset %d: %w", f.at, err), true)
				seg.intact = false
			}
		}
		return ctx.Err()
	}, func(r *frameReader, invalid error) (bool, error) {
		// An invalid frame is the end, unless a later frame says that it was stored.
		promised, err := r.promised(limit)
		if err != nil || promised <= r.at {
			return false, err
		}
		s.damaged(segmentFile(number), invalid, true)
		seg.intact = false
		return r.resume(limit)
	})
	return seg, err
}

// eachFrame calls do for the frames of a segment until do returns io.EOF. At an invalid
// frame it calls skip, which may move the reader.
func eachFrame(fsys vfs.FS, dir string, number, salt uint32, do func(*frameReader, frame) error, skip func(*frameReader, error) (bool, error)) (err error) {
	file, err := fsys.Open(fsys.PathJoin(dir, segmentName(number)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	frames := &frameReader{file: file, salt: salt, limit: info.Size(), generation: number}
	for {
		f, err := frames.next()
		switch {
		case err == nil:
			err = do(frames, f)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errInvalidFrame):
			if more, err := skip(frames, err); err != nil || !more {
				return err
			}
		default:
			return err
		}
	}
}

// readEntries counts the events of a frame.
func (s *survey) readEntries(payload []byte) error {
	entries, err := entriesOf(payload, nil)
	if err != nil {
		return err
	}
	return eachEntryOf(entries, func(e entry) error {
		for i, value := range e.records {
			at := e.seq + journal.Seq(i)
			if _, err := record.Decode(at, value); err != nil {
				return err
			}
			s.events++
			if k := len(s.stored) - 1; k >= 0 && s.stored[k].To+1 == at {
				s.stored[k].To = at
			} else {
				s.stored = append(s.stored, Range{at, at})
			}
		}
		return nil
	})
}

// spaces are the first bytes of the keys of the index.
var spaces = []byte{
	doneSpace, cursorSpace, deadSpace, eventSpace, dispositionSpace, identitySpace, keySpace, lostSpace, metaSpace, valueSpace, orderSpace, quarantineSpace, retainedSpace, segmentSpace,
}

// eachEntry calls do for every readable entry of a space, and returns the error of an
// unreadable one. Behind an unreadable entry it goes backwards from the end.
func eachEntry(db *pebble.DB, space byte, do func(key, value []byte) error) (unreadable, err error) {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{space}, UpperBound: []byte{space + 1}})
	if err != nil {
		return err, nil
	}
	defer func() { _ = it.Close() }() // returns a read error again
	var through []byte
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			break
		}
		through = append(through[:0], it.Key()...)
		if err := do(it.Key(), value); err != nil {
			return nil, err
		}
	}
	if unreadable = it.Error(); unreadable == nil {
		return nil, nil
	}
	for ok := it.Last(); ok && bytes.Compare(it.Key(), through) > 0; ok = it.Prev() {
		value, err := it.ValueAndErr()
		if err != nil {
			break
		}
		if err := do(it.Key(), value); err != nil {
			return unreadable, err
		}
	}
	return unreadable, nil
}

// readIndex reads every entry of the index.
func (s *survey) readIndex(ctx context.Context, db *pebble.DB) error {
	for _, space := range spaces {
		unreadable, err := eachEntry(db, space, func(key, value []byte) error {
			s.bytes += int64(len(key) + len(value))
			if err := s.readEntryOf(db, key, value); err != nil {
				s.damaged(fmt.Sprintf("%s, entry %q", indexDir, key), err, space == cursorSpace)
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
		if unreadable != nil {
			s.damaged(indexDir, unreadable, space == cursorSpace)
		}
	}
	return nil
}

// readEntryOf checks and counts an entry of the index.
func (s *survey) readEntryOf(db *pebble.DB, key, value []byte) error {
	switch key[0] {
	case cursorSpace:
		committed, start, err := decodeCursor(value)
		if err != nil {
			return err
		}
		s.positions = append(s.positions, cursorPosition{string(key[1:]), committed, start})
		s.last = max(s.last, committed)
	case doneSpace:
		id, err := sinkOf(key)
		if err != nil {
			return err
		}
		if s.done == nil {
			s.done = map[string]*seqset.Set{}
		}
		if s.done[id.Sink] == nil {
			s.done[id.Sink] = seqset.At(0)
		}
		return s.done[id.Sink].Load(uint64(seqOf(key)), value)
	case retainedSpace:
		if _, err := record.Decode(seqOf(key), value); err != nil {
			return err
		}
		s.events++
		s.retained = append(s.retained, seqOf(key))
	case deadSpace:
		if _, err := decodeDead(key, value); err != nil {
			return err
		}
		s.dead++
	case eventSpace:
		_, err := decodePosition(value)
		return err
	case dispositionSpace:
		var d journal.Disposition
		return json.Unmarshal(value, &d)
	case identitySpace:
		_, err := decodeReceipts(value)
		if len(key) != 1+len(identity{}) {
			err = cmp.Or(err, record.ErrTruncated)
		}
		return err
	case keySpace:
		e, err := decodeDedupeEntry(value)
		if err != nil || len(key) < 9 {
			return cmp.Or(err, record.ErrTruncated)
		}
		s.last = max(s.last, e.seq)
	case lostSpace:
		if len(key) != 9 || len(value) != 8 {
			return record.ErrTruncated
		}
		s.admitted = append(s.admitted, Range{seqOf(key), seqOf(value)})
	case metaSpace:
		if bytes.Equal(key, metaLogKey()) || bytes.Equal(key, metaMarkerKey()) {
			return nil
		}
		if len(value) != 8 {
			return record.ErrTruncated
		}
		switch at := seqOf(value); {
		case bytes.Equal(key, metaFirstKey()):
			s.oldest = at
			s.last = max(s.last, at-1)
		case bytes.Equal(key, metaLastKey()):
			s.last = max(s.last, at)
		}
	case orderSpace:
		if _, err := sinkOf(key); err != nil {
			return err
		}
		_, _, err := decodeOrder(value)
		return err
	case quarantineSpace:
		return s.readRequest(db, key, value)
	case segmentSpace:
		_, err := decodeSegmentInfo(value)
		return err
	}
	return nil
}

// readRequest checks a quarantined request with its body.
func (s *survey) readRequest(db *pebble.DB, key, value []byte) error {
	q, err := (&store{db: db, bodies: newBodies(s.opts)}).rejected(key, value)
	if errors.Is(err, journal.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a part of the request is missing: %w", err)
	}
	if err != nil {
		return err
	}
	i, _, err := splitRejected(value)
	if err != nil {
		return err
	}
	if identity(q.Identity()) != i {
		return errors.New("the body is not the body that was stored")
	}
	s.bytes += int64(len(q.Body))
	s.quarantined++
	return nil
}

// findLost finds the missing events.
func (s *survey) findLost() {
	// Only the oldest events are removed, so every later sequence up to the newest has an
	// event. A segment may have removed events, too.
	s.oldest = max(s.oldest, 1)
	for len(s.stored) > 0 && s.stored[0].From < s.oldest {
		r := &s.stored[0]
		removed := min(r.To, s.oldest-1) - r.From + 1
		s.events -= int(removed)
		if r.From += removed; r.From <= r.To {
			break
		}
		s.stored = s.stored[1:]
	}
	next := s.oldest
	for _, r := range s.stored {
		if r.From > next {
			s.lost = append(s.lost, Range{next, r.From - 1})
		}
		next = max(next, r.To+1)
	}
	s.last = max(s.last, next-1)
	if next <= s.last {
		s.lost = append(s.lost, Range{next, s.last})
	}
}

// unadmitted returns the lost events that no repair has recorded.
func (s *survey) unadmitted() []Range {
	return slices.DeleteFunc(slices.Clone(s.lost), func(m Range) bool { return skip(s.admitted, m.From) == m.To+1 })
}

func (s *survey) contents(lost []Range) Contents {
	c := Contents{
		Oldest: s.oldest, Last: s.last, Events: s.events, Lost: lost, Dead: s.dead, Quarantined: s.quarantined, Damage: s.damage, Bytes: s.bytes,
	}
	for _, p := range s.positions {
		done := seqset.At(p.committed)
		if pages := s.done[p.name]; pages != nil {
			done = pages
			done.Add(1, p.committed)
		}
		at := Position{Name: p.name, Committed: p.committed, Pending: countMissing(done, s.stored), Lost: countMissing(done, s.lost)}
		for _, seq := range s.retained {
			if !done.Has(seq) {
				at.Pending++
			}
		}
		c.Positions = append(c.Positions, at)
	}
	return c
}

// countMissing counts the events of ranges that are not done.
func countMissing(done *seqset.Set, ranges []Range) (n int) {
	for _, r := range ranges {
		n += int(done.Missing(r.From, r.To))
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
