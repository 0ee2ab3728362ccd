package pebble

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	chunks "github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// The salvage reads the tables and logs of Pebble one by one, without the manifest, so that
// a damaged file costs only its own entries. It follows Pebble's rules: the entry of a key
// with the highest sequence number is valid, unless a newer deletion covers the entry.

// Damage is an unreadable part of the journal.
type Damage struct {
	File string // file in the folder
	Err  error

	// from and to bound the lost keys; nil is unknown.
	from, to []byte
}

func (d Damage) String() string { return d.File + ": " + d.Err.Error() }

// MarshalText implements encoding.TextMarshaler.
func (d Damage) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// mayHold reports whether keys of a space may be lost.
func (d Damage) mayHold(space byte) bool {
	return (d.from == nil || d.from[0] <= space) && (d.to == nil || d.to[0] >= space)
}

// entry is one version of a key.
type entry struct {
	key, value []byte
	number     uint64 // Pebble's sequence number
	deletes    bool
}

func (e entry) compare(o entry) int {
	return cmp.Or(bytes.Compare(e.key, o.key), -cmp.Compare(e.number, o.number))
}

// rangeDeletion removes older entries from start up to end.
type rangeDeletion struct {
	start, end []byte
	number     uint64
}

// mergeSource is a sorted sequence of entries.
type mergeSource struct {
	head entry
	next func() (entry, bool)
	end  func() error // nil if nothing is to close
}

// mergeHeap is a heap with the smallest head first.
type mergeHeap []*mergeSource

func (s mergeHeap) Len() int           { return len(s) }
func (s mergeHeap) Less(i, j int) bool { return s[i].head.compare(s[j].head) < 0 }
func (s mergeHeap) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *mergeHeap) Push(x any)        { *s = append(*s, x.(*mergeSource)) }
func (s *mergeHeap) Pop() any {
	last := (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return last
}

// salvage is the readable data of a folder.
type salvage struct {
	fs      vfs.FS
	dir     string
	runs    mergeHeap
	deleted []rangeDeletion
	damage  []Damage
	tails   []Damage // incomplete records at the ends of logs
}

// openSalvage opens all tables and logs in a folder.
func openSalvage(ctx context.Context, fsys vfs.FS, dir string) (*salvage, error) {
	s := &salvage{fs: fsys, dir: dir}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the folder: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, s.close())
		}
		if strings.HasSuffix(name, ".sst") {
			s.openTable(ctx, name)
		} else if number, _, ok := wal.ParseLogFilename(name); ok {
			s.openLog(name, uint64(number))
		}
	}
	heap.Init(&s.runs)
	return s, nil
}

func (s *salvage) close() error {
	var errs []error
	for _, r := range s.runs {
		if r.end != nil {
			errs = append(errs, r.end())
		}
	}
	return errors.Join(errs...)
}

// add adds a sorted sequence.
func (s *salvage) add(next func() (entry, bool), end func() error) error {
	r := &mergeSource{next: next, end: end}
	var ok bool
	if r.head, ok = next(); !ok {
		if end != nil {
			return end()
		}
		return nil
	}
	s.runs = append(s.runs, r)
	return nil
}

