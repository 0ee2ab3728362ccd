package transfer

import (
	"encoding/binary"
	"slices"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// seqMap maps places of the source to places of the target. Both grow, so that
// the differences to the place before are kept, in two or three bytes an event.
type seqMap struct {
	rows []row

	open  int // the row that is spread out, plus one
	pairs []seqPair
}

// row is one page of events.
type row struct {
	first, last seqPair // of its items
	encoded     []byte
}

type seqPair struct{ src, dst journal.Seq }

// A row is how many items there are, and then of each how much further it stands
// than the one before, in both journals.
func encodeRow(items []Item, now []journal.Seq) []byte {
	b := binary.AppendUvarint(nil, uint64(len(items)))
	var before seqPair
	for n, i := range items {
		b = binary.AppendUvarint(b, uint64(i.SourceSeq-before.src))
		b = binary.AppendUvarint(b, uint64(now[n]-before.dst))
		before = seqPair{i.SourceSeq, now[n]}
	}
	return b
}

func decodeRow(b []byte) ([]seqPair, error) {
	r := &record.Reader{B: b}
	var pairs []seqPair
	var at seqPair
	for range r.Uvarint() {
		at.src += journal.Seq(r.Uvarint())
		at.dst += journal.Seq(r.Uvarint())
		if r.Err != nil {
			return nil, r.Err
		}
		pairs = append(pairs, at)
	}
	return pairs, r.Err
}

// read adds a row behind all others.
func (p *seqMap) read(b []byte) error {
	pairs, err := decodeRow(b)
	if err != nil || len(pairs) == 0 {
		return err
	}
	p.rows = append(p.rows, row{pairs[0], pairs[len(pairs)-1], b})
	return nil
}

// last is the newest place of the source that has one in the target.
func (p *seqMap) last() journal.Seq {
	if len(p.rows) == 0 {
		return 0
	}
	return p.rows[len(p.rows)-1].last.src
}

// find returns the last item that stands at old or before it.
func (p *seqMap) find(old journal.Seq) (seqPair, bool) {
	n, exact := slices.BinarySearchFunc(p.rows, old, func(r row, old journal.Seq) int {
		switch {
		case r.first.src < old:
			return -1
		case r.first.src > old:
			return 1
		}
		return 0
	})
	if exact {
		return p.rows[n].first, true
	}
	if n--; n < 0 {
		return seqPair{}, false
	}
	if old >= p.rows[n].last.src {
		return p.rows[n].last, true
	}
	if p.open != n+1 {
		p.open = n + 1
		p.pairs, _ = decodeRow(p.rows[n].encoded) // it was, in read
	}
	at, exact := slices.BinarySearchFunc(p.pairs, old, func(s seqPair, old journal.Seq) int {
		switch {
		case s.src < old:
			return -1
		case s.src > old:
			return 1
		}
		return 0
	})
	if !exact {
		at--
	}
	return p.pairs[at], true
}

// exact returns the place of the very event, if it has one.
func (p *seqMap) exact(old journal.Seq) (journal.Seq, bool) {
	s, ok := p.find(old)
	if !ok || s.src != old {
		return 0, false
	}
	return s.dst, true
}

// floor returns a place behind all events that stood at old or before it, and
// before all others: that of the last one, where there is one.
func (p *seqMap) floor(old journal.Seq) journal.Seq {
	if s, ok := p.find(old); ok {
		return s.dst
	}
	if len(p.rows) == 0 {
		return 0
	}
	return p.rows[0].first.dst - 1
}

// ceil returns the place of the first event that stood at old or behind it, or
// the one behind the last.
func (p *seqMap) ceil(old journal.Seq) journal.Seq {
	if old == 0 {
		old = 1
	}
	if now, ok := p.exact(old); ok {
		return now
	}
	return p.floor(old-1) + 1
}
