// Package seqset is a set of sequences that grows at its floor: the events that a cursor has
// committed. Cursors of every engine keep and store their progress with the package.
package seqset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"

	"github.com/postwire/postwire/pkg/journal"
)

// PageSize is the number of sequences of a page.
const PageSize = 8192

const words = PageSize / 64

// Set is a set of sequences: all sequences up to the floor, and pages of bits after the
// floor. A page whose sequences are all in the set takes no bits. The zero value has the
// floor 0. The methods may not be called concurrently.
type Set struct {
	floor   journal.Seq
	pages   map[uint64]*page // by sequence / PageSize
	changed map[uint64]bool  // pages that were changed or removed since the last Changed
}

// page has the sequences of a page after the floor.
type page struct {
	bits  *[words]uint64 // nil if all sequences of the page are in the set
	count int
}

// At returns a set of all sequences up to a floor.
func At(floor journal.Seq) *Set { return &Set{floor: floor} }

// Of returns a set of all sequences up to a floor, and of ranges.
func Of(floor journal.Seq, ranges []journal.Range) *Set {
	s := At(floor)
	for _, r := range ranges {
		s.Add(r.From, r.To)
	}
	return s
}

// Floor returns the greatest sequence up to which all sequences are in the set.
func (s *Set) Floor() journal.Seq { return s.floor }

// Has reports whether a sequence is in the set.
func (s *Set) Has(seq journal.Seq) bool {
	if seq <= s.floor {
		return true
	}
	p := s.pages[uint64(seq)/PageSize]
	return p != nil && p.has(uint64(seq)%PageSize)
}

func (p *page) has(i uint64) bool { return p.bits == nil || p.bits[i/64]&(1<<(i%64)) != 0 }

// Above returns the number of sequences of the set after the floor.
func (s *Set) Above() (n uint64) {
	for _, p := range s.pages {
		n += uint64(p.count)
	}
	return n
}

// Missing returns the number of sequences from one through another that are not in the
// set.
func (s *Set) Missing(from, to journal.Seq) (n uint64) {
	for from = max(from, s.floor+1); from <= to; {
		number := uint64(from) / PageSize
		end := min(to, journal.Seq(number*PageSize+PageSize-1))
		n += uint64(end-from) + 1
		if p := s.pages[number]; p != nil {
			n -= uint64(p.within(uint64(from)%PageSize, uint64(end)%PageSize))
		}
		from = end + 1
	}
	return n
}

// within counts the sequences of a page from one index through another.
func (p *page) within(from, to uint64) (n int) {
	if p.bits == nil {
		return int(to - from + 1)
	}
	for w := from / 64; w <= to/64; w++ {
		n += bits.OnesCount64(p.bits[w] & mask(w, from, to))
	}
	return n
}

// mask returns the bits of word w for the indexes from one through another.
func mask(w, from, to uint64) uint64 {
	m := ^uint64(0)
	if w == from/64 {
		m &= ^uint64(0) << (from % 64)
	}
	if w == to/64 {
		m &= ^uint64(0) >> (63 - to%64)
	}
	return m
}

// Add adds the sequences from one through another.
func (s *Set) Add(from, to journal.Seq) {
	from = max(from, s.floor+1)
	if from > to {
		return
	}
	if from == s.floor+1 {
		s.raise(to)
		return
	}
	for from <= to {
		number := uint64(from) / PageSize
		end := min(to, journal.Seq(number*PageSize+PageSize-1))
		s.add(number, uint64(from)%PageSize, uint64(end)%PageSize)
		from = end + 1
	}
}

func (s *Set) add(number, from, to uint64) {
	p := s.pages[number]
	if p == nil {
		if s.pages == nil {
			s.pages = map[uint64]*page{}
		}
		p = &page{bits: new([words]uint64)}
		s.pages[number] = p
	}
	if p.bits == nil {
		return
	}
	for w := from / 64; w <= to/64; w++ {
		more := mask(w, from, to) &^ p.bits[w]
		p.bits[w] |= more
		p.count += bits.OnesCount64(more)
	}
	if p.count == PageSize {
		p.bits = nil
	}
	s.change(number)
}

func (s *Set) change(number uint64) {
	if s.changed == nil {
		s.changed = map[uint64]bool{}
	}
	s.changed[number] = true
}

// raise moves the floor to a sequence, and on through the sequences of the set that follow.
func (s *Set) raise(to journal.Seq) {
	first := uint64(s.floor+1) / PageSize
	s.floor = to
	if len(s.pages) == 0 {
		return
	}
	for {
		next := uint64(s.floor + 1)
		p := s.pages[next/PageSize]
		if p == nil || !p.has(next%PageSize) {
			break
		}
		if p.bits == nil {
			s.floor = journal.Seq((next/PageSize+1)*PageSize - 1)
			continue
		}
		i := next % PageSize
		run := bits.TrailingZeros64(^(p.bits[i/64] >> (i % 64)))
		s.floor += journal.Seq(min(uint64(run), 64-i%64))
	}
	current := uint64(s.floor+1) / PageSize
	drop := func(number uint64) {
		if s.pages[number] != nil {
			delete(s.pages, number)
			s.change(number)
		}
	}
	if current-first < uint64(len(s.pages)) {
		for number := first; number < current; number++ {
			drop(number)
		}
	} else {
		for number := range s.pages {
			if number < current {
				drop(number)
			}
		}
	}
	// The page of the floor keeps only what is after the floor.
	p := s.pages[current]
	if p == nil || p.bits == nil {
		return
	}
	if at := uint64(s.floor+1) % PageSize; at > 0 {
		for w := uint64(0); w <= (at-1)/64; w++ {
			gone := p.bits[w] & mask(w, 0, at-1)
			p.bits[w] &^= gone
			p.count -= bits.OnesCount64(gone)
		}
	}
	if p.count == 0 {
		drop(current)
	}
}

