package local

import (
	"testing"

	"github.com/postwire/postwire/pkg/journal"
)

// recordsAt makes records of a size at the places from one through another.
func recordsAt(from, through journal.Seq, size int) (records []sized) {
	for s := from; s <= through; s++ {
		records = append(records, sized{journal.Record{Seq: s}, size})
	}
	return records
}

func TestTail(t *testing.T) {
	const quarter = maxTailBytes / 4
	for _, tt := range []struct {
		name          string
		adds          [][]sized
		from, through journal.Seq
		limit         int
		first         journal.Seq // 0 is none
		count         int
	}{
		{"nothing", nil, 1, 9, 10, 0, 0},
		{"all of it", [][]sized{recordsAt(1, 3, 1)}, 1, 3, 10, 1, 3},
		{"from within", [][]sized{recordsAt(1, 3, 1), recordsAt(4, 6, 1)}, 3, 6, 10, 3, 4},
		{"at most as many as asked for", [][]sized{recordsAt(1, 9, 1)}, 2, 9, 3, 2, 3},
		{"at least one", [][]sized{recordsAt(1, 9, 1)}, 2, 9, 0, 2, 1},
		{"nothing that is not durable yet", [][]sized{recordsAt(1, 9, 1)}, 5, 6, 10, 5, 2},
		{"before the first", [][]sized{recordsAt(5, 9, 1)}, 4, 9, 10, 0, 0},
		{"behind the last", [][]sized{recordsAt(5, 9, 1)}, 10, 10, 10, 0, 0},
		{"the oldest make room", [][]sized{recordsAt(1, 4, quarter), recordsAt(5, 6, quarter)}, 2, 6, 10, 0, 0},
		{"the newest stay", [][]sized{recordsAt(1, 4, quarter), recordsAt(5, 6, quarter)}, 3, 6, 10, 3, 4},
		{"one that is too large stays alone", [][]sized{recordsAt(1, 2, 1), recordsAt(3, 3, 2*maxTailBytes)}, 3, 3, 10, 3, 1},
		{"a gap begins anew", [][]sized{recordsAt(1, 3, 1), recordsAt(5, 6, 1)}, 3, 6, 10, 0, 0},
		{"behind a gap", [][]sized{recordsAt(1, 3, 1), recordsAt(5, 6, 1)}, 5, 6, 10, 5, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tail tail
			for _, records := range tt.adds {
				tail.add(records)
			}
			got := tail.read(tt.from, tt.through, tt.limit)
			if len(got) != tt.count || tt.count > 0 && got[0].Seq != tt.first {
				t.Errorf("read %d records %v, want %d from %d", len(got), got, tt.count, tt.first)
			}
			if len(tail.records) > 1 && tail.bytes > maxTailBytes {
				t.Errorf("holds %d bytes", tail.bytes)
			}
		})
	}
}
