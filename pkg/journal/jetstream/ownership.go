package jetstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

const (
	// defaultLease is how long an ownership lasts without an acknowledged write. The owner
	// writes every third of the lease. Another process takes over after the record was
	// unchanged for the lease and a third of the lease.
	defaultLease = 3 * time.Second

	// readAhead and readAheadBytes limit the events that were read and that Next has not
	// returned. Half of them are with the client of the cluster.
	readAhead      = 512
	readAheadBytes = 8 << 20
)

// ownership is the time in which this process owns a cursor. It keeps these invariants:
//
//  1. Every write of the record expects the previous write. The record of an ownership has
//     an epoch and an owner of its own, so that a write of an earlier owner is refused.
//  2. The ownership begins after its first write is acknowledged. Nothing that the write
//     expected is used before.
//  3. The ownership ends a lease after the start of its last acknowledged write, on the
//     clock of this machine that also runs while the machine is suspended. Another process
//     waits longer, on its own clock, from the moment at which it saw that write.
//  4. A write without an answer is repeated with the same expected sequence and token. If
//     the cluster refuses the repeat, the token in the record tells which write was stored.
//  5. The ownership also ends when the record has the token of another process.
//
// Only serve uses the fields after commits; the cursor's mu guards the fields after them.
type ownership struct {
	ctx    context.Context // until the end of the ownership
	cancel context.CancelFunc
	lease  *time.Timer

	commits chan *commit
	record  cursorRecord // last acknowledged write
	at      uint64       // sequence of the record
	staged  doneSet      // done events, with those of the write in flight
	pages   pages

	renewed      time.Duration // start of the last acknowledged write, on the clock Options.boot
	queue        []delivery    // read events that Next has not returned
	bytes        int           // bytes of the queue
	full         bool          // reading waits for Next
	read         journal.Seq   // newest event read
	returned     journal.Seq   // newest event that Next returned
	previousRead journal.Seq   // newest event that an earlier owner had returned
	reopened     uint64        // events through previousRead that are not done and that Next has not returned
	out          []journal.Seq // the newest of the events that Next returned and that are not done
	reported     uint64        // number of these events by the last Commit, and those returned since
	unread       uint64        // events after read and previousRead
}

// maxCounted limits the events that an ownership counts itself. Beyond the limit it relies on
// the number that the caller of Commit reports.
const maxCounted = 4096

// open returns the number of events that Next returned and that are not done.
func (o *ownership) open() uint64 { return max(o.reported, uint64(len(o.out))) }

// delivery is a read event.
type delivery struct {
	seq   journal.Seq
	value []byte // record
}

// commit is a call of Commit.
type commit struct {
	done     []journal.Range
	messages []*nats.Msg

	copies          []delivery // open events that are to be retained
	retainedThrough journal.Seq

	result chan error // receives the result, once
}

// lag returns the number of events that are not done.
func (o *ownership) lag() uint64 {
	waiting, _ := slices.BinarySearchFunc(o.queue, o.previousRead, func(d delivery, s journal.Seq) int {
		if d.seq <= s {
			return -1
		}
		return 1
	})
	return o.open() + o.reopened + uint64(len(o.queue)-waiting) + o.unread
}

// holds reports whether the lease of an ownership lasts. After a pause of this process or a
// suspension of the machine it ends the ownership before the timer does. The caller holds mu.
func (c *cursor) holds(o *ownership) bool {
	if c.j.opts.boot()-o.renewed < c.j.opts.lease {
		return true
	}
	c.release(o)
	return false
}

// release ends an ownership. The caller holds mu.
func (c *cursor) release(o *ownership) {
	o.cancel()
	if c.ownership == o {
		c.ownership = nil
		c.lag = o.lag()
		c.notify()
	}
}

func (c *cursor) releaseLocked(o *ownership) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release(o)
}

// expired reports whether the record was unchanged for the lease and a margin. The caller
// holds mu.
func (c *cursor) expired() bool {
	return c.observed.Owner != "" && time.Since(c.observed.since) > c.j.opts.lease+c.j.opts.lease/3
}