// Ranges yields the runs of sequences after the floor, in order.
func (s *Set) Ranges() iter.Seq[journal.Range] {
	return func(yield func(journal.Range) bool) {
		var run journal.Range
		for _, number := range slices.Sorted(maps.Keys(s.pages)) {
			p, base := s.pages[number], journal.Seq(number*PageSize)
			for i := uint64(0); i < PageSize; {
				var n uint64
				switch {
				case p.bits == nil:
					n = PageSize
				case p.bits[i/64]>>(i%64) == 0:
					i = (i/64 + 1) * 64
					continue
				default:
					i += uint64(bits.TrailingZeros64(p.bits[i/64] >> (i % 64)))
					n = 1
					for i+n < PageSize && p.has(i+n) {
						n++
					}
				}
				from, to := base+journal.Seq(i), base+journal.Seq(i+n-1)
				switch {
				case run.To != 0 && run.To+1 == from:
					run.To = to
				case run.To != 0 && !yield(run):
					return
				default:
					run = journal.Range{From: from, To: to}
				}
				i += n
			}
		}
		if run.To != 0 {
			yield(run)
		}
	}
}

// MissingRanges yields the runs of sequences from one through another that are not in the set, in
// order.
func (s *Set) MissingRanges(from, to journal.Seq) iter.Seq[journal.Range] {
	return func(yield func(journal.Range) bool) {
		var gap journal.Range
		for at := max(from, s.floor+1); at <= to; {
			number := uint64(at) / PageSize
			end := min(to, journal.Seq(number*PageSize+PageSize-1))
			p := s.pages[number]
			if p == nil || p.bits != nil {
				for ; at <= end; at++ {
					if p != nil && p.has(uint64(at)%PageSize) {
						continue
					}
					if gap.To != 0 && gap.To+1 == at {
						gap.To = at
						continue
					}
					if gap.To != 0 && !yield(gap) {
						return
					}
					gap = journal.Range{From: at, To: at}
				}
			}
			at = end + 1
		}
		if gap.To != 0 {
			yield(gap)
		}
	}
}

// Clone returns a copy of the set without its changes.
func (s *Set) Clone() *Set {
	c := &Set{floor: s.floor, pages: map[uint64]*page{}}
	for number, p := range s.pages {
		q := &page{count: p.count}
		if p.bits != nil {
			bits := *p.bits
			q.bits = &bits
		}
		c.pages[number] = q
	}
	return c
}

// Changed returns the numbers of the pages that were changed or removed since the last call.
func (s *Set) Changed() []uint64 {
	numbers := slices.Sorted(maps.Keys(s.changed))
	s.changed = nil
	return numbers
}

// Change marks pages as changed, because they could not be stored.
func (s *Set) Change(numbers []uint64) {
	for _, number := range numbers {
		s.change(number)
	}
}

// A page is encoded as a byte of its form, then for runs the varints of alternating numbers
// of sequences that are not in the set and that are, or the words of its bits.
const (
	formRuns = 1
	formBits = 2
)

// Page returns the encoding of a page, or nil if the set has no sequence of the page after
// the floor.
func (s *Set) Page(number uint64) []byte {
	p := s.pages[number]
	if p == nil {
		return nil
	}
	b := []byte{formRuns}
	for i, in := uint64(0), false; i < PageSize; in = !in {
		n := uint64(0)
		for i+n < PageSize && p.has(i+n) == in {
			n++
		}
		b = binary.AppendUvarint(b, n)
		i += n
		if len(b) > words*8 {
			b = []byte{formBits}
			for _, w := range p.bits {
				b = binary.LittleEndian.AppendUint64(b, w)
			}
			return b
		}
	}
	return b
}

var errPage = errors.New("the page of a cursor is malformed")

// Load adds an encoded page. The page does not count as changed.
func (s *Set) Load(number uint64, b []byte) error {
	if len(b) == 0 {
		return errPage
	}
	form, b := b[0], b[1:]
	add := func(from, to uint64) { s.Add(journal.Seq(number*PageSize+from), journal.Seq(number*PageSize+to)) }
	was := s.changed[number]
	switch {
	case form == formRuns:
		for i, in := uint64(0), false; i < PageSize; in = !in {
			n, size := binary.Uvarint(b)
			if size <= 0 || n > PageSize-i || n == 0 && i > 0 {
				return errPage
			}
			if in {
				add(i, i+n-1)
			}
			i, b = i+n, b[size:]
		}
		if len(b) > 0 {
			return errPage
		}
	case form == formBits && len(b) == words*8:
		for w := range uint64(words) {
			v := binary.LittleEndian.Uint64(b[w*8:])
			for v != 0 {
				at := uint64(bits.TrailingZeros64(v))
				run := uint64(bits.TrailingZeros64(^(v >> at)))
				run = min(run, 64-at)
				add(w*64+at, w*64+at+run-1)
				v &^= mask(w, w*64+at, w*64+at+run-1)
			}
		}
	default:
		return fmt.Errorf("%w: form %d, %d bytes", errPage, form, len(b))
	}
	if !was {
		delete(s.changed, number)
	}
	return nil
}
