package pebble

import (
	"sync"

	"github.com/postwire/postwire/pkg/journal"
)

// maxTailBytes bounds what the tail holds of encoded events.
const maxTailBytes = 4 << 20

// tail is the newest events on stable storage, as they were appended: a sink
// that keeps up reads neither the disk nor an encoding, however many sinks
// there are. It is consecutive; what is not in it is in the store.
type tail struct {
	mu      sync.RWMutex
	records []sized
	bytes   int
}

// sized is a record and the size of its encoding, in bytes.
type sized struct {
	journal.Record
	size int
}

// add puts records behind those that there are, and forgets the oldest.
func (t *tail) add(records []sized) {
	if len(records) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.records); n > 0 && t.records[n-1].Seq+1 != records[0].Seq {
		t.records, t.bytes = nil, 0 // what is between was stored, and its answer was lost
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
	clear(t.records[:n]) // the array lives on
	t.records = t.records[n:]
}

// read returns at most limit records from one place through another, which is
// on stable storage; none where the first is not here.
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
