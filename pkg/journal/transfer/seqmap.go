package transfer

import (
	"encoding/binary"
	"slices"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// seqMap maps sequences of the source to sequences of the target. It stores differences, in
// two or three bytes per event.
type seqMap struct {
	rows []row

	open  int // index of the decoded row, plus one
	pairs []seqPair
}

// row is a page of events.
type row struct {
	first, last seqPair // of its items
	encoded     []byte
}

type seqPair struct{ src, dst journal.Seq }

// An encoded row is the number of items, and for each item the differences of its two
// sequences to the previous item.
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

// read appends a row.
func (p *seqMap) read(b []byte) error {
	pairs, err := decodeRow(b)
	if err != nil || len(pairs) == 0 {
		return err
	}
	p.rows = append(p.rows, row{pairs[0], pairs[len(pairs)-1], b})
	return nil
}

// last returns the newest mapped sequence of the source.
func (p *seqMap) last() journal.Seq {
	if len(p.rows) == 0 {
		return 0
	}
	return p.rows[len(p.rows)-1].last.src
}

// find returns the last item whose source sequence is at most old.
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
		p.pairs, _ = decodeRow(p.rows[n].encoded) // read has decoded the row without error
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

// exact returns the target sequence of an event, if mapped.
func (p *seqMap) exact(old journal.Seq) (journal.Seq, bool) {
	s, ok := p.find(old)
	if !ok || s.src != old {
		return 0, false
	}
	return s.dst, true
}

// floor returns the target sequence of the last event whose source sequence is at most old,
// or a sequence before all events.
func (p *seqMap) floor(old journal.Seq) journal.Seq {
	if s, ok := p.find(old); ok {
		return s.dst
	}
	if len(p.rows) == 0 {
		return 0
	}
	return p.rows[0].first.dst - 1
}

// ceil returns the target sequence of the first event whose source sequence is at least old,
// or the sequence after the last event.
func (p *seqMap) ceil(old journal.Seq) journal.Seq {
	if old == 0 {
		old = 1
	}
	if now, ok := p.exact(old); ok {
		return now
	}
	return p.floor(old-1) + 1
}
