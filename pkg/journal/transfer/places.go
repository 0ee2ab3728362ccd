package transfer

import (
	"encoding/binary"
	"slices"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// places maps places of the source to places of the target. Both grow, so that
// the differences to the place before are kept, in two or three bytes an event.
type places struct {
	rows []row

	open  int // the row that is spread out, plus one
	spots []spot
}

// row is one page of events.
type row struct {
	first, last spot // of its items
	encoded     []byte
}

type spot struct{ old, now journal.Seq }

// A row is how many items there are, and then of each how much further it stands
// than the one before, in both journals.
func encodeRow(items []Item, now []journal.Seq) []byte {
	b := binary.AppendUvarint(nil, uint64(len(items)))
	var before spot
	for n, i := range items {
		b = binary.AppendUvarint(b, uint64(i.Old-before.old))
		b = binary.AppendUvarint(b, uint64(now[n]-before.now))
		before = spot{i.Old, now[n]}
	}
	return b
}

func decodeRow(b []byte) ([]spot, error) {
	r := &record.Reader{B: b}
	var spots []spot
	var at spot
	for range r.Uvarint() {
		at.old += journal.Seq(r.Uvarint())
		at.now += journal.Seq(r.Uvarint())
		if r.Err != nil {
			return nil, r.Err
		}
		spots = append(spots, at)
	}
	return spots, r.Err
}

// read adds a row behind all others.
func (p *places) read(b []byte) error {
	spots, err := decodeRow(b)
	if err != nil || len(spots) == 0 {
		return err
	}
	p.rows = append(p.rows, row{spots[0], spots[len(spots)-1], b})
	return nil
}

// last is the newest place of the source that has one in the target.
func (p *places) last() journal.Seq {
	if len(p.rows) == 0 {
		return 0
	}
	return p.rows[len(p.rows)-1].last.old
}

// find returns the last item that stands at old or before it.
func (p *places) find(old journal.Seq) (spot, bool) {
	n, exact := slices.BinarySearchFunc(p.rows, old, func(r row, old journal.Seq) int {
		switch {
		case r.first.old < old:
			return -1
		case r.first.old > old:
			return 1
		}
		return 0
	})
	if exact {
		return p.rows[n].first, true
	}
	if n--; n < 0 {
		return spot{}, false
	}
	if old >= p.rows[n].last.old {
		return p.rows[n].last, true
	}
	if p.open != n+1 {
		p.open = n + 1
		p.spots, _ = decodeRow(p.rows[n].encoded) // it was, in read
	}
	at, exact := slices.BinarySearchFunc(p.spots, old, func(s spot, old journal.Seq) int {
		switch {
		case s.old < old:
			return -1
		case s.old > old:
			return 1
		}
		return 0
	})
	if !exact {
		at--
	}
	return p.spots[at], true
}

// exact returns the place of the very event, if it has one.
func (p *places) exact(old journal.Seq) (journal.Seq, bool) {
	s, ok := p.find(old)
	if !ok || s.old != old {
		return 0, false
	}
	return s.now, true
}

// floor returns a place behind all events that stood at old or before it, and
// before all others: that of the last one, where there is one.
func (p *places) floor(old journal.Seq) journal.Seq {
	if s, ok := p.find(old); ok {
		return s.now
	}
	if len(p.rows) == 0 {
		return 0
	}
	return p.rows[0].first.now - 1
}

// ceil returns the place of the first event that stood at old or behind it, or
// the one behind the last.
func (p *places) ceil(old journal.Seq) journal.Seq {
	if old == 0 {
		old = 1
	}
	if now, ok := p.exact(old); ok {
		return now
	}
	return p.floor(old-1) + 1
}