// mayTake reports whether this process may take over the cursor: no process owns the
// cursor, or the record is the last write of this process. The caller holds mu.
func (c *cursor) mayTake() bool {
	return c.observed.Owner == "" || c.expired() || slices.Contains(c.tokens[:], c.observed.Token)
}

// takeOver makes this process the owner.
func (c *cursor) takeOver() (*ownership, error) {
	c.mu.Lock()
	last := c.observed
	c.mu.Unlock()
	o := &ownership{record: last.cursorRecord, at: last.at, commits: make(chan *commit), renewed: c.j.opts.boot()}
	o.ctx, o.cancel = context.WithCancel(c.j.life)
	o.lease = time.AfterFunc(c.j.opts.lease, func() { c.releaseLocked(o) })
	err := c.prepare(o)
	if err != nil {
		o.lease.Stop()
		c.releaseLocked(o)
		return nil, err
	}
	c.mu.Lock()
	c.ownership, c.broken = o, nil
	c.done = o.staged.Clone()
	c.notify()
	c.mu.Unlock()
	c.j.log.Info("this process delivers to the sink now", zap.String("sink", c.name), zap.Uint64("epoch", o.record.Epoch))
	return o, nil
}

// prepare writes the record of a new ownership, and reads the position.
func (c *cursor) prepare(o *ownership) error {
	r := o.record
	r.Owner, r.Since, r.Epoch = c.j.opts.Name, c.j.opts.Clock().UTC(), r.Epoch+1
	if err := c.write(o, r, nil); err != nil {
		return err
	}
	o.read, o.returned, o.previousRead, o.reopened = r.Committed, r.Committed, r.Read, r.Open
	o.pages = r.pages()
	return c.j.retry(o.ctx, func(ctx context.Context) (err error) {
		if o.staged, err = c.j.doneEvents(ctx, c.name, o.record, o.at); err == nil {
			o.unread, err = c.j.eventsAfter(ctx, r.Read)
		}
		return err
	})
}

// serve reads events, commits and renews the lease, until the end of the ownership or of
// the cursor. At the end of the cursor serve frees the lease.
func (c *cursor) serve(o *ownership) {
	var readers sync.WaitGroup
	defer readers.Wait()
	reading, stop := context.WithCancel(o.ctx)
	defer stop()
	readers.Go(func() { c.read(reading, o) })
	readers.Go(func() { c.count(reading, o) })
	defer o.lease.Stop()
	defer c.releaseLocked(o)
	every := c.j.opts.lease / 3
	renew := time.NewTimer(every)
	defer renew.Stop()
	for {
		select {
		case w := <-o.commits:
			w.result <- c.store(o, w)
		case <-renew.C:
			if c.j.clockIsWrong() {
				c.free(o)
				return
			}
			if err := c.write(o, c.current(o), nil); err != nil {
				c.j.log.Debug("renewing the lease of a cursor", zap.String("sink", c.name), zap.Error(err))
			}
		case <-o.ctx.Done():
			return
		case <-c.life.Done():
			c.free(o)
			return
		}
		renew.Reset(max(every-(c.j.opts.boot()-o.renewed), every/10))
	}
}

// current returns the record with the present state of reading.
func (c *cursor) current(o *ownership) cursorRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := o.record
	r.Read, r.Open = max(o.returned, o.previousRead), o.open()+o.reopened
	return r
}

// free stores that no process owns the cursor. If free fails, the takeover is as slow as
// after a crash.
func (c *cursor) free(o *ownership) {
	stop := time.AfterFunc(c.j.opts.lease/3, func() { c.releaseLocked(o) })
	defer stop.Stop()
	r := c.current(o)
	r.Owner, r.Since = "", time.Time{}
	if err := c.write(o, r, nil); err != nil {
		c.j.log.Debug("freeing the lease of a cursor", zap.String("sink", c.name), zap.Error(err))
	}
}

