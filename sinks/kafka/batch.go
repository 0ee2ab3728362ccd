package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
)

// Offsets of fields in a record batch of version 2, behind the length of the record set
// (https://kafka.apache.org/documentation/#recordbatch).
const (
	batchStart       = 4
	offsetLength     = batchStart + 8
	offsetLeader     = batchStart + 12
	offsetMagic      = batchStart + 16
	offsetCRC        = batchStart + 17
	offsetAttributes = batchStart + 21 // the CRC covers the batch from here
	offsetLastDelta  = batchStart + 23
	offsetFirstTime  = batchStart + 27
	offsetMaxTime    = batchStart + 35
	offsetProducer   = batchStart + 43
	offsetEpoch      = batchStart + 51
	offsetSequence   = batchStart + 53
	offsetCount      = batchStart + 57
	batchHeaderSize  = batchStart + 61
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordBatch is a record set of one batch, without numbers. Its bytes do not change: after
// a canceled request, the client may still read them.
type recordBatch []byte

// encodeBatch encodes the records that indexes select, as a record set of one batch. kafka-go
// can encode a batch, too, through several copies and without a way to number it.
func encodeBatch(records []record, indexes []int, compression kafka.Compression, now time.Time) (recordBatch, error) {
	size := batchHeaderSize
	for _, i := range indexes {
		size += records[i].size()
	}
	b := make([]byte, batchHeaderSize, size)
	for delta, i := range indexes {
		b = records[i].append(b, delta)
	}
	if compression != 0 {
		codec := compression.Codec()
		if codec == nil {
			return nil, fmt.Errorf("compression %d is unknown", compression)
		}
		packed := bytes.NewBuffer(make([]byte, batchHeaderSize, size))
		w := codec.NewWriter(packed)
		if _, err := w.Write(b[batchHeaderSize:]); err != nil {
			return nil, fmt.Errorf("compressing a batch: %w", err)
		}
		if err := w.Close(); err != nil {
			return nil, fmt.Errorf("compressing a batch: %w", err)
		}
		b = bytes.Clone(packed.Bytes()) // a batch in doubt keeps its memory
	}
	count := len(indexes)
	binary.BigEndian.PutUint32(b, uint32(len(b)-batchStart))
	binary.BigEndian.PutUint32(b[offsetLength:], uint32(len(b)-offsetLeader))
	binary.BigEndian.PutUint32(b[offsetLeader:], ^uint32(0)) // unknown to producers
	b[offsetMagic] = 2
	binary.BigEndian.PutUint16(b[offsetAttributes:], uint16(compression))
	binary.BigEndian.PutUint32(b[offsetLastDelta:], uint32(count-1))
	binary.BigEndian.PutUint64(b[offsetFirstTime:], uint64(now.UnixMilli()))
	binary.BigEndian.PutUint64(b[offsetMaxTime:], uint64(now.UnixMilli()))
	binary.BigEndian.PutUint32(b[offsetCount:], uint32(count))
	return b, nil
}

// append appends a record with its distance to the first record of the batch.
func (r record) append(b []byte, delta int) []byte {
	length := 1 + 1 + varintSize(delta) + bytesSize(r.key, r.key == nil) + bytesSize(r.value, r.value == nil) + varintSize(len(r.headers))
	for _, h := range r.headers {
		length += bytesSize(h.Key, false) + bytesSize(h.Value, h.Value == nil)
	}
	b = binary.AppendVarint(b, int64(length))
	b = append(b, 0, 0) // attributes, and the time since the first record
	b = binary.AppendVarint(b, int64(delta))
	b = appendBytes(b, r.key, r.key == nil)
	b = appendBytes(b, r.value, r.value == nil)
	b = binary.AppendVarint(b, int64(len(r.headers)))
	for _, h := range r.headers {
		b = appendBytes(b, h.Key, false)
		b = appendBytes(b, h.Value, h.Value == nil)
	}
	return b
}

func appendBytes[T []byte | string](b []byte, v T, null bool) []byte {
	if null {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}

func bytesSize[T []byte | string](v T, null bool) int {
	if null {
		return varintSize(-1)
	}
	return varintSize(len(v)) + len(v)
}

func varintSize(n int) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutVarint(b[:], int64(n))
}

// numbered returns the record set with a producer ID, an epoch and the number of its first
// record.
func (b recordBatch) numbered(id identity, first int32) io.Reader {
	if id == none {
		first = -1
	}
	h := bytes.Clone(b[:batchHeaderSize])
	binary.BigEndian.PutUint64(h[offsetProducer:], uint64(id.id))
	binary.BigEndian.PutUint16(h[offsetEpoch:], uint16(id.epoch))
	binary.BigEndian.PutUint32(h[offsetSequence:], uint32(first))
	crc := crc32.Update(crc32.Checksum(h[offsetAttributes:], castagnoli), castagnoli, b[batchHeaderSize:])
	binary.BigEndian.PutUint32(h[offsetCRC:], crc)
	return io.MultiReader(bytes.NewReader(h), bytes.NewReader(b[batchHeaderSize:]))
}
