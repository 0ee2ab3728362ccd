package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/klauspost/compress/s2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// An entry is what one request changes: the events that it appends, with their identity keys,
// and all other changes. The changes are those of the index, so that the index can be
// brought up to date from the log: applying an entry twice changes nothing.
//
//	length | seq | n | (length record)… | changes
//
// Seq has 8 bytes: the sequence of the first event, or without events the newest sequence.
// The other numbers are uvarints. A record is encoded by package record.
type entry struct {
	seq     journal.Seq
	records [][]byte
	changes []byte
}

// A frame of entries has the entries of one group, compressed if that makes them smaller:
// events resemble each other.
const (
	entriesFrame    = 1 // entries
	compressedFrame = 4 // entries, in the block format of S2
)

// appendEntries appends the payload of a frame of entries.
func appendEntries(b, entries []byte) []byte {
	start := len(b)
	b = slices.Grow(b, 1+s2.MaxEncodedLen(len(entries)))
	packed := s2.Encode(b[start+1:cap(b)], entries)
	if len(packed) < len(entries) {
		b = b[:start+1+len(packed)]
		b[start] = compressedFrame
		return b
	}
	return append(append(b, entriesFrame), entries...)
}

// entriesOf returns the entries of a payload, or nil for a frame of another kind. The result
// may use the memory of buffer.
func entriesOf(payload, buffer []byte) ([]byte, error) {
	switch payload[0] {
	case entriesFrame:
		return payload[1:], nil
	case compressedFrame:
		entries, err := s2.Decode(buffer[:cap(buffer)], payload[1:])
		if err != nil {
			return nil, fmt.Errorf("decompressing: %w", err)
		}
		return entries, nil
	}
	return nil, nil
}

