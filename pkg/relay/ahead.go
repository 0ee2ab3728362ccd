package relay

import (
	"context"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// settleEvery is how long a place that was reached waits to be made durable, so
// that many events share one sync: at the head there is a batch an event, and
// each sink's would have its own.
const settleEvery = 50 * time.Millisecond

// ahead is what goes on beside a delivery: the place behind what was delivered is
// made durable, now and then, and the next batch is read. One goroutine at a time
// uses the cursor. A crash repeats what is not durable: what was delivered in the
// last moment, and the last batch.
//
// Where processes share a journal, what was read ahead may be another one's by
// the time it is due; where events are given up by their number, the durable
// place must be exact. There nothing goes on beside.
type ahead struct {
	due     journal.Seq      // through it everything is done, and that is not durable yet; 0 is none
	since   time.Time        // something was due
	records []journal.Record // that were read

	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine has ended; nil when none runs
	err    error         // of the commit
}

// mayRunAhead reports whether something may go on beside a delivery.
func (p *Pump) mayRunAhead() bool { return p.cursor.Moved() == nil && p.settings.Discard.Beyond == 0 }

// runAhead begins what goes on beside the delivery of so many records.
func (p *Pump) runAhead(ctx, hard context.Context, inHand int) {
	if !p.mayRunAhead() {
		return
	}
	ctx, p.ahead.cancel = context.WithCancel(ctx)
	p.ahead.ended = make(chan struct{})
	go func() {
		defer close(p.ahead.ended)
		if p.ahead.err = p.settleDue(hard); p.ahead.err != nil {
			return
		}
		if done := max(p.ahead.due, p.cursor.Committed()); p.cursor.Behind() <= uint64(done-p.cursor.Committed())+uint64(inHand) {
			return
		}
		// If it fails, it fails again where its error is looked at.
		p.ahead.records, _ = p.cursor.Next(ctx, p.settings.Batch)
	}()
}

// join waits for what goes on beside, but not for events to come. Its error is
// that of the commit.
func (p *Pump) join() error {
	if p.ahead.ended == nil {
		return nil
	}
	p.ahead.cancel()
	<-p.ahead.ended
	p.ahead.ended = nil
	return p.ahead.err
}

// reached notes that everything through a place is done.
func (p *Pump) reached(s journal.Seq) {
	if p.ahead.due == 0 {
		p.ahead.since = time.Now()
	}
	p.ahead.due = s
}

// settleDue makes the place durable that has been due for long enough.
func (p *Pump) settleDue(hard context.Context) error {
	if p.ahead.due == 0 || time.Since(p.ahead.since) < settleEvery {
		return nil
	}
	return p.settle(hard)
}

// settle makes the place durable that is due.
func (p *Pump) settle(hard context.Context) error {
	if p.ahead.due == 0 {
		return nil
	}
	if err := p.cursor.Commit(hard, p.ahead.due, journal.Undelivered{}); err != nil {
		return err
	}
	p.ahead.due = 0
	p.moved()
	return nil
}

// next returns the records that were read ahead, or else waits for some. What is
// due is made durable meanwhile; the error of that is unsettled.
func (p *Pump) next(ctx, hard context.Context) (records []journal.Record, err, unsettled error) {
	if records := p.ahead.records; len(records) > 0 {
		p.ahead.records = nil
		return records, nil, nil
	}
	if p.ahead.due > 0 {
		soon, cancel := context.WithDeadline(ctx, p.ahead.since.Add(settleEvery))
		records, err := p.cursor.Next(soon, p.settings.Batch)
		cancel()
		if err == nil {
			return records, nil, nil
		}
		if err := p.settle(hard); err != nil {
			return nil, nil, err
		}
	}
	records, err = p.cursor.Next(ctx, p.settings.Batch)
	return records, err, nil
}

// finish waits for what goes on beside, and makes durable what is done.
func (p *Pump) finish(hard context.Context) error {
	if err := p.join(); err != nil {
		return err
	}
	return p.settle(hard)
}
