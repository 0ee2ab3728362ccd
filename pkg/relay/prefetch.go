package relay

import (
	"context"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// commitInterval is how long a commit may be deferred, so that many events share one
// synced write.
const commitInterval = 50 * time.Millisecond

// background runs beside a delivery: it commits delivered events and prefetches the next
// batch. One goroutine at a time uses the cursor. A crash repeats the events delivered
// since the last commit.
//
// The pump does not use background if several processes share the journal, because another
// process may own the prefetched records later, or if discard.beyond is set, because the
// policy needs an exact cursor.
type background struct {
	uncommitted journal.Seq // processed up to this sequence and not committed; 0 is none
	since       time.Time   // since when uncommitted is set
	prefetched  []journal.Record

	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine has ended; nil without one
	err    error         // error of the commit
}

// mayPrefetch reports whether the pump may use background.
func (p *Pump) mayPrefetch() bool {
	return p.cursor.OwnershipLost() == nil && p.settings.Discard.Beyond == 0
}

// startPrefetch starts the goroutine beside the delivery of inHand records.
func (p *Pump) startPrefetch(ctx, hard context.Context, inHand int) {
	if !p.mayPrefetch() {
		return
	}
	ctx, p.background.cancel = context.WithCancel(ctx)
	p.background.ended = make(chan struct{})
	go func() {
		defer close(p.background.ended)
		if p.background.err = p.commitIfDue(hard); p.background.err != nil {
			return
		}
		if done := max(p.background.uncommitted, p.cursor.Committed()); p.cursor.Lag() <= uint64(done-p.cursor.Committed())+uint64(inHand) {
			return
		}
		// After an error the next read fails again and returns its error.
		p.background.prefetched, _ = p.cursor.Next(ctx, p.settings.Batch)
	}()
}

// waitPrefetch ends the goroutine: it waits for the commit, and cancels the read. The error
// is the error of the commit.
func (p *Pump) waitPrefetch() error {
	if p.background.ended == nil {
		return nil
	}
	p.background.cancel()
	<-p.background.ended
	p.background.ended = nil
	return p.background.err
}

// markProcessed defers the commit of a sequence.
func (p *Pump) markProcessed(s journal.Seq) {
	if p.background.uncommitted == 0 {
		p.background.since = time.Now()
	}
	p.background.uncommitted = s
}

// commitIfDue commits the deferred sequence after commitInterval.
func (p *Pump) commitIfDue(hard context.Context) error {
	if p.background.uncommitted == 0 || time.Since(p.background.since) < commitInterval {
		return nil
	}
	return p.commitDone(hard)
}

// commitDone commits the deferred sequence.
func (p *Pump) commitDone(hard context.Context) error {
	if p.background.uncommitted == 0 {
		return nil
	}
	if err := p.cursor.Commit(hard, journal.UpTo(p.background.uncommitted)); err != nil {
		return err
	}
	p.background.uncommitted = 0
	p.moved()
	return nil
}

// next returns the prefetched records, or reads records. While next waits, it commits the
// deferred sequence; commitErr is the error of the commit.
func (p *Pump) next(ctx, hard context.Context) (records []journal.Record, err, commitErr error) {
	if records := p.background.prefetched; len(records) > 0 {
		p.background.prefetched = nil
		return records, nil, nil
	}
	if p.background.uncommitted > 0 {
		soon, cancel := context.WithDeadline(ctx, p.background.since.Add(commitInterval))
		records, err := p.cursor.Next(soon, p.settings.Batch)
		cancel()
		if err == nil {
			return records, nil, nil
		}
		if err := p.commitDone(hard); err != nil {
			return nil, nil, err
		}
	}
	records, err = p.cursor.Next(ctx, p.settings.Batch)
	return records, err, nil
}

// finish ends the goroutine and commits the deferred sequence.
func (p *Pump) finish(hard context.Context) error {
	if err := p.waitPrefetch(); err != nil {
		return err
	}
	return p.commitDone(hard)
}
