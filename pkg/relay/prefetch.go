package relay

import (
	"context"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// commitInterval is how long a place that was reached waits to be made durable, so
// that many events share one sync: at the head there is a batch an event, and
// each sink's would have its own.
const commitInterval = 50 * time.Millisecond

// background is what goes on beside a delivery: the place behind what was delivered is
// made durable, now and then, and the next batch is read. One goroutine at a time
// uses the cursor. A crash repeats what is not durable: what was delivered in the
// last moment, and the last batch.
//
// Where processes share a journal, what was read ahead may be another one's by
// the time it is due; where events are given up by their number, the durable
// place must be exact. There nothing goes on beside.
type background struct {
	uncommitted journal.Seq      // through it everything is done, and that is not durable yet; 0 is none
	since       time.Time        // something was due
	prefetched  []journal.Record // that were read

	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine has ended; nil when none runs
	err    error         // of the commit
}

// mayPrefetch reports whether something may go on beside a delivery.
func (p *Pump) mayPrefetch() bool {
	return p.cursor.OwnershipLost() == nil && p.settings.Discard.Beyond == 0
}

// startPrefetch begins what goes on beside the delivery of so many records.
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
		// If it fails, it fails again where its error is looked at.
		p.background.prefetched, _ = p.cursor.Next(ctx, p.settings.Batch)
	}()
}

// waitPrefetch waits for what goes on beside, but not for events to come. Its error is
// that of the commit.
func (p *Pump) waitPrefetch() error {
	if p.background.ended == nil {
		return nil
	}
	p.background.cancel()
	<-p.background.ended
	p.background.ended = nil
	return p.background.err
}

// markProcessed notes that everything through a place is done.
func (p *Pump) markProcessed(s journal.Seq) {
	if p.background.uncommitted == 0 {
		p.background.since = time.Now()
	}
	p.background.uncommitted = s
}

// commitIfDue makes the place durable that has been due for long enough.
func (p *Pump) commitIfDue(hard context.Context) error {
	if p.background.uncommitted == 0 || time.Since(p.background.since) < commitInterval {
		return nil
	}
	return p.commitDone(hard)
}

// commitDone makes the place durable that is due.
func (p *Pump) commitDone(hard context.Context) error {
	if p.background.uncommitted == 0 {
		return nil
	}
	if err := p.cursor.Commit(hard, p.background.uncommitted, journal.Undelivered{}); err != nil {
		return err
	}
	p.background.uncommitted = 0
	p.moved()
	return nil
}

// next returns the records that were read ahead, or else waits for some. What is
// due is made durable meanwhile; the error of that is unsettled.
func (p *Pump) next(ctx, hard context.Context) (records []journal.Record, err, unsettled error) {
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

// finish waits for what goes on beside, and makes durable what is done.
func (p *Pump) finish(hard context.Context) error {
	if err := p.waitPrefetch(); err != nil {
		return err
	}
	return p.commitDone(hard)
}
