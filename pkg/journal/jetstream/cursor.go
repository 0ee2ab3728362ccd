package jetstream

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

const (
	// observeInterval is the interval between two reads of the record by a process that is
	// not the owner, and countInterval between two counts of the events after a position.
	observeInterval = 300 * time.Millisecond
	countInterval   = time.Second
)

// cursor implements journal.Cursor with a record in the stream: see ownership.go for the
// rules of its writes. One goroutine per cursor, run, moves it through its states:
//
//	| state    | fields                  | next state                                          |
//	|----------|-------------------------|-----------------------------------------------------|
//	| unbound  | observed.Token is 0     | standby, when the record was read or created        |
//	| standby  | ownership is nil        | owner, after Next was called, when the lease is free |
//	| owner    | ownership is not nil    | standby, when the lease is over or was lost         |
//	| closed   | closed, life is over    |                                                     |
//
// Mu guards the fields after it.
type cursor struct {
	j     *Journal
	name  string
	start journal.Start
	life  context.Context // until Close
	end   context.CancelFunc
	run   sync.WaitGroup

	mu        sync.Mutex
	changed   chan struct{}  // closed and replaced when one of the following changes
	wanted    bool           // Next was called
	broken    error          // why the cursor or the event at the cursor cannot be read
	streamID  string         // ID of the journal that the record belongs to
	observed  observedRecord // record as of the last read or write
	retaining []delivery     // events that a write in flight retains
	tokens    [2]uint64      // tokens of the last acknowledged and of the last attempted write of this process
	done      doneSet        // done events as of the last acknowledged write
	lag       uint64         // while another process is the owner
	ownership *ownership     // nil unless this process is the owner
	closed    bool
}

// observedRecord is a record with the sequence of its message, and the time since which this
// process knows the record.
type observedRecord struct {
	cursorRecord
	at    uint64
	since time.Time
}

// Reader implements journal.Journal.
func (j *Journal) Reader(ctx context.Context, name string, start journal.Start) (journal.Cursor, error) {
	c := &cursor{j: j, name: name, start: start, done: doneThrough(0), changed: make(chan struct{})}
	j.mu.Lock()
	switch {
	case j.closed:
		j.mu.Unlock()
		return nil, fmt.Errorf("opening cursor %s: %w", name, journal.ErrClosed)
	case j.cursors[name] != nil:
		j.mu.Unlock()
		return nil, fmt.Errorf("opening cursor %s: it is open already", name)
	}
	c.life, c.end = context.WithCancel(j.life)
	j.cursors[name] = c
	ready := j.ready
	j.mu.Unlock()
	if ready { // otherwise setUp binds the cursor before anything is stored
		if err := j.retry(ctx, c.bind); err != nil {
			return nil, errors.Join(fmt.Errorf("opening cursor %s: %w", name, err), c.Close())
		}
	}
	c.run.Go(c.keep)
	return c, nil
}