// eachEntryOf calls do for each entry.
func eachEntryOf(entries []byte, do func(entry) error) error {
	r := &record.Reader{B: entries}
	for len(r.B) > 0 {
		b := r.Bytes()
		if r.Err != nil {
			return r.Err
		}
		e, err := decodeEntry(b)
		if err == nil {
			err = do(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Kinds of changes. Keys and values are strings with their length.
const (
	changeSet         = 's' // key, value
	changeDelete      = 'd' // key
	changeDeleteRange = 'r' // first key, key after the last
	changeKey         = 'k' // identity key, time, dedupe entry: a further key of an earlier event
)

// appendTo encodes the entry.
func (e *entry) appendTo(b []byte) []byte {
	length := 8 + uvarintBytes(len(e.records)) + len(e.changes)
	for _, r := range e.records {
		length += uvarintBytes(len(r)) + len(r)
	}
	b = binary.AppendUvarint(b, uint64(length))
	b = binary.BigEndian.AppendUint64(b, uint64(e.seq))
	b = binary.AppendUvarint(b, uint64(len(e.records)))
	for _, r := range e.records {
		b = append(binary.AppendUvarint(b, uint64(len(r))), r...)
	}
	return append(b, e.changes...)
}

// uvarintBytes returns the size of a number as a uvarint.
func uvarintBytes(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

// decodeEntry decodes an entry without its length. The result shares memory with b.
func decodeEntry(b []byte) (e entry, err error) {
	r := &record.Reader{B: b}
	e.seq = journal.Seq(r.Uint64())
	n := r.Uvarint()
	if n > uint64(len(r.B)) {
		return e, record.ErrTruncated
	}
	if n > 0 {
		e.records = make([][]byte, n)
	}
	for i := range e.records {
		e.records[i] = r.Bytes()
	}
	e.changes = r.B
	return e, r.Err
}

func appendChange(b []byte, kind byte, parts ...[]byte) []byte {
	b = append(b, kind)
	for _, p := range parts {
		b = append(binary.AppendUvarint(b, uint64(len(p))), p...)
	}
	return b
}

// applyChanges stages the changes of an entry for the index.
func applyChanges(changes []byte, b *pebble.Batch, w *window) error {
	r := &record.Reader{B: changes}
	for len(r.B) > 0 {
		kind, key := r.Byte(), r.Bytes()
		var value []byte
		if kind != changeDelete {
			value = r.Bytes()
		}
		if r.Err != nil {
			return r.Err
		}
		var err error
		switch kind {
		case changeSet:
			err = b.Set(key, value, nil)
		case changeDelete:
			err = b.Delete(key, nil)
		case changeDeleteRange:
			err = b.DeleteRange(key, value, nil)
		case changeKey:
			v := &record.Reader{B: value}
			now := int64(v.Uint64())
			var s dedupeEntry
			if s, err = decodeDedupeEntry(v.B); err == nil && v.Err == nil {
				err = w.put(b, event.Key(key), s, now)
			}
			err = errors.Join(err, v.Err)
		default:
			err = fmt.Errorf("unknown change %q", kind)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replayer brings the index up to date from the log.
type replayer struct {
	db     *pebble.DB
	window *window
	batch  *pebble.Batch
	sparse int64 // offset of the last entry in the sparse index
	buffer []byte

	last     journal.Seq
	accepted int64
}

// apply applies a frame of a segment.
func (r *replayer) apply(s *segment, f frame) error {
	entries, err := entriesOf(f.payload, r.buffer)
	if err != nil || entries == nil {
		return err
	}
	if f.payload[0] == compressedFrame {
		r.buffer = entries[:0]
	}
	before := s.events
	err = eachEntryOf(entries, func(e entry) error {
		if len(e.records) > 0 && s.events == before && (s.events == 0 || f.at < r.sparse || f.at-r.sparse >= sparseBytes) {
			r.sparse = f.at
			accepted, err := record.Accepted(e.records[0])
			if err != nil {
				return err
			}
			if err := r.batch.Set(eventKey(e.seq), position{s.number, f.at, accepted.UnixNano()}.append(nil), nil); err != nil {
				return err
			}
		}
		if err := r.applyEntry(s, e); err != nil {
			return err
		}
		return applyChanges(e.changes, r.batch, r.window)
	})
	if err != nil || r.batch.Len() < 1<<20 {
		return err
	}
	return r.flush(s.segmentInfo, f.end(), f.generation)
}

// applyEntry stages the identity keys of the events of an entry.
func (r *replayer) applyEntry(s *segment, e entry) error {
	for i, value := range e.records {
		at := e.seq + journal.Seq(i)
		head, encoded, err := record.Split(at, value)
		if err != nil {
			return err
		}
		id, err := record.EventID(encoded)
		if err != nil {
			return fmt.Errorf("event %d: %w", at, err)
		}
		accepted := head.Accepted.UnixNano()
		for _, key := range head.Event.Keys {
			if err := r.window.put(r.batch, key, dedupeEntry{first: accepted, seq: at, id: id}, accepted); err != nil {
				return err
			}
		}
		s.add(groupEvents{1, at, accepted, accepted})
		r.last, r.accepted = max(r.last, at), max(r.accepted, accepted)
	}
	return nil
}

// flush applies the batch, with the position in the log.
func (r *replayer) flush(s segmentInfo, end int64, generation uint32) error {
	s.end = end
	err := errors.Join(
		r.window.record(r.batch),
		r.batch.Set(metaLogKey(), appendLogPosition(nil, s, generation), nil),
		r.batch.Commit(pebble.NoSync),
		r.batch.Close(),
	)
	r.batch = r.db.NewBatch()
	return err
}

// sparseBytes is the distance between two entries of the sparse index.
const sparseBytes = 64 << 10

// position is the value of an entry in the sparse index: where an event is stored.
type position struct {
	number   uint32
	at       int64
	accepted int64 // nanoseconds since 1970
}

func (p position) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, p.number)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(p.at)), uint64(p.accepted))
}

func decodePosition(b []byte) (position, error) {
	if len(b) != 20 {
		return position{}, record.ErrTruncated
	}
	return position{binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint64(b[4:])), int64(binary.BigEndian.Uint64(b[12:]))}, nil
}

// appendLogPosition encodes the position through which the index is complete.
func appendLogPosition(b []byte, s segmentInfo, generation uint32) []byte {
	return binary.BigEndian.AppendUint32(s.appendTo(b), generation)
}

func decodeLogPosition(b []byte) (s segmentInfo, generation uint32, err error) {
	if len(b) != segmentInfoBytes+4 {
		return s, 0, record.ErrTruncated
	}
	s, err = decodeSegmentInfo(b[:segmentInfoBytes])
	return s, binary.BigEndian.Uint32(b[segmentInfoBytes:]), err
}
