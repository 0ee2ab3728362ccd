package pebble

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
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
// the identity keys outside the window. The cost for events and keys is a binary search and
// two range deletions. The engine calls Expire periodically.
//
// The cursor of a removed sink is not open and keeps no events. A sink that is configured
// again begins at the oldest stored event.
func (j *Journal) Expire(ctx context.Context) error {
	cutoff := j.opts.Clock().Add(-j.opts.Retention)
	if err := j.expireQuarantine(ctx, cutoff); err != nil {
		return err
	}
	_, err := j.remove(ctx, func(st *store, oldest, passed journal.Seq) (journal.Seq, error) {
		return st.before(cutoff, oldest, passed)
	})
	return err
}

// trim removes events within their retention that every open cursor has passed, oldest
// first, to make room for new events.
func (j *Journal) trim(ctx context.Context, excess uint64) error {
	var first journal.Seq
	removed, err := j.remove(ctx, func(st *store, oldest, committed journal.Seq) (journal.Seq, error) {
		if first = oldest; committed < oldest {
			return committed, nil
		}
		return st.weighing(excess, oldest, committed)
	})
	if err != nil || removed == 0 {
		return err
	}
	j.trimmed.Add(removed)
	j.log.Warn("the journal is nearly full: events that every sink has passed were removed before their retention",
		zap.Uint64("events", removed), zap.Uint64("from", uint64(first)), zap.Duration("retention", j.opts.Retention),
		zap.Uint64("max_bytes", j.opts.MaxBytes))
	// Removed data takes space until its files are rewritten.
	return j.read(ctx, func(st *store) error {
		return st.db.Compact(ctx, eventKey(first), eventKey(first+journal.Seq(removed)), false)
	})
}

// remove removes the oldest events through the sequence that choose returns, at most to the
// lowest open cursor, and returns their number.
func (j *Journal) remove(ctx context.Context, choose func(st *store, oldest, committed journal.Seq) (journal.Seq, error)) (removed uint64, err error) {
	var through journal.Seq
	j.mu.Lock()
	oldest, committed := j.oldest, j.durable
	for _, c := range j.cursors {
		committed = min(committed, c.Committed())
	}
	j.mu.Unlock()
	err = j.read(ctx, func(st *store) (err error) {
		through, err = choose(st, oldest, committed)
		return err
	})
	if err != nil {
		return 0, err
	}
	err = j.do(ctx, 64, func(g *group) error {
		if err := g.st.window.expire(g.batch, g.now); err != nil {
			return err
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.oldest != oldest || through < oldest {
			return nil // nothing to remove
		}
		j.oldest = through + 1
		removed = uint64(through + 1 - oldest)
		// The newest event may be removed; store its sequence, so that it is not assigned
		// again.
		last := binary.BigEndian.AppendUint64(nil, uint64(g.last))
		first := binary.BigEndian.AppendUint64(nil, uint64(through+1))
		for _, l := range g.st.lost {
			if l.To <= through {
				if err := g.batch.Delete(lostKey(l.From), nil); err != nil {
					return err
				}
			}
		}
		return errors.Join(
			g.batch.Set(metaFirstKey(), first, nil),
			g.batch.Set(metaLastKey(), last, nil),
			g.batch.DeleteRange(eventKey(oldest), eventKey(through+1), nil),
			g.removeDispositions(through),
		)
	})
	return removed, err
}

// removeDispositions removes the dispositions of removed events.
func (g *group) removeDispositions(through journal.Seq) (err error) {
	it, err := g.st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{dispositionSpace}, UpperBound: []byte{dispositionSpace + 1}})
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
		if err := g.batch.DeleteRange(first, end, nil); err != nil {
			return err
		}
		ok = it.SeekGE(after(sinkPrefix(dispositionSpace, id.Sink)))
	}
	return it.Error()
}

// weighing returns the first sequence up to which the events take about size bytes of disk,
// at most last.
func (st *store) weighing(size uint64, oldest, last journal.Seq) (journal.Seq, error) {
	low, high := oldest, last
	for low < high {
		mid := low + (high-low)/2
		n, err := st.db.EstimateDiskUsage(eventKey(oldest), eventKey(mid+1))
		if err != nil {
			return 0, err
		}
		if n >= size {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low, nil
}

// before returns the last sequence whose event was accepted before cutoff, or oldest-1.
func (st *store) before(cutoff time.Time, oldest, last journal.Seq) (journal.Seq, error) {
	low, high := oldest, last+1 // events before low are old, events from high on are not
	for low < high {
		mid := low + (high-low)/2
		value, closer, err := st.db.Get(eventKey(mid))
		if errors.Is(err, pebble.ErrNotFound) { // the event was old and has just been removed
			low = mid + 1
			continue
		}
		if err != nil {
			return 0, err
		}
		accepted, err := record.Accepted(value)
		if err := errors.Join(err, closer.Close()); err != nil {
			return 0, err
		}
		if accepted.Before(cutoff) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1, nil
}
