package local

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
)

const (
	logDir        = "log"
	segmentSuffix = ".seg"
	spareName     = "spare" // an expired segment, which becomes the next segment
)

// The first byte of a payload is the kind of the frame, see also entry.go.
const (
	nextFrame   = 2 // the last frame of a segment: the number of the next segment, 4 bytes
	closedFrame = 3 // a clean end: everything before the frame is on stable storage
)

// segmentInfo describes a segment.
type segmentInfo struct {
	number uint32
	end    int64 // offset after the last frame
	events uint64
	last   journal.Seq // last event; 0 without events
	newest int64       // its acceptance, nanoseconds since 1970
}

// add counts the events of a group.
func (s *segmentInfo) add(m groupEvents) {
	if m.events == 0 {
		return
	}
	s.events += uint64(m.events)
	s.last, s.newest = m.first+journal.Seq(m.events)-1, m.newest
}

func (s segmentInfo) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, s.number)
	for _, n := range [...]uint64{uint64(s.end), s.events, uint64(s.last), uint64(s.newest)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

const segmentInfoBytes = 4 + 4*8

func decodeSegmentInfo(b []byte) (s segmentInfo, err error) {
	if len(b) != segmentInfoBytes {
		return s, errors.New("entry of a segment has a wrong length")
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(b[4+8*i:]) }
	return segmentInfo{binary.BigEndian.Uint32(b), int64(n(0)), n(1), journal.Seq(n(2)), int64(n(3))}, nil
}

// segment is a segment of an opened log.
type segment struct {
	segmentInfo     // guarded by segmentLog.mu
	readers     int // guarded by segmentLog.mu
	removed     bool
}

// segmentLog is the log of an opened journal: all events, and all changes of the index. One
// goroutine writes; any number of goroutines read.
type segmentLog struct {
	fs   vfs.FS
	dir  string
	size int64 // a segment ends before it grows beyond this size, unless one write is larger
	salt uint32

	bytes atomic.Int64 // size of all segments through their last frames, and of the spare

	mu       sync.Mutex
	segments []*segment // oldest first; the last one is written

	spareMu sync.Mutex
	spare   bool   // the file spareName exists
	linked  uint32 // the files of segments up to this one are not written again: a repair has linked them

	// Used by the writing goroutine only.
	file       vfs.File
	generation uint32
	synced     int64  // offset of the written segment that is on stable storage
	sparse     int64  // offset of the last entry in the sparse index
	frame      []byte // memory of the next frame
}

// segmentFile returns the name of a segment in the folder of the journal.
func segmentFile(number uint32) string { return logDir + "/" + segmentName(number) }

func segmentName(number uint32) string { return fmt.Sprintf("%010d%s", number, segmentSuffix) }

// numberOf returns the number in the name of a segment.
func numberOf(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && n > 0
}

func (l *segmentLog) path(name string) string { return l.fs.PathJoin(l.dir, name) }

// listSegments returns the numbers of the segments in a folder, in order.
func listSegments(fsys vfs.FS, dir string) (numbers []uint32, spare bool, err error) {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, name := range names {
		if n, ok := numberOf(name); ok {
			numbers = append(numbers, n)
		}
		spare = spare || name == spareName
	}
	slices.Sort(numbers)
	return numbers, spare, nil
}

// recovery reads the log at the opening of a journal.
type recovery struct {
	l       *segmentLog
	indexed map[uint32]segmentInfo // segments that the index has
	from    segmentInfo            // the segment through which the index is complete, up to end
	newest  uint32                 // newest generation that a frame may have
	apply   func(s *segment, f frame) error
	ended   func(s segmentInfo) error // a segment is complete
}

// generations is more than the number of openings between two writes of the index.
const generations = 1 << 20

// damagedLog explains damage of a segment.
func damagedLog(number uint32, err error) error {
	return &damageError{segmentFile(number), err}
}

var errMissing = errors.New("the file is missing")

// run reads the segments after the position of the index, and opens the last one for
// writing. The caller removes the segments that the index does not have.
func (r *recovery) run() error {
	l := r.l
	numbers, spare, err := listSegments(l.fs, l.dir)
	if err != nil {
		return fmt.Errorf("listing the segments: %w", err)
	}
	if l.spare = spare; spare {
		l.bytes.Add(l.size)
	}
	if r.from.number != 0 && !slices.Contains(numbers, r.from.number) {
		return damagedLog(r.from.number, errMissing)
	}
	for _, n := range numbers {
		r.newest = max(r.newest, n)
	}
	generation := r.newest
	r.newest += generations
	var previous *segment // the segment before, if it was read
	var next uint32       // the number in its last frame; 0 without
	var unsynced [2]int64 // offsets of the last two segments from which bytes may be in memory only
	for _, number := range numbers {
		if number < r.from.number {
			if info, ok := r.indexed[number]; ok {
				l.segments = append(l.segments, &segment{segmentInfo: info})
				unsynced[0], unsynced[1] = unsynced[1], info.end
			} else if err := l.fs.Remove(l.path(segmentName(number))); err != nil { // expired
				return fmt.Errorf("removing a segment: %w", err)
			}
			continue
		}
		s := &segment{segmentInfo: segmentInfo{number: number}}
		if number == r.from.number {
			s.segmentInfo = r.from
		}
		if next != 0 && next != number {
			return damagedLog(next, errMissing)
		}
		synced, after, newest, err := r.segment(s)
		if err != nil {
			return err
		}
		if previous != nil && next == 0 {
			if s.end > 0 {
				return damagedLog(previous.number, fmt.Errorf("the file ends at offset %d, and its last frames are missing", previous.end))
			}
			// A crash came after the file was made and before the segment before it ended.
			if err := l.fs.Remove(l.path(segmentName(number))); err != nil {
				return fmt.Errorf("removing a segment: %w", err)
			}
			continue
		}
		generation = max(generation, newest)
		previous, next = s, after
		l.segments = append(l.segments, s)
		unsynced[0], unsynced[1] = unsynced[1], synced
		if next != 0 {
			if err := r.ended(s.segmentInfo); err != nil {
				return err
			}
		}
	}
	if next != 0 {
		return damagedLog(next, errMissing)
	}
	l.generation = generation + 1
	for _, s := range l.segments {
		l.bytes.Add(s.end)
	}
	if len(l.segments) == 0 {
		return l.create(l.generation)
	}
	// An earlier process may have made a file and failed to sync the folder.
	if err := syncDir(l.fs, l.dir); err != nil {
		return fmt.Errorf("syncing the folder of segments: %w", err)
	}
	// A failed sync may have left written bytes in memory only, where they are read as if
	// they were on the disk.
	for i, s := range l.segments[max(0, len(l.segments)-2):] {
		if err := l.rewrite(s, unsynced[i+2-min(2, len(l.segments))]); err != nil {
			return fmt.Errorf("syncing a segment: %w", err)
		}
	}
	last := l.segments[len(l.segments)-1]
	l.file, err = l.fs.OpenReadWrite(l.path(segmentName(last.number)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("opening a segment: %w", err)
	}
	l.synced, l.sparse = last.end, 0
	return nil
}

// segment reads the frames of a segment after s.end, and moves s.end. It returns the offset
// through which the segment is on stable storage for certain, the number in its last frame
// if that is a nextFrame, and its newest generation.
func (r *recovery) segment(s *segment) (synced int64, next, newest uint32, err error) {
	name := r.l.path(segmentName(s.number))
	file, err := r.l.fs.Open(name)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("opening a segment: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return 0, 0, 0, fmt.Errorf("opening a segment: %w", err)
	}
	if info.Size() < s.end {
		return 0, 0, 0, damagedLog(s.number, fmt.Errorf("the file ends at offset %d, %d were on stable storage", info.Size(), s.end))
	}
	frames := &frameReader{file: file, salt: r.l.salt, at: s.end, limit: info.Size(), generation: s.number}
	synced = s.end
	for {
		f, err := frames.next()
		if errors.Is(err, errInvalidFrame) || errors.Is(err, io.EOF) {
			promised, more := frames.promised(r.newest)
			if more != nil {
				return 0, 0, 0, fmt.Errorf("reading a segment: %w", more)
			}
			if promised > frames.at {
				return 0, 0, 0, damagedLog(s.number, err)
			}
			return synced, 0, max(newest, frames.generation), nil
		}
		if err != nil {
			return 0, 0, 0, fmt.Errorf("reading a segment: %w", err)
		}
		newest, synced, s.end = f.generation, max(synced, f.synced), f.end()
		switch f.payload[0] {
		case entriesFrame, compressedFrame:
			if err := r.apply(s, f); err != nil {
				return 0, 0, 0, damagedLog(s.number, fmt.Errorf("frame at offset %d: %w", f.at, err))
			}
		case nextFrame:
			if len(f.payload) != 5 {
				return 0, 0, 0, damagedLog(s.number, fmt.Errorf("frame at offset %d: wrong length", f.at))
			}
			return synced, binary.LittleEndian.Uint32(f.payload[1:]), newest, nil
		case closedFrame:
		default:
			return 0, 0, 0, damagedLog(s.number, fmt.Errorf("frame at offset %d has the unknown kind %d", f.at, f.payload[0]))
		}
	}
}

// rewrite writes the bytes of a segment from an offset to its end again, and syncs them.
func (l *segmentLog) rewrite(s *segment, from int64) (err error) {
	if from >= s.end {
		return nil
	}
	file, err := l.fs.OpenReadWrite(l.path(segmentName(s.number)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buffer := make([]byte, min(s.end-from, 1<<20))
	for at := from; at < s.end; {
		b := buffer[:min(int64(len(buffer)), s.end-at)]
		if _, err := file.ReadAt(b, at); err != nil {
			return err
		}
		if _, err := file.WriteAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return file.Sync()
}

// create makes a new segment and writes to it from now on.
func (l *segmentLog) create(number uint32) error {
	name := l.path(segmentName(number))
	file, err := l.newFile(name)
	if err != nil {
		return fmt.Errorf("making a segment: %w", err)
	}
	// The size of the file must be on stable storage with the name.
	if err := errors.Join(file.Sync(), syncDir(l.fs, l.dir)); err != nil {
		return errors.Join(fmt.Errorf("making a segment: %w", err), file.Close())
	}
	l.file, l.generation, l.synced, l.sparse = file, number, 0, 0
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, &segment{segmentInfo: segmentInfo{number: number}})
	return nil
}

// newFile makes a file of the spare, or creates a file.
func (l *segmentLog) newFile(name string) (vfs.File, error) {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	if l.spare {
		l.spare = false
		l.bytes.Add(-l.size)
		file, err := l.fs.ReuseForWrite(l.path(spareName), name, vfs.WriteCategoryUnspecified)
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	file, err := l.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_ = file.Preallocate(0, l.size) // a hint
	}
	return file, err
}

// active returns the segment that is written. Only the writing goroutine changes it.
func (l *segmentLog) active() *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments[len(l.segments)-1]
}

// rotate ends the written segment and begins the next one. It returns the ended segment.
func (l *segmentLog) rotate() (segmentInfo, error) {
	old, file := l.active(), l.file
	number := l.generation + 1
	generation := l.generation
	at, synced := old.end, l.synced
	if err := l.create(number); err != nil {
		return segmentInfo{}, err
	}
	frame := append(make([]byte, headerBytes), nextFrame)
	frame = binary.LittleEndian.AppendUint32(frame, number)
	seal(frame, l.salt, generation, uint32(synced))
	_, err := file.WriteAt(frame, at)
	if err := errors.Join(err, file.SyncData(), file.Close()); err != nil {
		return segmentInfo{}, fmt.Errorf("ending a segment: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old.end = at + int64(len(frame))
	l.bytes.Add(int64(len(frame)))
	return old.segmentInfo, nil
}

// groupEvents describes the events of a group.
type groupEvents struct {
	events         int
	first          journal.Seq
	oldest, newest int64 // acceptance of the first and the last event, nanoseconds since 1970
}

// write writes the entries of a group as one frame, and syncs it. It returns the offset of
// the frame in the written segment.
func (l *segmentLog) write(entries []byte, m groupEvents) (at int64, err error) {
	s := l.active()
	at = s.end
	l.frame = appendEntries(append(l.frame[:0], make([]byte, headerBytes)...), entries)
	frame := l.frame
	seal(frame, l.salt, l.generation, uint32(l.synced))
	if cap(l.frame) > 2*maxGroupBytes {
		l.frame = nil // of one large request
	}
	if _, err := l.file.WriteAt(frame, at); err != nil {
		return 0, fmt.Errorf("writing to the log: %w", err)
	}
	if err := l.file.SyncData(); err != nil {
		return 0, fmt.Errorf("syncing the log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.end += int64(len(frame))
	s.add(m)
	l.synced = s.end
	l.bytes.Add(int64(len(frame)))
	return at, nil
}

// full reports whether a write needs the next segment.
func (l *segmentLog) full(bytes int) bool {
	end := l.active().end
	return end > 0 && end+int64(bytes) > l.size
}

// close ends the log cleanly.
func (l *segmentLog) close(clean bool) error {
	if l.file == nil {
		return nil
	}
	var err error
	if s := l.active(); clean && s.end > 0 {
		frame := append(make([]byte, headerBytes), closedFrame)
		seal(frame, l.salt, l.generation, uint32(l.synced))
		if _, err = l.file.WriteAt(frame, s.end); err == nil {
			err = l.file.SyncData()
		}
	}
	err = errors.Join(err, l.file.Close())
	l.file = nil
	return err
}

// acquire returns the segment with a number, which is not removed before release. It
// returns nil if the segment is removed already.
func (l *segmentLog) acquire(number uint32) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.find(number)
	if !ok {
		return nil
	}
	l.segments[i].readers++
	return l.segments[i]
}

// after returns the segment after a number, or nil; see acquire.
func (l *segmentLog) after(number uint32) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.find(number)
	if ok {
		i++
	}
	if i == len(l.segments) {
		return nil
	}
	l.segments[i].readers++
	return l.segments[i]
}

// endOf returns the offset after the last frame of a segment on stable storage.
func (l *segmentLog) endOf(s *segment) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.end
}

func (l *segmentLog) find(number uint32) (int, bool) {
	return slices.BinarySearchFunc(l.segments, number, func(s *segment, n uint32) int { return cmp.Compare(s.number, n) })
}

// release ends a use of a segment.
func (l *segmentLog) release(s *segment) error {
	l.mu.Lock()
	s.readers--
	free := s.removed && s.readers == 0
	l.mu.Unlock()
	if free {
		return l.free(s.number)
	}
	return nil
}

// keepOnly removes the segments that the index does not have, and returns an error if the
// index has a segment without a file.
func (l *segmentLog) keepOnly(indexed map[uint32]segmentInfo) error {
	var through uint32
	l.mu.Lock()
	for _, s := range l.segments[:len(l.segments)-1] {
		if _, ok := indexed[s.number]; !ok {
			through = s.number
		}
		delete(indexed, s.number)
	}
	l.mu.Unlock()
	for number := range indexed {
		return damagedLog(number, errMissing)
	}
	return l.remove(through)
}

// infos returns the segments, oldest first; the last one is written.
func (l *segmentLog) infos() []segmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]segmentInfo, len(l.segments))
	for i, s := range l.segments {
		all[i] = s.segmentInfo
	}
	return all
}

// remove removes the first segments, and keeps the files of segments in use until their
// readers end.
func (l *segmentLog) remove(through uint32) error {
	var free []uint32
	l.mu.Lock()
	n := 0
	for n < len(l.segments)-1 && l.segments[n].number <= through {
		s := l.segments[n]
		s.removed = true
		l.bytes.Add(-s.end)
		if s.readers == 0 {
			free = append(free, s.number)
		}
		n++
	}
	l.segments = slices.Clone(l.segments[n:])
	l.mu.Unlock()
	var err error
	for _, number := range free {
		err = errors.Join(err, l.free(number))
	}
	return err
}

// free removes the file of a segment, or keeps it for the next segment.
func (l *segmentLog) free(number uint32) error {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	name := l.path(segmentName(number))
	var err error
	if l.spare || number <= l.linked {
		err = l.fs.Remove(name)
	} else if err = l.fs.Rename(name, l.path(spareName)); err == nil {
		l.spare = true
		l.bytes.Add(l.size)
	}
	if err != nil {
		return fmt.Errorf("removing a segment: %w", err)
	}
	return nil
}
