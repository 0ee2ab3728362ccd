package jetstream

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// A retained event is open for a cursor, while nearly all events around the event are done.
// So that one event does not keep all later events in the stream, the owner of the cursor
// copies the event to a subject of its own, and stores in the record which events are
// copied, and through which sequence. Only the owner writes the record and the copies, in
// one atomic batch: through that sequence every open event has a copy, and other events may
// be removed.
const (
	// retainedShare is the least number of events for one of them to be retained, and the
	// part of journal.max_bytes that the copies of all cursors may take.
	retainedShare = 10
	// maxRetained limits the retained events of a cursor. The record lists them.
	maxRetained = 512
)

// retainedEvent is the sequence of a retained event, and the bytes of its copy.
type retainedEvent [2]uint64

func (r retainedEvent) seq() journal.Seq { return journal.Seq(r[0]) }

// removableThrough returns the sequence through which the cursor needs no event of the log.
func (r cursorRecord) removableThrough() journal.Seq { return max(r.Committed, r.RetainedThrough) }

// retain copies the open events through a sequence, if they are few.
func (c *cursor) retain(ctx context.Context, through journal.Seq) error {
	c.mu.Lock()
	o := c.ownership
	if o == nil || !c.holds(o) {
		c.mu.Unlock()
		return nil
	}
	r, done := c.observed.cursorRecord, c.done.Clone()
	from, through := r.removableThrough(), min(through, o.returned)
	c.mu.Unlock()
	if through <= from {
		return nil
	}
	open, through, err := c.openEvents(ctx, r, done, through)
	if err != nil || through <= from {
		return err
	}
	if err := c.removeOrphans(ctx, r.Retained); err != nil {
		return err
	}
	// Until the result is known, the copies may be stored and the events removed.
	c.mu.Lock()
	c.retaining = open
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.retaining = nil
		c.mu.Unlock()
	}()
	return c.submit(ctx, o, &commit{copies: open, retainedThrough: through})
}

// openEvents reads the open events after the events that the cursor has passed, and returns
// the sequence through which they are to be retained; this is the passed sequence if the
// open events are too many.
func (c *cursor) openEvents(ctx context.Context, r cursorRecord, done doneSet, through journal.Seq) (open []delivery, to journal.Seq, err error) {
	passed := r.removableThrough()
	number, size := len(r.Retained), uint64(0)
	for _, copied := range r.Retained {
		size += copied[1]
	}
	limit := c.j.opts.MaxBytes / retainedShare / uint64(max(1, len(c.j.openCursors())))
	to = through
scan:
	for gap := range done.MissingRanges(passed+1, through) {
		for d, err := range c.j.eventsBetween(ctx, gap.From, gap.To) {
			if err != nil {
				return nil, passed, err
			}
			if size += uint64(len(d.value)); number == maxRetained || c.j.opts.MaxBytes > 0 && size > limit {
				to = d.seq - 1
				break scan
			}
			open = append(open, d)
			number++
		}
	}
	after, err := c.j.eventsAfter(ctx, passed)
	if err != nil {
		return nil, passed, err
	}
	beyond, err := c.j.eventsAfter(ctx, to)
	if err != nil {
		return nil, passed, err
	}
	if uint64(len(open))*retainedShare > after-min(after, beyond) {
		return nil, passed, nil
	}
	return open, to, nil
}

// eventsBetween yields the events from one sequence through another. It fails where a server
// lags behind: none is left out.
func (j *Journal) eventsBetween(ctx context.Context, from, to journal.Seq) iter.Seq2[delivery, error] {
	return func(yield func(delivery, error) bool) {
		for from <= to {
			messages, err := j.page(ctx, j.names.event(), messageFrom(from), maxRetained)
			if err == nil && len(messages) == 0 {
				var next message
				if next, err = j.leaderGet(ctx, getRequest{Seq: messageFrom(from), NextFor: j.names.event()}); err == nil && seqOf(next.seq) > to {
					return
				}
				err = errLag
			}
			if err != nil {
				yield(delivery{}, err)
				return
			}
			for _, m := range messages {
				seq := seqOf(m.seq)
				if from = seq + 1; seq > to {
					return
				}
				value, err := j.whole(ctx, m)
				if !yield(delivery{seq, value}, err) || err != nil {
					return
				}
			}
		}
	}
}

