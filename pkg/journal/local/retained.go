package local

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

// A retained event is open for some cursor, while all other events of its segment are done.
// So that one event does not keep a segment, and with it all later segments, the engine
// copies the event into the index before the segment is removed. The copies of one segment
// take at most a tenth of the segment, and all copies at most a tenth of journal.max_bytes;
// otherwise the segment stays.
const retainedShare = 10

// maxRetained limits the number of retained events. The engine keeps their sequences in
// memory.
const maxRetained = 100_000

// retained are the retained events. Journal.mu guards retained.
type retained struct {
	seqs  []journal.Seq // in order
	bytes uint64

	staged int // removals whose copies are staged and may not be in the index yet
}

// readRetained reads the retained events of the index.
func (st *store) readRetained() (r retained, err error) {
	for event, err := range st.retainedRecords(0) {
		if err != nil {
			return r, err
		}
		r.seqs = append(r.seqs, event.seq)
		r.bytes += uint64(len(event.value))
	}
	return r, nil
}

// retainedRecords yields the retained events from a sequence on.
func (st *store) retainedRecords(from journal.Seq) iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: retainedKey(from), UpperBound: []byte{retainedSpace + 1}})
		if err != nil {
			yield(storedRecord{}, err)
			return
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
			value, err := it.ValueAndErr()
			if !yield(storedRecord{seqOf(it.Key()), value}, err) || err != nil {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(storedRecord{}, damaged(err))
		}
	}
}

// recordsFrom yields the stored events from a sequence on: retained events, then the log
// from oldest on.
func (st *store) recordsFrom(from, oldest journal.Seq) iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		if from < oldest {
			for r, err := range st.retainedRecords(from) {
				if err == nil && r.seq >= oldest {
					break
				}
				if !yield(r, err) || err != nil {
					return
				}
			}
		}
		for r, err := range st.records(max(from, oldest)) {
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// first returns the sequence of the oldest stored event. The caller holds mu.
func (j *Journal) first() journal.Seq {
	if len(j.retained.seqs) > 0 {
		return j.retained.seqs[0]
	}
	return j.oldest
}

// doneSets calls do with the done events of each cursor that keeps its events, until do
// returns false. The caller holds mu.
func (j *Journal) doneSets(do func(*seqset.Set) bool) {
	for _, c := range j.cursors {
		c.mu.RLock()
		more := do(c.done)
		c.mu.RUnlock()
		if !more {
			return
		}
	}
	now := j.opts.Clock()
	for name, p := range j.pins {
		if now.After(p.until) {
			delete(j.pins, name)
			continue
		}
		if !do(p.done) {
			return
		}
	}
}

// isOpen reports whether an event is open for some cursor. The caller holds mu.
func (j *Journal) isOpen(s journal.Seq) (open bool) {
	j.doneSets(func(done *seqset.Set) bool {
		open = !done.Has(s)
		return !open
	})
	return open
}

// openBetween returns the events from one sequence through another that are open for some
// cursor, or false if there are more than limit. The caller holds mu.
func (j *Journal) openBetween(st *store, from, to journal.Seq, limit int) (open []journal.Seq, few bool) {
	few = true
	j.doneSets(func(done *seqset.Set) bool {
		if done.Missing(from, to) > uint64(limit) {
			few = false
			return false
		}
		for gap := range done.MissingRanges(from, to) {
			for s := gap.From; s <= gap.To; s++ {
				if s = skip(st.lost, s); s <= gap.To { // a repair has found the others lost
					open = append(open, s)
				}
			}
		}
		return true
	})
	slices.Sort(open)
	open = slices.Compact(open)
	return open, few && len(open) <= limit
}

// removable returns the sequence through which events can be removed, and the events up to
// there that are to be retained. Beyond the events that are done for every cursor these are
// whole segments with few open events.
func (j *Journal) removable(st *store) (through journal.Seq, open []journal.Seq) {
	j.mu.Lock()
	defer j.mu.Unlock()
	oldest, through := j.oldest, j.deliveredThrough()
	bytes, from := j.retained.bytes, oldest
	infos := st.segments.infos()
	for _, s := range infos[:len(infos)-1] {
		if s.events == 0 || s.last < from {
			continue
		}
		if s.last > through {
			some, few := j.openBetween(st, max(from, through+1), s.last, int(s.events)/retainedShare)
			bytes += uint64(s.end) * uint64(len(some)) / s.events
			if !few || len(j.retained.seqs)+len(open)+len(some) > maxRetained || j.opts.MaxBytes > 0 && bytes > j.opts.MaxBytes/retainedShare {
				break
			}
			open = append(open, some...)
			through = s.last
		}
		from = s.last + 1
	}
	return through, open
}

// copies reads the events that are to be retained, up to a sequence.
func (st *store) copies(open []journal.Seq, through journal.Seq) (copies []storedRecord, bytes int, err error) {
	for _, seq := range open {
		if seq > through {
			break
		}
		value, err := st.value(seq)
		if errors.Is(err, journal.ErrNotFound) {
			continue // a repair has found the event lost
		}
		if err != nil {
			return nil, 0, err
		}
		copies = append(copies, storedRecord{seq, value})
		bytes += len(value)
	}
	return copies, bytes, nil
}

// dropRetained removes the retained events that are done for every cursor.
func (j *Journal) dropRetained(ctx context.Context) error {
	j.mu.Lock()
	var drop []journal.Seq
	for _, s := range j.retained.seqs {
		if !j.isOpen(s) {
			drop = append(drop, s)
		}
	}
	j.mu.Unlock()
	if len(drop) == 0 {
		return nil
	}
	return j.do(ctx, 64*len(drop), func(g *group) error {
		j.mu.Lock()
		// A cursor may have been opened meanwhile.
		drop = slices.DeleteFunc(drop, j.isOpen)
		j.mu.Unlock()
		var freed uint64
		for _, s := range drop {
			value, err := g.get(retainedKey(s))
			if err != nil && !errors.Is(err, journal.ErrNotFound) {
				return err
			}
			freed += uint64(len(value))
			if err := g.delete(retainedKey(s)); err != nil {
				return err
			}
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.retained.bytes -= min(j.retained.bytes, freed)
		j.retained.seqs = slices.DeleteFunc(j.retained.seqs, func(s journal.Seq) bool {
			_, dropped := slices.BinarySearch(drop, s)
			return dropped
		})
		return nil
	})
}