// submit passes a commit to the goroutine of the owner and returns its result. At the end of the
// ownership nothing is stored.
func (c *cursor) submit(ctx context.Context, o *ownership, w *commit) error {
	w.result = make(chan error, 1)
	select {
	case o.commits <- w:
		return <-w.result
	case <-o.ctx.Done():
	case <-c.life.Done():
	case <-ctx.Done():
	}
	return ctx.Err()
}

// touch stores that a process has the cursor open, unless an owner does.
func (c *cursor) touch(ctx context.Context) error {
	c.mu.Lock()
	o, last, free := c.ownership, c.observed, c.observed.Owner == "" || c.expired()
	c.mu.Unlock()
	switch {
	case o != nil:
		return c.submit(ctx, o, &commit{})
	case !free || last.Token == 0:
		return nil
	}
	r := last.cursorRecord
	r.Owner, r.Since, r.Token, r.Renewals, r.Opened = "", time.Time{}, randomToken(), r.Renewals+1, c.j.opts.Clock().UTC()
	m, err := c.j.recordMessage(c.name, r, last.at)
	if err != nil {
		return err
	}
	at, err := c.j.store(ctx, []*nats.Msg{m})
	if errors.Is(err, errConflict) { // another process has the cursor open
		return nil
	}
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.observed.at == last.at {
			c.see(r, at)
		}
	}
	return err
}

// store stores a commit. Dead letters, dispositions and new pages are stored with or before
// the record, and removals of pages with or after the record.
func (c *cursor) store(o *ownership, w *commit) error {
	for _, r := range w.done {
		o.staged.Add(r.From, r.To)
	}
	stores, removals := o.pages.update(c.j, c.name, o.staged)
	retained, copies, removedCopies := c.updateRetained(o, w)
	removals = append(removedCopies, removals...)
	batches := batches(slices.Concat(w.messages, copies, stores))
	for n, batch := range batches {
		r := c.current(o)
		if n == len(batches)-1 {
			r.Committed, r.Pages, r.Done = o.staged.Floor(), pageRuns(o.pages.stored), maps.Clone(o.pages.inline)
			c.mu.Lock()
			r.Open = o.openAfter(o.staged)
			c.mu.Unlock()
			r.Retained, r.RetainedThrough = retained, max(r.RetainedThrough, w.retainedThrough)
			some := min(len(removals), max(0, maxGroupMessages-len(batch)))
			batch, removals = append(batch, removals[:some]...), removals[some:]
		}
		if err := c.write(o, r, batch); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			o.staged, o.pages = c.done.Clone(), o.record.pages()
			return err
		}
	}
	c.mu.Lock()
	for _, r := range w.done {
		c.done.Add(r.From, r.To)
	}
	c.done.messages.Changed()
	o.out = slices.DeleteFunc(o.out, c.done.Has)
	if o.returned <= c.done.Floor() {
		o.reported = 0
	}
	if o.previousRead <= c.done.Floor() {
		o.reopened = 0
	}
	c.notify()
	c.mu.Unlock()
	for some := range slices.Chunk(removals, maxGroupMessages) {
		if err := c.write(o, c.current(o), some); err != nil {
			c.j.log.Debug("removing pages of a cursor", zap.String("sink", c.name), zap.Error(err))
		}
	}
	return nil
}

// openAfter returns the number of open events after a commit. The caller holds mu.
func (o *ownership) openAfter(done doneSet) (n uint64) {
	if o.returned > done.Floor() {
		for _, s := range o.out {
			if !done.Has(s) {
				n++
			}
		}
		n = max(n, o.reported)
	}
	if o.previousRead > done.Floor() {
		n += o.reopened
	}
	return n
}

// batches splits messages into groups that each fit one atomic batch beside a record. There is
// at least one group, maybe an empty one. A value of several messages stays in one group: the
// sequences of its messages are consecutive.
func batches(messages []*nats.Msg) (groups [][]*nats.Msg) {
	size, from := 0, 0
	for n := 0; n < len(messages); {
		end, bytes := n+1, len(messages[n].Data)
		parts, _ := strconv.Atoi(messages[n].Header.Get(partsHeader)) // absent for a value of one message
		for range min(parts, len(messages)-end) {
			bytes += len(messages[end].Data)
			end++
		}
		if n > from && (end-from > maxGroupMessages || size+bytes > maxGroupBytes) {
			groups = append(groups, messages[from:n:n])
			size, from = 0, n
		}
		size += bytes
		n = end
	}
	return append(groups, messages[from:len(messages):len(messages)])
}

