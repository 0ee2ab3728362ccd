package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// expire removes expired data periodically until Close.
func (j *Journal) expire() {
	tick := time.NewTicker(j.opts.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := j.Expire(j.life); err != nil && j.life.Err() == nil {
				j.log.Warn("removing old events failed, it will be tried again", zap.Error(err))
			}
		case <-j.stop:
			return
		}
	}
}

// Expire removes the events that are older than the retention and that every open cursor
// has passed, the quarantined requests whose last receipt is older than the retention, and
// the identity keys outside the window. Removed events cannot be read any more; their disk
// space is free when a whole segment is removed. The engine calls Expire periodically.
//
// The cursor of a removed sink is not open and keeps no events. A sink that is configured
// again begins at the oldest stored event.
func (j *Journal) Expire(ctx context.Context) error {
	cutoff := j.opts.Clock().Add(-j.opts.Retention)
	if err := j.expireQuarantine(ctx, cutoff); err != nil {
		return err
	}
	_, err := j.remove(ctx, func(st *store, oldest, delivered journal.Seq) (journal.Seq, error) {
		return st.before(cutoff, oldest, delivered)
	})
	if err == nil {
		err = j.dropRetained(ctx)
	}
	if err != nil {
		return err
	}
	return j.removeSegments(ctx, true)
}

// trim removes segments within the retention whose events every open cursor has passed,
// oldest first, until excess bytes are free.
func (j *Journal) trim(ctx context.Context, excess uint64) error {
	var first journal.Seq
	removed, err := j.remove(ctx, func(st *store, oldest, delivered journal.Seq) (journal.Seq, error) {
		first = oldest
		through := oldest - 1
		var bytes uint64
		infos := st.segments.infos()
		for _, s := range infos[:len(infos)-1] {
			if s.last > delivered || bytes >= excess {
				break
			}
			through = max(through, s.last)
			bytes += uint64(s.end)
		}
		return through, nil
	})
	if err != nil {
		return err
	}
	if removed > 0 {
		j.trimmed.Add(removed)
		j.log.Warn("the journal is nearly full: events that every sink has passed were removed before their retention",
			zap.Uint64("events", removed), zap.Uint64("from", uint64(first)), zap.Duration("retention", j.opts.Retention),
			zap.Uint64("max_bytes", j.opts.MaxBytes))
	}
	return j.removeSegments(ctx, false)
}

// remove removes the oldest events through the sequence that choose returns, and returns
// their number. Events that are open for a cursor stay, as retained events. The log keeps the
// removed events until removeSegments.
func (j *Journal) remove(ctx context.Context, choose func(st *store, oldest, delivered journal.Seq) (journal.Seq, error)) (removed uint64, err error) {
	var through journal.Seq
	var copies []storedRecord
	size := 0
	var staged atomic.Bool // the committer may write it after remove has returned
	j.mu.Lock()
	oldest := j.oldest
	j.mu.Unlock()
	err = j.read(ctx, func(st *store) (err error) {
		delivered, open := j.removable(st)
		if through, err = choose(st, oldest, delivered); err != nil {
			return err
		}
		copies, size, err = st.copies(open, through)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if staged.Load() {
			j.retained.staged = max(0, j.retained.staged-1)
		}
	}()
	err = j.do(ctx, 64+size, func(g *group) error {
		if err := g.st.window.expire(g); err != nil {
			return err
		}
		if through < oldest {
			return nil // nothing to remove
		}
		if !j.advance(g.st, oldest, through+1, copies) {
			return nil
		}
		staged.Store(true)
		for _, c := range copies {
			if err := g.set(retainedKey(c.seq), c.value); err != nil {
				return err
			}
		}
		removed = uint64(through+1-oldest) - uint64(len(copies))
		// The newest event may be removed; store its sequence, so that it is not assigned
		// again.
		last := binary.BigEndian.AppendUint64(nil, uint64(g.last))
		first := binary.BigEndian.AppendUint64(nil, uint64(through+1))
		for _, l := range g.st.lost {
			if l.To <= through {
				if err := g.delete(lostKey(l.From)); err != nil {
					return err
				}
			}
		}
		return errors.Join(
			g.set(metaFirstKey(), first),
			g.set(metaLastKey(), last),
			g.removeDispositions(through),
		)
	})
	if err != nil {
		return 0, err // the committer may still write removed
	}
	return removed, nil
}

// advance moves the oldest sequence, unless it has moved meanwhile, or a cursor was opened
// that needs events that are not retained.
func (j *Journal) advance(st *store, from, to journal.Seq, copies []storedRecord) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.oldest != from {
		return false
	}
	if at := j.deliveredThrough(); at < to-1 {
		open, few := j.openBetween(st, max(from, at+1), to-1, len(copies))
		if !few || slices.ContainsFunc(open, func(s journal.Seq) bool {
			_, found := slices.BinarySearchFunc(copies, s, func(c storedRecord, s journal.Seq) int { return cmp.Compare(c.seq, s) })
			return !found
		}) {
			return false
		}
	}
	j.oldest = to
	j.retained.staged++
	for _, c := range copies {
		j.retained.seqs = append(j.retained.seqs, c.seq)
		j.retained.bytes += uint64(len(c.value))
	}
	return true
}