// bind reads or creates the record of a cursor that was just opened.
func (c *cursor) bind(ctx context.Context) error {
	if err := c.observe(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	passed, unused := c.observed.removableThrough(), c.observed.unused(c.j.opts.Clock())
	c.mu.Unlock()
	c.j.mu.Lock()
	oldest := c.j.state.oldest
	c.j.mu.Unlock()
	// The oldest event is behind the position also if the cursor has passed all events before,
	// because the stream has other messages between two events. Only an unused cursor does not
	// hold back removal.
	if unused && passed > 0 && passed < oldest {
		c.j.log.Error("no relay had the sink in its configuration for an hour; the journal may have discarded events that the sink had not delivered, and the sink goes on at the oldest stored event",
			zap.String("sink", c.name), zap.Uint64("passed", uint64(passed)), zap.Uint64("oldest", uint64(oldest)))
	}
	return c.touch(ctx)
}

// observe reads the record, and creates a missing record.
func (c *cursor) observe(ctx context.Context) error {
	for wait := newWait(); ; {
		r, at, err := c.j.cursorRecord(ctx, c.name)
		if errors.Is(err, journal.ErrNotFound) {
			r, at, err = c.create(ctx)
		}
		switch {
		case err == nil:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.see(r, at)
			return nil
		case !errors.Is(err, errConflict):
			return err
		}
		// Another process creates the record, or an attempt without an answer did. The server
		// refuses the record before reads return the other one.
		if err := sleep.For(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// see applies a record that was read or written. The caller holds mu.
func (c *cursor) see(r cursorRecord, at uint64) {
	if c.observed.Token != r.Token {
		c.observed = observedRecord{r, at, time.Now()}
		c.streamID = c.j.ID()
	}
	if c.ownership == nil && len(r.Pages) == 0 && len(r.Done) == 0 && r.Committed != c.done.Floor() {
		c.done = doneThrough(r.Committed)
	}
}

// create creates the record. A record that was known and is missing was lost with the
// stream, or deleted by an operator. The error is errConflict if there is a record.
func (c *cursor) create(ctx context.Context) (cursorRecord, uint64, error) {
	if err := c.j.poll(ctx); err != nil {
		return cursorRecord{}, 0, err
	}
	c.j.mu.Lock()
	oldest, newest, id := c.j.state.oldest, c.j.state.last, c.j.id
	c.j.mu.Unlock()
	c.mu.Lock()
	known, same, done := c.observed.cursorRecord, id == c.streamID, c.done.Clone()
	c.mu.Unlock()
	var messages []*nats.Msg
	r := cursorRecord{Epoch: known.Epoch, Token: randomToken(), Opened: c.j.opts.Clock().UTC(), StartSeq: known.StartSeq}
	switch {
	case known.Token == 0:
		switch {
		case c.start == journal.Latest:
			r.Committed = newest
		case c.start == journal.Earliest || journal.Seq(c.start) >= oldest:
			r.Committed = min(max(journal.Seq(c.start), oldest-1), newest)
		default:
			var err error
			r.Committed = journal.Seq(c.start)
			if messages, err = c.j.inherit(ctx, c.name, &r, oldest); err != nil {
				return r, 0, err
			}
		}
		r.StartSeq = r.Committed
	case same:
		full := doneOf(done.Floor(), slices.Collect(done.Ranges()))
		pages := cursorRecord{}.pages()
		messages, _ = pages.update(c.j, c.name, full)
		r.Committed, r.Done, r.Pages = full.Floor(), pages.inline, pageRuns(pages.stored)
		r.Retained, r.RetainedThrough = known.Retained, known.RetainedThrough
	default: // every event of the new stream is new
		r.StartSeq = 0
	}
	r.Committed = doneThrough(r.Committed).Floor()
	r.Read = r.removableThrough()
	r.Open = uint64(len(r.Retained))
	if known.Token != 0 {
		c.j.log.Error("the position of a cursor is missing in the stream; the position is created again",
			zap.String("sink", c.name), zap.Bool("new_stream", !same), zap.Uint64("committed", uint64(r.Committed)))
	}
	m, err := c.j.recordMessage(c.name, r, 0)
	if err != nil {
		return r, 0, err
	}
	at, err := c.j.store(ctx, append(messages, m))
	return r, at, err
}

// keep observes the record, and serves the cursor while this process is the owner, until
// Close.
func (c *cursor) keep() {
	var counted, failing time.Time
	for c.life.Err() == nil {
		err := c.j.waitReady(c.life)
		if err == nil {
			err = c.observe(c.life)
		}
		c.mu.Lock()
		take := err == nil && c.wanted && c.mayTake()
		changed := c.changed
		c.mu.Unlock()
		take = take && !c.j.clockIsWrong()
		if take {
			var o *ownership
			if o, err = c.takeOver(); err == nil {
				c.serve(o)
				continue
			}
		}
		if err == nil && time.Since(counted) > countInterval {
			err = c.refresh(c.life)
			counted = time.Now()
		}
		if c.life.Err() != nil {
			return
		}
		failing = c.report(err, failing)
		select {
		case <-changed:
			if err != nil {
				_ = sleep.For(c.life, observeInterval/10)
			}
		case <-time.After(observeInterval):
		case <-c.life.Done():
		}
	}
}

// failingLogAfter is how long reading may fail before the log says so.
const failingLogAfter = 5 * time.Second

// report records why the cursor cannot be read, and logs an error that lasts, once an hour.
// It returns the time since which an error lasts: zero without an error, and a later time
// after the error was logged.
func (c *cursor) report(err error, since time.Time) time.Time {
	now := time.Now()
	if err == nil || errors.Is(err, errConflict) || errors.Is(err, journal.ErrOwnershipLost) {
		return time.Time{}
	}
	c.j.log.Debug("reading the journal for a sink", zap.String("sink", c.name), zap.Error(err))
	broken := errors.Is(err, errBroken)
	if broken {
		c.mu.Lock()
		if c.broken == nil {
			c.broken = err
			c.notify()
		}
		c.mu.Unlock()
	}
	switch {
	case since.IsZero() && broken, !since.IsZero() && now.Sub(since) > failingLogAfter:
		c.j.log.Error("the journal cannot be read for a sink, retrying", zap.String("sink", c.name), zap.Error(err))
		return now.Add(time.Hour)
	case since.IsZero():
		return now
	}
	return since
}

// refresh reads the lag and the done events of a cursor that another process owns.
func (c *cursor) refresh(ctx context.Context) error {
	c.mu.Lock()
	r, at := c.observed.cursorRecord, c.observed.at
	c.mu.Unlock()
	unread, err := c.j.eventsAfter(ctx, r.Read)
	if err != nil {
		return err
	}
	done, err := c.j.doneEvents(ctx, c.name, r, at)
	if errors.Is(err, errLag) { // the owner has replaced the record
		return nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag, c.done = r.Open+unread, done
	return nil
}

// notify wakes all waiting goroutines. The caller holds mu.
func (c *cursor) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Next implements journal.Cursor.
func (c *cursor) Next(ctx context.Context, limit int) ([]journal.Record, error) {
	for {
		c.mu.Lock()
		if !c.wanted {
			c.wanted = true
			c.notify()
		}
		changed, closed, err := c.changed, c.closed || c.life.Err() != nil, c.broken
		var records []journal.Record
		if o := c.ownership; o != nil && !closed && c.holds(o) {
			queued := len(o.queue)
			records, err = o.take(limit, c.done)
			if len(o.queue) < queued {
				c.notify()
			}
			err = cmp.Or(err, c.broken)
		}
		c.mu.Unlock()
		switch {
		case closed:
			return nil, journal.ErrClosed
		case len(records) > 0:
			return records, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-changed:
		case <-c.life.Done():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Commit implements journal.Cursor.
func (c *cursor) Commit(ctx context.Context, p journal.Progress) error {
	if err := c.commit(ctx, p); err != nil {
		return fmt.Errorf("committing %s: %w", c.name, err)
	}
	return nil
}

func (c *cursor) commit(ctx context.Context, p journal.Progress) error {
	c.mu.Lock()
	o, closed := c.ownership, c.closed || c.life.Err() != nil
	if o != nil && !c.holds(o) {
		o = nil
	}
	news := len(p.Dead)+len(p.Discarded) > 0
	for _, r := range p.Done {
		news = news || messageOf(r.To) > messageOf(c.done.Floor())
	}
	if o != nil && !closed {
		o.reported = p.Open
	}
	c.mu.Unlock()
	switch {
	case closed:
		return journal.ErrClosed
	case o == nil && news:
		return journal.ErrOwnershipLost
	case o == nil:
		return nil
	}
	messages, err := c.undelivered(ctx, p.Undelivered)
	if err != nil {
		return err
	}
	w := &commit{done: p.Done, messages: messages, result: make(chan error, 1)}
	select {
	case o.commits <- w:
	case <-o.ctx.Done():
		return journal.ErrOwnershipLost
	case <-c.life.Done():
		return journal.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-w.result:
		return err
	case <-ctx.Done(): // the commit may be stored
		return ctx.Err()
	}
}

// undelivered returns the messages that store dead letters, with their events, and
// dispositions.
func (c *cursor) undelivered(ctx context.Context, u journal.Undelivered) (messages []*nats.Msg, err error) {
	for _, letter := range u.Dead {
		var value []byte
		err := c.j.retry(ctx, func(ctx context.Context) error {
			m, err := c.j.leaderGet(ctx, getRequest{Seq: messageOf(letter.Seq)})
			if err == nil {
				value, err = c.j.whole(ctx, m)
			}
			return err
		})
		if errors.Is(err, journal.ErrNotFound) {
			value, err = c.copyOf(ctx, letter.Seq)
		}
		if errors.Is(err, journal.ErrNotFound) {
			c.j.log.Error("the event of a dead letter is not in the journal any more; the dead letter is discarded",
				zap.String("sink", c.name), zap.Uint64("seq", uint64(letter.Seq)), zap.String("reason", letter.Reason))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("event %d of a dead letter: %w", letter.Seq, err)
		}
		id := journal.DeliveryID{Sink: cmp.Or(u.Sink, c.name), Seq: letter.Seq}
		dead, err := encodeDead(letter, value)
		if err != nil {
			return nil, fmt.Errorf("event %d of a dead letter: %w", letter.Seq, err)
		}
		messages = append(messages, c.j.messagesFor(c.j.names.dead(id), dead)...)
		if letter.CopyTo == "" {
			continue
		}
		copied, err := record.CopyDeadLetter(id.Sink, letter, value)
		if err != nil {
			return nil, fmt.Errorf("copying the dead letter %d for sink %s: %w", letter.Seq, letter.CopyTo, err)
		}
		binary.BigEndian.PutUint64(copied, uint64(c.j.now()))
		messages = append(messages, c.j.messages(c.j.names.event(), copied)...)
	}
	for _, d := range u.Discarded {
		m, err := c.j.lostMessage(c.name, d)
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// Done implements journal.Cursor.
func (c *cursor) Done(s journal.Seq) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done.Has(s)
}

// Committed implements journal.Cursor.
func (c *cursor) Committed() journal.Seq {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done.Floor()
}

// StartSeq implements journal.Cursor.
func (c *cursor) StartSeq() journal.Seq {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observed.StartSeq
}

// Lag implements journal.Cursor.
func (c *cursor) Lag() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ownership != nil {
		return c.ownership.lag()
	}
	return c.lag
}

// OwnershipLost implements journal.Cursor.
func (c *cursor) OwnershipLost() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ownership == nil {
		over := make(chan struct{})
		close(over)
		return over
	}
	return c.ownership.ctx.Done()
}

// Owner implements journal.Cursor.
func (c *cursor) Owner() journal.Owner {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.ownership; o != nil {
		c.holds(o)
	}
	if c.ownership == nil && c.expired() {
		return journal.Owner{}
	}
	return journal.Owner{Name: c.observed.Owner, Since: c.observed.Since, Local: c.ownership != nil}
}

// Close implements io.Closer. Another process may take over at once.
func (c *cursor) Close() error {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.notify()
	c.mu.Unlock()
	c.end()
	c.run.Wait()
	if again {
		return nil
	}
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	if c.j.cursors[c.name] == c {
		delete(c.j.cursors, c.name)
	}
	return nil
}