// retained returns the sequences of the retained events of a cursor, also of those whose
// copies may not be stored yet. The caller holds mu.
func (c *cursor) retained() (seqs []journal.Seq) {
	for _, copied := range c.observed.Retained {
		seqs = append(seqs, copied.seq())
	}
	for _, d := range c.retaining {
		seqs = append(seqs, d.seq)
	}
	return seqs
}

// updateRetained applies a commit to the retained events, and returns the messages that store
// the copies of open events, and those that remove the copies of done events.
func (c *cursor) updateRetained(o *ownership, w *commit) (retained []retainedEvent, stores, removals []*nats.Msg) {
	for _, copied := range o.record.Retained {
		if !o.staged.Has(copied.seq()) {
			retained = append(retained, copied)
			continue
		}
		subject := c.j.names.retained(c.name, copied.seq())
		if removals = append(removals, removing(subject)); copied[1] > uint64(c.j.maxChunk()) {
			removals = append(removals, removing(c.j.names.part(subject)))
		}
	}
	for _, d := range w.copies {
		if !o.staged.Has(d.seq) { // otherwise it was done after its copy was read
			retained = append(retained, retainedEvent{uint64(d.seq), uint64(len(d.value))})
			stores = append(stores, c.j.messagesFor(c.j.names.retained(c.name, d.seq), d.value)...)
		}
	}
	return retained, stores, removals
}