// removeSegments removes the oldest segments if all of their events are removed. With whole,
// it ends a written segment whose events are removed, so that it can be removed, too.
func (j *Journal) removeSegments(ctx context.Context, whole bool) error {
	if whole {
		if err := j.endRemoved(ctx); err != nil {
			return err
		}
	}
	var through uint32
	var opened *store
	err := j.read(ctx, func(st *store) error {
		opened, through = st, 0
		oldest := j.removedBefore()
		infos := st.segments.infos()
		for _, s := range infos[:len(infos)-1] {
			if s.events > 0 && s.last >= oldest {
				break
			}
			through = s.number
		}
		if through < st.flushed.Load() {
			return nil
		}
		// The segments have the last changes of the index.
		at, _, err := st.logPosition()
		if err != nil {
			return err
		}
		if err := st.db.Flush(); err != nil {
			return fmt.Errorf("writing the index: %w", err)
		}
		if err := st.guard.failure(); err != nil {
			return err
		}
		st.flushed.Store(max(st.flushed.Load(), at.number))
		through = min(through, at.number-1)
		return nil
	})
	if err != nil || through == 0 {
		return err
	}
	err = j.do(ctx, 64, func(g *group) error {
		if g.st != opened { // the oldest sequence may not have been stored
			return nil
		}
		end := journal.Seq(0)
		for _, s := range g.st.segments.infos() {
			if s.number > through {
				break
			}
			end = max(end, s.last)
			if err := g.delete(segmentKey(s.number)); err != nil {
				return err
			}
		}
		return g.deleteRange(eventKey(0), eventKey(end+1))
	})
	if err != nil {
		return err
	}
	return j.read(ctx, func(st *store) error {
		if st != opened {
			return nil
		}
		return st.segments.remove(through)
	})
}

// endRemoved ends the written segment if all of its events are removed.
func (j *Journal) endRemoved(ctx context.Context) error {
	ends := false
	err := j.read(ctx, func(st *store) error {
		infos := st.segments.infos()
		s := infos[len(infos)-1]
		ends = s.events > 0 && s.last < j.removedBefore()
		return nil
	})
	if err != nil || !ends {
		return err
	}
	return j.do(ctx, 64, func(g *group) error {
		g.st.rotate.Store(true)
		return g.set(metaLastKey(), binary.BigEndian.AppendUint64(nil, uint64(g.last)))
	})
}

// removeDispositions removes the dispositions of removed events.
func (g *group) removeDispositions(through journal.Seq) (err error) {
	it, err := g.iterate([]byte{dispositionSpace}, []byte{dispositionSpace + 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; {
		id, err := sinkOf(it.Key())
		if err != nil {
			return err
		}
		// The last range may extend beyond through.
		first := sinkKey(dispositionSpace, id)
		if !it.SeekLT(append(sinkKey(dispositionSpace, journal.DeliveryID{Sink: id.Sink, Seq: through}), 0)) || bytes.Compare(it.Key(), first) < 0 {
			ok = it.SeekGE(after(sinkPrefix(dispositionSpace, id.Sink)))
			continue
		}
		var u journal.Disposition
		if err := json.Unmarshal(it.Value(), &u); err != nil {
			return err
		}
		end := it.Key()
		if u.To <= through {
			end = append(slices.Clone(end), 0)
		}
		if err := g.deleteRange(first, end); err != nil {
			return err
		}
		ok = it.SeekGE(after(sinkPrefix(dispositionSpace, id.Sink)))
	}
	return it.Error()
}
