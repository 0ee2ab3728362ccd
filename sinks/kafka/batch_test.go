package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
)

// TestBatchIsThatOfTheClient: a batch has the bytes that kafka-go encodes, but for the
// producer.
func TestBatchIsThatOfTheClient(t *testing.T) {
	records := []record{
		{key: []byte("k"), value: []byte("v"), headers: []kafka.Header{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}}},
		{value: []byte(strings.Repeat("long ", 1000))},
		{key: []byte{}, value: []byte{}},
		{key: []byte("other")},
	}
	for range 200 {
		records = append(records, record{key: []byte("k"), value: []byte(strings.Repeat("x", len(records)))})
	}
	var indexes []int
	for i := range records {
		if i != 3 {
			indexes = append(indexes, i)
		}
	}
	now := time.UnixMilli(1_790_000_000_123)
	for _, compression := range []kafka.Compression{0, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		b, err := encodeBatch(records, indexes, compression, now)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b.numbered(none, 7))
		if err != nil {
			t.Fatal(err)
		}
		all := make([]kafka.Record, len(indexes))
		for n, i := range indexes {
			all[n] = kafka.Record{Key: kafka.NewBytes(records[i].key), Value: kafka.NewBytes(records[i].value), Headers: records[i].headers, Time: now}
		}
		set := protocol.RecordSet{Version: 2, Attributes: protocol.Attributes(compression), Records: protocol.NewRecordReader(all...)}
		var want bytes.Buffer
		if _, err := set.WriteTo(&want); err != nil {
			t.Fatal(err)
		}
		if compression == 0 {
			if !bytes.Equal(got, want.Bytes()) {
				t.Errorf("the batch differs from that of the client:\n%s", cmp.Diff(want.Bytes(), got))
			}
			continue
		}
		if diff := cmp.Diff(read2(t, want.Bytes()), read2(t, got)); diff != "" { // writes of other sizes compress differently
			t.Errorf("%v (-want +got):\n%s", compression, diff)
		}
	}
}

// read2 reads the records of a record set with kafka-go, which checks the CRC.
func read2(t *testing.T, set []byte) (text []string) {
	t.Helper()
	var s protocol.RecordSet
	if _, err := s.ReadFrom(bytes.NewReader(set)); err != nil {
		t.Fatal(err)
	}
	for {
		r, err := s.Records.ReadRecord()
		if err != nil {
			return text
		}
		key, value := []byte(nil), []byte(nil)
		if r.Key != nil {
			key, _ = protocol.ReadAll(r.Key)
		}
		if r.Value != nil {
			value, _ = protocol.ReadAll(r.Value)
		}
		text = append(text, fmt.Sprintf("%d %d %q %q %q", r.Offset, r.Time.UnixMilli(), key, value, r.Headers))
	}
}

// FuzzBatch: a batch of any records is read as it was written, and its size is no more than
// was reserved.
func FuzzBatch(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), "name", []byte("header"), int64(1), int16(2), int32(3))
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, id int64, epoch int16, first int32) {
		records := []record{{key: key, value: value, headers: []kafka.Header{{Key: name, Value: header}}}, {value: value}}
		b, err := encodeBatch(records, []int{0, 1}, 0, time.UnixMilli(1))
		if err != nil {
			t.Fatal(err)
		}
		if most := batchHeaderSize + records[0].size() + records[1].size(); len(b) > most || cap(b) > most {
			t.Errorf("the batch has %d bytes, its upper bound is %d", len(b), most)
		}
		set, err := io.ReadAll(b.numbered(identity{id, epoch}, first))
		if err != nil {
			t.Fatal(err)
		}
		if got := read2(t, set); len(got) != 2 || !strings.HasPrefix(got[0], "0 1 ") || !strings.Contains(got[0], fmt.Sprintf("%q %q", key, value)) {
			t.Errorf("read %s", got)
		}
		if got := int64(binary.BigEndian.Uint64(set[offsetProducer:])); got != id {
			t.Errorf("producer ID %d, want %d", got, id)
		}
	})
}