// each calls do for every valid key, in order, with its value.
func (s *salvage) each(ctx context.Context, do func(key, value []byte) error) error {
	var last []byte
	for s.runs.Len() > 0 {
		r := s.runs[0]
		e := r.head
		if last == nil || !bytes.Equal(e.key, last) {
			last = append(last[:0], e.key...)
			if !e.deletes && !s.isDeleted(e) {
				if err := errors.Join(ctx.Err(), do(e.key, e.value)); err != nil {
					return err
				}
			}
		}
		var ok bool
		if r.head, ok = r.next(); ok {
			heap.Fix(&s.runs, 0)
			continue
		}
		heap.Pop(&s.runs)
		if r.end != nil {
			if err := r.end(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *salvage) isDeleted(e entry) bool {
	return slices.ContainsFunc(s.deleted, func(d rangeDeletion) bool {
		return d.number > e.number && bytes.Compare(d.start, e.key) <= 0 && bytes.Compare(e.key, d.end) < 0
	})
}

func (s *salvage) damaged(file string, err error, from, to []byte) {
	s.damage = append(s.damage, Damage{File: file, Err: err, from: from, to: to})
}

// openTable opens a table. It reads a damaged table at once, as far as possible.
func (s *salvage) openTable(ctx context.Context, name string) {
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, name))
	if err != nil {
		s.damaged(name, err, nil, nil)
		return
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		s.damaged(name, errors.Join(err, f.Close()), nil, nil)
		return
	}
	table, err := sstable.NewReader(ctx, readable, sstable.ReaderOptions{})
	if err != nil {
		s.damaged(name, errors.Join(err, readable.Close()), nil, nil)
		return
	}
	if err := s.readTable(ctx, name, table); err != nil {
		s.damaged(name, errors.Join(err, table.Close()), nil, nil)
	}
}

// readTable adds the entries of a table, and closes the table unless it returns an error.
func (s *salvage) readTable(ctx context.Context, name string, table *sstable.Reader) error {
	deletions, err := table.NewRawRangeDelIter(ctx, sstable.NoFragmentTransforms, sstable.NoReadEnv)
	if err != nil {
		return err
	}
	if deletions != nil {
		defer deletions.Close()
		span, err := deletions.First()
		for ; span != nil && err == nil; span, err = deletions.Next() {
			for _, k := range span.Keys {
				s.deleted = append(s.deleted, rangeDeletion{slices.Clone(span.Start), slices.Clone(span.End), uint64(k.SeqNum())})
			}
		}
		if err != nil {
			return err
		}
	}
	it, err := table.NewIter(sstable.NoTransforms, nil, nil, sstable.AssertNoBlobHandles)
	if err != nil {
		return err
	}
	end := func() error { return errors.Join(it.Close(), table.Close()) }
	if table.ValidateBlockChecksums() == nil {
		started := false
		return s.add(func() (entry, bool) {
			kv := it.Next
			if !started {
				started, kv = true, it.First
			}
			got := kv()
			if got == nil {
				if err := it.Error(); err != nil { // the table was valid before
					s.damaged(name, err, nil, nil)
				}
				return entry{}, false
			}
			value, _, err := got.Value(nil)
			if err != nil {
				s.damaged(name, err, slices.Clone(got.K.UserKey), slices.Clone(got.K.UserKey))
				return entry{}, false
			}
			return entryOf(got.K.UserKey, value, uint64(got.SeqNum()), got.Kind()), true
		}, end)
	}
	return errors.Join(s.add(inOrder(s.recoverBlock(name, it)), nil), end())
}

// inOrder returns entries one after another.
func inOrder(entries []entry) func() (entry, bool) {
	return func() (e entry, ok bool) {
		if len(entries) == 0 {
			return e, false
		}
		e, entries = entries[0], entries[1:]
		return e, true
	}
}

func entryOf(key, value []byte, number uint64, kind pebble.InternalKeyKind) entry {
	e := entry{key: slices.Clone(key), number: number}
	switch kind {
	case pebble.InternalKeyKindSet, pebble.InternalKeyKindSetWithDelete:
		e.value = slices.Clone(value)
	default:
		e.deletes = true
	}
	return e
}

// maxBlockEvents is the number of consecutive events that are tried before the rest of a
// table counts as unreadable. A block holds far fewer events.
const maxBlockEvents = 1 << 16

// recoverBlock reads a damaged table from the front to the first bad block, and from the
// back to the last bad block. In between it can only look up events, whose keys are known.
func (s *salvage) recoverBlock(name string, it sstable.Iterator) []entry {
	var front, back []entry
	kv := it.First()
	for ; kv != nil; kv = it.Next() {
		value, _, err := kv.Value(nil)
		if err != nil {
			break
		}
		front = append(front, entryOf(kv.K.UserKey, value, uint64(kv.SeqNum()), kv.Kind()))
	}
	cause := it.Error()
	if cause == nil && kv == nil {
		return front // the damaged part, such as a filter, is not needed
	}
	isNew := func(e entry) bool { return len(front) == 0 || e.compare(front[len(front)-1]) > 0 }
	misses := 0
	for kv = it.Last(); ; {
		if kv == nil {
			if it.Error() == nil || len(back) == 0 || back[len(back)-1].key[0] != eventSpace || misses == maxBlockEvents {
				break
			}
			low := seqOf(back[len(back)-1].key)
			if low <= journal.Seq(misses)+1 {
				break
			}
			misses++
			kv = it.SeekLT(eventKey(low-journal.Seq(misses)), 0)
			continue
		}
		value, _, err := kv.Value(nil)
		if err != nil {
			break
		}
		e := entryOf(kv.K.UserKey, value, uint64(kv.SeqNum()), kv.Kind())
		if !isNew(e) {
			break
		}
		if misses > 0 {
			s.damaged(name, cause, e.key, back[len(back)-1].key)
			misses = 0
		}
		back = append(back, e)
		kv = it.Prev()
	}
	var from, to []byte
	if len(front) > 0 {
		from = front[len(front)-1].key
	}
	if len(back) > 0 {
		to = back[len(back)-1].key
	}
	s.damaged(name, cmp.Or(cause, errors.New("a value cannot be read")), from, to)
	slices.Reverse(back)
	return append(front, back...)
}

const logBlock = 32 << 10 // block size of a log; a record never begins in the middle of a block

// openLog adds the entries of a log. Bytes between two whole records are damage. Bytes
// after the last record are damage if Pebble knows that they were synced; otherwise a crash
// has left them.
func (s *salvage) openLog(name string, number uint64) {
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, name))
	if err != nil {
		s.damaged(name, err, nil, nil)
		return
	}
	entries, err := s.readLog(name, f, number)
	if err := errors.Join(err, f.Close()); err != nil {
		s.damaged(name, err, nil, nil)
	}
	slices.SortFunc(entries, entry.compare)
	_ = s.add(inOrder(entries), nil) // nothing to close
}