// write stores a record after the last one, in one atomic batch with other messages. It
// repeats the write until the outcome is known or the ownership is over. If the error does
// not wrap ErrOwnershipLost, the write is not stored.
func (c *cursor) write(o *ownership, r cursorRecord, messages []*nats.Msg) error {
	r.Renewals, r.Token, r.Opened = o.record.Renewals+1, randomToken(), c.j.opts.Clock().UTC()
	m, err := c.j.recordMessage(c.name, r, o.at)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.tokens[1] = r.Token
	c.mu.Unlock()
	batch := slices.Concat(messages, []*nats.Msg{m})
	began, full := c.j.opts.boot(), false
	for wait := newWait(); o.ctx.Err() == nil; {
		// An answer that was lost with a leader must not cost the lease.
		try, cancel := o.ctx, func() {}
		if len(messages) == 0 {
			try, cancel = context.WithTimeout(o.ctx, c.j.opts.lease/4)
		}
		at, err := c.j.store(try, batch)
		cancel()
		if errors.Is(err, errConflict) {
			at, err = c.outcome(o, r)
		}
		switch {
		case err == nil:
			return c.acknowledge(o, r, at, began)
		case errors.Is(err, journal.ErrFull) && !full && c.j.makeRoom(o.ctx) == nil:
			full = true
			continue
		case errors.Is(err, journal.ErrFull) || errors.Is(err, errBroken):
			return err
		case errors.Is(err, journal.ErrOwnershipLost):
			c.releaseLocked(o)
			return err
		}
		c.j.log.Debug("writing the position of a cursor again", zap.String("sink", c.name), zap.Error(err))
		_ = sleep.For(o.ctx, wait.NextBackOff())
	}
	return journal.ErrOwnershipLost
}

// outcome reads which write the cluster has stored, after the cluster has refused a repeat.
// The error wraps ErrOwnershipLost if the write of another process is stored.
func (c *cursor) outcome(o *ownership, r cursorRecord) (at uint64, err error) {
	stored, at, err := c.j.cursorRecord(o.ctx, c.name)
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return 0, fmt.Errorf("%w: the record is missing", journal.ErrOwnershipLost)
	case err != nil:
		return 0, err
	case stored.Token == r.Token:
		return at, nil
	case stored.Token == o.record.Token:
		return 0, errLag // a deposed leader answers, or an attempt is still on its way
	}
	return 0, fmt.Errorf("%w: %s, epoch %d", journal.ErrOwnershipLost, stored.Owner, stored.Epoch)
}

// acknowledge extends the lease after a write.
func (c *cursor) acknowledge(o *ownership, r cursorRecord, at uint64, began time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o.record, o.at, o.renewed = r, at, began
	c.tokens[0] = r.Token
	c.see(r, at)
	if !c.holds(o) || o.ctx.Err() != nil {
		return journal.ErrOwnershipLost
	}
	o.lease.Reset(c.j.opts.lease - (c.j.opts.boot() - began))
	return nil
}

// take moves up to limit records out of the queue. A record that cannot be decoded stays in
// the queue with all later records.
func (o *ownership) take(limit int, done doneSet) (records []journal.Record, err error) {
	var decoder record.Decoder
	for len(o.queue) > 0 && len(records) < max(limit, 1) {
		d := o.queue[0]
		if d.seq > done.Floor() {
			r, err := decoder.Record(d.seq, d.value)
			if err != nil {
				if len(records) > 0 {
					break
				}
				return nil, fmt.Errorf("%w: reading: %w", errBroken, err)
			}
			records = append(records, r)
			if !done.Has(d.seq) {
				o.reported++
				if o.out = append(o.out, d.seq); len(o.out) > maxCounted {
					o.out = slices.Clone(o.out[maxCounted/2:])
				}
				if d.seq <= o.previousRead {
					o.reopened -= min(o.reopened, 1)
				}
			}
		}
		o.bytes -= len(d.value)
		o.returned = d.seq
		o.queue = o.queue[1:]
	}
	if o.returned >= o.previousRead {
		o.reopened = 0
	}
	return records, nil
}

