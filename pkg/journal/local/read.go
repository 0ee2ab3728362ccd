package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// storedRecord is an encoded event in the log, valid until the next one is read.
type storedRecord struct {
	seq   journal.Seq
	value []byte
}

// buffers holds the memory of readers.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, readSize); return &b }}

// locate returns the position of the entry in the sparse index at or before a sequence, or
// of the oldest entry. It reports false without any entry.
func (st *store) locate(from journal.Seq) (p position, ok bool, err error) {
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{eventSpace}, UpperBound: []byte{eventSpace + 1}})
	if err != nil {
		return p, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.SeekLT(eventKey(from+1)) && !it.First() {
		return p, false, it.Error()
	}
	p, err = decodePosition(it.Value())
	return p, err == nil, err
}

// records yields the stored records from a sequence on. The log is read in order, and
// nothing is decoded. A record may be removed by expiry meanwhile; the sequence then has a
// gap.
func (st *store) records(from journal.Seq) iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		if err := st.readRecords(from, func(r storedRecord) bool { return yield(r, nil) }); err != nil {
			yield(storedRecord{}, err)
		}
	}
}

func (st *store) readRecords(from journal.Seq, yield func(storedRecord) bool) error {
	p, ok, err := st.locate(from)
	if err != nil {
		return damaged(err)
	}
	if !ok {
		return nil
	}
	s := st.segments.acquire(p.number)
	if s == nil { // expired
		p.at = 0
		s = st.segments.after(p.number)
	}
	buffer, unpacked := buffers.Get().(*[]byte), buffers.Get().(*[]byte)
	defer func() {
		for _, b := range []*[]byte{buffer, unpacked} {
			if cap(*b) <= 2*maxGroupBytes {
				buffers.Put(b)
			}
		}
	}()
	for s != nil {
		number := s.number
		more, err := st.readSegment(s, p.at, from, buffer, unpacked, yield)
		if err := errors.Join(err, st.segments.release(s)); err != nil || !more {
			return err
		}
		p.at = 0
		s = st.segments.after(number)
	}
	return nil
}

// readSegment yields the records of a segment from an offset and a sequence on, and reports
// whether to continue with the next segment.
func (st *store) readSegment(s *segment, at int64, from journal.Seq, buffer, unpacked *[]byte, yield func(storedRecord) bool) (more bool, err error) {
	limit := st.segments.endOf(s)
	file, err := st.segments.fs.Open(st.segments.path(segmentName(s.number)))
	if err != nil {
		return false, fmt.Errorf("opening a segment: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	frames := &frameReader{file: file, salt: st.segments.salt, at: at, limit: limit, generation: s.number, buffer: (*buffer)[:0], start: at}
	defer func() { *buffer = frames.buffer }()
	for {
		f, err := frames.next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if errors.Is(err, errInvalidFrame) {
			return false, damagedLog(s.number, err)
		}
		if err != nil {
			return false, fmt.Errorf("reading a segment: %w", err)
		}
		entries, err := entriesOf(f.payload, *unpacked)
		if err != nil {
			return false, damagedLog(s.number, fmt.Errorf("frame at offset %d: %w", f.at, err))
		}
		if f.payload[0] == compressedFrame {
			*unpacked = entries[:0]
		}
		err = eachEntryOf(entries, func(e entry) error {
			for i, value := range e.records {
				if r := (storedRecord{e.seq + journal.Seq(i), value}); r.seq >= from && !yield(r) {
					return errEnough
				}
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return false, nil
		}
		if err != nil {
			return false, damagedLog(s.number, fmt.Errorf("frame at offset %d: %w", f.at, err))
		}
	}
}

var errEnough = errors.New("no more records are wanted")

// read returns the records of a range of sequences on stable storage. It returns none if all
// events of the range are lost or removed. Before oldest there are only retained events.
func (st *store) read(from, oldest, through journal.Seq, limit int) (records []journal.Record, err error) {
	decoder := record.Decoder{DropKeys: !st.keepKeys}
	size := 0
	for r, err := range st.recordsFrom(from, oldest) {
		if err != nil {
			return nil, err
		}
		if r.seq > through {
			break
		}
		decoded, err := decoder.Record(r.seq, r.value)
		if err != nil {
			return nil, damaged(err)
		}
		records = append(records, decoded)
		if size += len(r.value); len(records) >= limit || size >= maxReadBytes {
			break
		}
	}
	return records, nil
}

// value returns a copy of the record of an event. Its error may wrap journal.ErrNotFound.
func (st *store) value(s journal.Seq) ([]byte, error) {
	for r, err := range st.records(s) {
		if err != nil {
			return nil, err
		}
		if r.seq == s {
			return append([]byte(nil), r.value...), nil
		}
		break
	}
	return st.get(retainedKey(s))
}

// before returns the last sequence of a range whose event was accepted before cutoff, or
// oldest-1.
func (st *store) before(cutoff time.Time, oldest, last journal.Seq) (journal.Seq, error) {
	from := oldest
	end := oldest - 1
	// Whole segments first, then the sparse index of one segment, then its records.
	for _, s := range st.segments.infos() {
		if s.events > 0 && s.last <= last && s.newest < cutoff.UnixNano() {
			end = max(end, s.last)
			from = max(from, s.last+1)
		}
	}
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: eventKey(from), UpperBound: []byte{eventSpace + 1}})
	if err != nil {
		return 0, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		p, err := decodePosition(it.Value())
		if err != nil {
			return 0, errors.Join(damaged(err), it.Close())
		}
		if p.accepted >= cutoff.UnixNano() || seqOf(it.Key()) > last {
			break
		}
		from = seqOf(it.Key())
	}
	if err := it.Close(); err != nil {
		return 0, err
	}
	for r, err := range st.records(from) {
		if err != nil {
			return 0, err
		}
		accepted, err := record.Accepted(r.value)
		if err != nil {
			return 0, damaged(err)
		}
		if r.seq > last || !accepted.Before(cutoff) {
			break
		}
		end = r.seq
	}
	return max(min(end, last), oldest-1), nil
}

// Read implements journal.Log.
func (j *Journal) Read(ctx context.Context, from journal.Seq, limit int) (records []journal.Record, err error) {
	j.mu.Lock()
	from, through := max(from, j.first()), j.durable
	j.mu.Unlock()
	return j.readFrom(ctx, from, through, limit)
}

// readFrom returns the stored records of a range of sequences. An event that is retained
// while readFrom reads is in the result.
func (j *Journal) readFrom(ctx context.Context, from, through journal.Seq, limit int) (records []journal.Record, err error) {
	for {
		j.mu.Lock()
		oldest, staged := j.oldest, j.retained.staged > 0
		j.mu.Unlock()
		if from < oldest && staged { // the copies may not be in the index yet
			if err := sleep.For(ctx, time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		err = j.read(ctx, func(st *store) (err error) {
			records, err = st.read(from, oldest, through, limit)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading from %d: %w", from, err)
		}
		j.mu.Lock()
		unchanged := j.oldest == oldest
		j.mu.Unlock()
		if unchanged {
			return records, nil
		}
	}
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