func (s *salvage) readLog(name string, f io.ReaderAt, number uint64) (entries []entry, err error) {
	var broken error
	for offset := int64(0); ; {
		r := openRecords(chunks.NewReader, io.NewSectionReader(f, offset, math.MaxInt64-offset), number)
		for {
			batch, err := nextRecord(r)
			if errors.Is(err, io.EOF) {
				return entries, nil
			}
			if err != nil {
				if broken == nil {
					broken = fmt.Errorf("near byte %d: %w", offset+r.Offset(), err)
				}
				// The next record with a first chunk can be found from the next block on.
				offset += r.Offset()/logBlock*logBlock + logBlock
				break
			}
			if broken != nil {
				s.damaged(name, broken, nil, nil)
				broken = nil
			}
			if entries, err = s.takeBatch(entries, batch); err != nil {
				broken = err
			}
		}
		if _, err := f.ReadAt(make([]byte, 1), offset); errors.Is(err, io.EOF) {
			s.tails = append(s.tails, Damage{File: name, Err: broken})
			return entries, nil
		} else if err != nil {
			return entries, err
		}
	}
}

// openRecords infers the type of a log number, which Pebble does not export.
func openRecords[N ~uint64](open func(io.Reader, N) *chunks.Reader, r io.Reader, number uint64) *chunks.Reader {
	return open(r, N(number))
}

func nextRecord(r *chunks.Reader) ([]byte, error) {
	one, err := r.Next()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(one)
}

// takeBatch adds the entries of a batch in a log.
func (s *salvage) takeBatch(entries []entry, batch []byte) ([]entry, error) {
	head, ok := batchrepr.ReadHeader(batch)
	if !ok {
		return entries, record.ErrTruncated
	}
	number := uint64(head.SeqNum)
	for r := batchrepr.Read(batch); ; {
		kind, key, value, ok, err := r.Next()
		if err != nil || !ok {
			return entries, err
		}
		switch kind {
		case pebble.InternalKeyKindLogData:
			continue
		case pebble.InternalKeyKindRangeDelete:
			s.deleted = append(s.deleted, rangeDeletion{slices.Clone(key), slices.Clone(value), number})
		default:
			entries = append(entries, entryOf(key, value, number, kind))
		}
		number++
	}
}