// readRetained puts the retained events after the last read one in the queue.
func (c *cursor) readRetained(ctx context.Context, o *ownership) error {
	c.mu.Lock()
	copied, through, at := o.record.Retained, o.record.RetainedThrough, o.at
	c.mu.Unlock()
	for _, r := range copied {
		if r.seq() <= o.read {
			continue
		}
		value, err := c.j.retainedValue(ctx, c.name, at, r.seq())
		if err != nil {
			return err
		}
		if value != nil {
			if err := c.push(ctx, o, delivery{r.seq(), value}, 0); err != nil {
				return err
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o.read = max(o.read, through)
	return nil
}

// retainedValue reads the copy of an event of a cursor whose record is at a sequence, or
// later. The answer contains the record, which proves that the answering server does not lag
// behind the record. The value of a missing copy is nil: the event is done, or an
// administrator has removed the copy.
func (j *Journal) retainedValue(ctx context.Context, name string, at uint64, seq journal.Seq) ([]byte, error) {
	record, subject := j.names.cursor(name), j.names.retained(name, seq)
	messages, err := j.lastOf(ctx, []string{record, subject})
	if err != nil {
		return nil, err
	}
	fresh := false
	var found *message
	for n, m := range messages {
		switch {
		case m.subject == record:
			fresh = m.seq >= at
		case m.header.Get(removedHeader) == "":
			found = &messages[n]
		default:
			return nil, nil
		}
	}
	switch {
	case !fresh:
		return nil, errLag
	case found == nil:
		j.log.Error("the copy of an event that is open for a sink is missing in the stream; the event is discarded",
			zap.String("sink", name), zap.Uint64("seq", uint64(seq)))
		return nil, nil
	}
	return j.whole(ctx, *found)
}

// copyOf reads the copy of an event of this cursor. Its error may wrap journal.ErrNotFound.
func (c *cursor) copyOf(ctx context.Context, seq journal.Seq) (value []byte, err error) {
	c.mu.Lock()
	at := c.observed.at
	listed := slices.Contains(c.retained(), seq)
	c.mu.Unlock()
	if listed {
		err = c.j.retry(ctx, func(ctx context.Context) error {
			value, err = c.j.retainedValue(ctx, c.name, at, seq)
			return err
		})
	}
	if err == nil && value == nil {
		err = journal.ErrNotFound
	}
	return value, err
}

// retainedCopy is a retained event of a cursor.
type retainedCopy struct {
	cursor string
	at     uint64 // sequence of the cursor's record
	seq    journal.Seq
}

// retainedBetween returns the retained events of the open cursors from a sequence through
// another, in order.
func (j *Journal) retainedBetween(from, through journal.Seq) (copies []retainedCopy) {
	for _, c := range j.openCursors() {
		c.mu.Lock()
		for _, seq := range c.retained() {
			if seq >= from && seq <= through {
				copies = append(copies, retainedCopy{c.name, c.observed.at, seq})
			}
		}
		c.mu.Unlock()
	}
	return inOrder(copies)
}

func inOrder(copies []retainedCopy) []retainedCopy {
	bySeq := func(a, b retainedCopy) int { return cmp.Compare(a.seq, b.seq) }
	slices.SortFunc(copies, bySeq)
	return slices.CompactFunc(copies, func(a, b retainedCopy) bool { return a.seq == b.seq })
}

// withRetained adds the retained events from a sequence on to events of the log that were
// read before, through the last of them, or through the given sequence if there are fewer
// than limit.
func (j *Journal) withRetained(ctx context.Context, events []delivery, from, through journal.Seq, limit int) ([]delivery, error) {
	if len(events) >= limit {
		through = events[len(events)-1].seq
	}
	bySeq := func(d delivery, s journal.Seq) int { return cmp.Compare(d.seq, s) }
	for _, r := range j.retainedBetween(from, through) {
		n, found := slices.BinarySearchFunc(events, r.seq, bySeq)
		if found || n >= limit {
			continue
		}
		var value []byte
		err := j.retry(ctx, func(ctx context.Context) (err error) {
			value, err = j.retainedValue(ctx, r.cursor, r.at, r.seq)
			return err
		})
		if err != nil {
			return nil, err
		}
		if value != nil {
			events = slices.Insert(events, n, delivery{r.seq, value})
		}
	}
	return events[:min(len(events), limit)], nil
}

// retainedBefore returns the retained events of all cursors from a sequence on that are not in
// the log any more.
func retainedBefore(records map[string]cursorRecord, from, oldest journal.Seq) (copies []retainedCopy) {
	for name, r := range records {
		for _, copied := range r.Retained {
			if copied.seq() >= from && copied.seq() < oldest {
				copies = append(copies, retainedCopy{name, 0, copied.seq()})
			}
		}
	}
	return inOrder(copies)
}

// inherit copies the events that other cursors retain after the committed sequence of a new
// record, if they are not in the log any more: a sink adopts the events of a removed sink.
func (j *Journal) inherit(ctx context.Context, name string, r *cursorRecord, oldest journal.Seq) (messages []*nats.Msg, err error) {
	records, err := j.cursorRecords(ctx)
	if err != nil {
		return nil, err
	}
	copies := retainedBefore(records, r.Committed+1, oldest)
	if len(copies) == 0 {
		r.Committed = max(r.Committed, oldest-1)
		return nil, nil
	}
	r.RetainedThrough = oldest - 1
	for _, one := range copies {
		value, err := j.retainedValue(ctx, one.cursor, one.at, one.seq)
		if err != nil {
			return nil, err
		}
		if value != nil {
			r.Retained = append(r.Retained, retainedEvent{uint64(one.seq), uint64(len(value))})
			messages = append(messages, j.messagesFor(j.names.retained(name, one.seq), value)...)
		}
	}
	return messages, nil
}

// removeOrphans removes the copies of a cursor that its record does not list: an owner was
// stopped between copying and storing the record.
func (c *cursor) removeOrphans(ctx context.Context, listed []retainedEvent) error {
	subjects, err := c.j.subjects(ctx, c.j.names.allRetained(c.name))
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, r := range listed {
		keep[c.j.names.retained(c.name, r.seq())] = true
	}
	s, err := c.j.js.Stream(ctx, c.j.opts.Stream)
	for _, subject := range subjects {
		if err == nil && !keep[subject] {
			err = s.Purge(ctx, jetstream.WithPurgeSubject(subject))
		}
	}
	if err != nil {
		return fmt.Errorf("removing copies of events: %w", err)
	}
	return nil
}