// read reads the events after the committed sequence until ctx is done, and retries for
// ever.
func (c *cursor) read(ctx context.Context, o *ownership) {
	var failing time.Time
	for wait := newWait(); ctx.Err() == nil; {
		began := time.Now()
		events, err := uint64(0), c.readRetained(ctx, o)
		if err == nil {
			events, err = c.readOn(ctx, o)
		}
		if events > 0 || time.Since(began) > failingLogAfter {
			failing = time.Time{}
			wait.Reset()
		}
		if ctx.Err() != nil {
			return
		}
		failing = c.report(err, failing)
		_ = sleep.For(ctx, wait.NextBackOff())
	}
}

// readOn reads the events after the last read one through a consumer without state: the
// cluster keeps the consumer in memory and forgets the consumer when this process is gone.
// It returns the number of events that were read before the error.
func (c *cursor) readOn(ctx context.Context, o *ownership) (events uint64, err error) {
	if err := c.j.waitReady(ctx); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	asking, answered := context.WithTimeout(ctx, apiTimeout)
	consumer, err := c.j.js.CreateConsumer(asking, c.j.opts.Stream, jetstream.ConsumerConfig{
		Description: "reads for the sink " + c.name, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: messageOf(o.read) + 1,
		AckPolicy: jetstream.AckNonePolicy, FilterSubject: c.j.names.event(), MemoryStorage: true, Replicas: 1, InactiveThreshold: 5 * time.Second,
	})
	answered()
	if err != nil {
		return 0, err
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		if err := c.receive(ctx, o, m, events+1); err != nil {
			cancel(err)
			return
		}
		events++
	}, jetstream.PullMaxMessagesWithBytesLimit(readAhead/2, readAheadBytes/2), jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(time.Second),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { cancel(err) }))
	if err != nil {
		return 0, err
	}
	<-ctx.Done()
	consuming.Stop()
	<-consuming.Closed()
	return events, context.Cause(ctx)
}

// receive puts a message of the consumer in the queue, and waits for room.
func (c *cursor) receive(ctx context.Context, o *ownership, m jetstream.Msg, number uint64) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	if meta.Sequence.Consumer != number {
		return fmt.Errorf("message %d of the consumer follows message %d", meta.Sequence.Consumer, number-1)
	}
	value, err := c.j.whole(ctx, message{m.Subject(), meta.Sequence.Stream, m.Headers(), m.Data()})
	if err != nil {
		return err
	}
	return c.push(ctx, o, delivery{seqOf(meta.Sequence.Stream), value}, meta.NumPending)
}

// push puts an event in the queue, and waits for room. Unread is the number of events after
// the event.
func (c *cursor) push(ctx context.Context, o *ownership, d delivery, unread uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.seq <= o.read { // some servers begin a consumer no later than at the end of their copy
		return nil
	}
	o.queue = append(o.queue, d)
	o.bytes += len(d.value)
	c.broken = nil
	if o.read = d.seq; d.seq > o.previousRead {
		o.unread = unread
	}
	if len(o.queue) == 1 {
		c.notify()
	}
	for len(o.queue) >= readAhead/2 || o.bytes > readAheadBytes/2 {
		o.full = true
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			break
		}
	}
	o.full = false
	return nil
}

// count counts the events after the last read one while no new ones are read.
func (c *cursor) count(ctx context.Context, o *ownership) {
	for sleep.For(ctx, countInterval) == nil {
		c.mu.Lock()
		read, stale := max(o.read, o.previousRead), o.full || o.unread > 0
		c.mu.Unlock()
		if !stale {
			continue
		}
		n, err := c.j.eventsAfter(ctx, read)
		c.mu.Lock()
		if err == nil && read == max(o.read, o.previousRead) {
			o.unread = n
		}
		c.mu.Unlock()
	}
}
