package local

import (
	"sync"

	"github.com/postwire/postwire/pkg/journal"
)

// maxTailBytes limits the encoded size of the tail.
const maxTailBytes = 4 << 20

// tail holds the newest events on stable storage, decoded: a sink without lag needs neither
// a disk read nor decoding. The events are consecutive; older events are in the store.
type tail struct {
	mu      sync.RWMutex
	records []sized
	bytes   int
}

// sized is a record with its encoded size in bytes.
type sized struct {
	journal.Record
	size int
}

// add appends records and drops the oldest.
func (t *tail) add(records []sized) {
	if len(records) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.records); n > 0 && t.records[n-1].Seq+1 != records[0].Seq {
		t.records, t.bytes = nil, 0 // events in between are stored, and their result was lost
	}
	t.records = append(t.records, records...)
	for _, r := range records {
		t.bytes += r.size
	}
	n := 0
	for t.bytes > maxTailBytes && n < len(t.records)-1 {
		t.bytes -= t.records[n].size
		n++
	}
	clear(t.records[:n]) // the array is reused
	t.records = t.records[n:]
}

// read returns up to limit records of a range on stable storage; none if the first is not
// in the tail.
func (t *tail) read(from, through journal.Seq, limit int) []journal.Record {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.records) == 0 || from < t.records[0].Seq {
		return nil
	}
	nth := uint64(from - t.records[0].Seq)
	if nth >= uint64(len(t.records)) {
		return nil
	}
	rest := t.records[nth:]
	records := make([]journal.Record, 0, min(len(rest), max(limit, 1)))
	for _, r := range rest[:cap(records)] {
		if r.Seq > through {
			break
		}
		records = append(records, r.Record)
	}
	return records
}
