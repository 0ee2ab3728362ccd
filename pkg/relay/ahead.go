package relay

import (
	"context"

	"github.com/postwire/postwire/pkg/journal"
)

// ahead is what goes on beside a delivery: the place behind the batch before is
// made durable, and the next batch is read. One goroutine at a time uses the
// cursor. A crash repeats what is not durable, up to a batch more than without.
//
// Where processes share a journal, what was read ahead may be another one's by
// the time it is due; where events are given up by their number, the durable
// place must be exact. There nothing goes on beside.
type ahead struct {
	due     journal.Seq      // through it everything is done, and that is not durable yet; 0 is none
	records []journal.Record // that were read

	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine has ended; nil when none runs
	err    error         // of the commit
}

// mayRunAhead reports whether something may go on beside a delivery.
func (p *Pump) mayRunAhead() bool { return p.cursor.Moved() == nil && p.settings.MaxEvents == 0 }

// runAhead begins what goes on beside the delivery of so many records.
func (p *Pump) runAhead(ctx, hard context.Context, inHand int) {
	if !p.mayRunAhead() {
		return
	}
	ctx, p.ahead.cancel = context.WithCancel(ctx)
	p.ahead.ended = make(chan struct{})
	go func() {
		defer close(p.ahead.ended)
		if p.ahead.err = p.settle(hard); p.ahead.err != nil || p.cursor.Behind() <= uint64(inHand) {
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

// next returns the records that were read ahead, or else waits for some.
func (p *Pump) next(ctx context.Context) ([]journal.Record, error) {
	if records := p.ahead.records; len(records) > 0 {
		p.ahead.records = nil
		return records, nil
	}
	return p.cursor.Next(ctx, p.settings.Batch)
}

// finish waits for what goes on beside, and makes durable what is done.
func (p *Pump) finish(hard context.Context) error {
	if err := p.join(); err != nil {
		return err
	}
	return p.settle(hard)
}
