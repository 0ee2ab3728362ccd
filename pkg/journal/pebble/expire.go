package pebble

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// expire removes what is old, now and then, until Close.
func (j *Journal) expire() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(j.opts.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := j.Expire(ctx); err != nil && !errors.Is(err, journal.ErrClosed) {
				j.log.Warn("removing old events failed, it will be tried again", zap.Error(err))
			}
		case <-j.stop:
			return
		}
	}
}

// Expire removes the events that are past their retention and that every open
// cursor has passed, and the identity keys outside the window. It costs a
// binary search and two range deletions, however much there is to remove. The
// engine calls it now and then by itself.
//
// A sink that is no longer configured has no open cursor and holds nothing
// back; if it returns it goes on at the oldest event that is stored.
func (j *Journal) Expire(ctx context.Context) error {
	var through journal.Seq
	cutoff := j.opts.Clock().Add(-j.opts.Retention)
	j.mu.Lock()
	oldest, last := j.oldest, j.durable
	for _, c := range j.cursors {
		last = min(last, c.Committed())
	}
	j.mu.Unlock()
	err := j.read(ctx, func(st *store) (err error) {
		through, err = st.before(cutoff, oldest, last)
		return err
	})
	if err != nil {
		return err
	}
	return j.do(ctx, 64, func(g *group) error {
		if err := g.st.window.expire(g.batch, g.now); err != nil {
			return err
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.oldest != oldest || through < oldest {
			return nil // nothing to do, or done by somebody else
		}
		j.oldest = through + 1
		// The newest event may be among them; its place is not given twice.
		last := binary.BigEndian.AppendUint64(nil, uint64(g.last))
		return errors.Join(
			g.batch.Set(metaLastKey(), last, nil),
			g.batch.DeleteRange(eventKey(oldest), eventKey(through+1), nil),
		)
	})
}

// before returns the last place, from oldest through last, whose event was
// accepted before cutoff, or the place before oldest.
func (st *store) before(cutoff time.Time, oldest, last journal.Seq) (journal.Seq, error) {
	low, high := oldest, last+1 // all before low are old, none from high on is
	for low < high {
		mid := low + (high-low)/2
		value, closer, err := st.db.Get(eventKey(mid))
		if err != nil {
			return 0, err
		}
		accepted, err := acceptedOf(value)
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
