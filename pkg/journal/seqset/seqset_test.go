package seqset

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/journal"
)

// model is the simplest set of sequences.
type model map[journal.Seq]bool

func (m model) floor() (s journal.Seq) {
	for m[s+1] {
		s++
	}
	return s
}

func (m model) ranges(end journal.Seq) (all []journal.Range) {
	for s := m.floor() + 1; s <= end; s++ {
		switch n := len(all); {
		case !m[s]:
		case n > 0 && all[n-1].To+1 == s:
			all[n-1].To = s
		default:
			all = append(all, journal.Range{From: s, To: s})
		}
	}
	return all
}

// TestAgainstModel compares random sets with the simplest one, and with what is stored of
// them after each change.
func TestAgainstModel(t *testing.T) {
	const end = 4 * PageSize
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 2))
		s, m := At(0), model{}
		stored := map[uint64][]byte{}
		for range 40 {
			from := journal.Seq(1 + random.IntN(end))
			if random.IntN(4) == 0 {
				from = s.Floor() + 1
			}
			to := min(from+journal.Seq(random.IntN(1+random.IntN(PageSize*3/2))), end)
			s.Add(from, to)
			for q := from; q <= to; q++ {
				m[q] = true
			}
			for _, number := range s.Changed() {
				if page := s.Page(number); page == nil {
					delete(stored, number)
				} else {
					stored[number] = page
				}
			}
		}
		loaded := At(s.Floor())
		for number, page := range stored {
			if err := loaded.Load(number, page); err != nil {
				t.Fatal(err)
			}
		}
		if changed := loaded.Changed(); len(changed) > 0 {
			t.Errorf("seed %d: loading changes %v", seed, changed)
		}
		for name, set := range map[string]*Set{"set": s, "loaded set": loaded, "clone": s.Clone()} {
			if set.Floor() != m.floor() {
				t.Fatalf("seed %d: the floor of the %s is %d, want %d", seed, name, set.Floor(), m.floor())
			}
			want := m.ranges(end)
			if diff := cmp.Diff(want, slices.Collect(set.Ranges())); diff != "" {
				t.Fatalf("seed %d: ranges of the %s (-want +got):\n%s", seed, name, diff)
			}
			above := uint64(0)
			for _, r := range want {
				above += uint64(r.To-r.From) + 1
			}
			if set.Above() != above {
				t.Errorf("seed %d: the %s has %d sequences after the floor, want %d", seed, name, set.Above(), above)
			}
			for range 20 {
				from := journal.Seq(1 + random.IntN(end))
				to := from + journal.Seq(random.IntN(2*PageSize))
				missing, inGaps := uint64(0), uint64(0)
				for q := from; q <= to; q++ {
					if set.Has(q) != m[q] {
						t.Fatalf("seed %d: the %s has %d: %v", seed, name, q, set.Has(q))
					}
					if !m[q] {
						missing++
					}
				}
				for gap := range set.MissingRanges(from, to) {
					inGaps += uint64(gap.To-gap.From) + 1
					if m[gap.From] || m[gap.To] || gap.From > from && !m[gap.From-1] || gap.To < to && !m[gap.To+1] {
						t.Errorf("seed %d: a gap of the %s is %v", seed, name, gap)
					}
				}
				if set.Missing(from, to) != missing || inGaps != missing {
					t.Errorf("seed %d: from %d to %d the %s misses %d, %d in gaps, want %d", seed, from, to, name, set.Missing(from, to), inGaps, missing)
				}
			}
		}
	}
}

// TestFullPageTakesNoBits: a million done events behind an open one take no memory.
func TestFullPageTakesNoBits(t *testing.T) {
	s := At(10)
	s.Add(12, 1_000_000)
	bits := 0
	for _, p := range s.pages {
		if p.bits != nil {
			bits++
		}
	}
	if bits > 2 || len(s.Page(5)) > 4 {
		t.Errorf("%d pages have bits, a full page is stored in %d bytes", bits, len(s.Page(5)))
	}
	s.Add(11, 11)
	if s.Floor() != 1_000_000 || len(s.pages) != 0 {
		t.Errorf("the floor is %d, with %d pages", s.Floor(), len(s.pages))
	}
}

// FuzzPage loads any bytes as a page: the page is refused, or equals its own encoding.
func FuzzPage(f *testing.F) {
	s := At(0)
	s.Add(3, 9)
	s.Add(100, 5000)
	f.Add(s.Page(0))
	for q := journal.Seq(2); q < PageSize; q += 2 {
		s.Add(q, q)
	}
	f.Add(s.Page(0))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := At(0)
		if err := s.Load(1, b); err != nil {
			return
		}
		again := At(0)
		if page := s.Page(1); page != nil {
			if err := again.Load(1, page); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(slices.Collect(s.Ranges()), slices.Collect(again.Ranges())); diff != "" {
			t.Errorf("its own encoding (-want +got):\n%s", diff)
		}
	})
}
