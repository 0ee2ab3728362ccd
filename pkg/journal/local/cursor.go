package local

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

// maxReadBytes limits the size of the records of one Next.
const maxReadBytes = 8 << 20

// cursor implements journal.Cursor.
type cursor struct {
	j      *Journal
	name   string
	began  atomic.Uint64
	placed bool        // the position is stored
	staged *seqset.Set // done events, with those of a Commit that runs

	mu   sync.RWMutex
	next journal.Seq // first sequence of the next Next
	done *seqset.Set // done events whose Commit is on stable storage
}

// Reader implements journal.Journal.
func (j *Journal) Reader(ctx context.Context, name string, start journal.Start) (journal.Cursor, error) {
	c := &cursor{j: j, name: name, staged: seqset.At(0), done: seqset.At(0)}
	j.mu.Lock()
	if _, ok := j.cursors[name]; ok {
		j.mu.Unlock()
		return nil, fmt.Errorf("opening cursor %s: it is open already", name)
	}
	// From now on expiry waits for the cursor.
	j.cursors[name] = c
	delete(j.pins, name)
	j.mu.Unlock()

	if err := c.place(ctx, start); err != nil {
		return nil, errors.Join(fmt.Errorf("opening cursor %s: %w", name, err), c.Close())
	}
	c.placed = true
	return c, nil
}

// place reads the position of the cursor, and stores the position of a new cursor.
func (c *cursor) place(ctx context.Context, start journal.Start) error {
	known := false
	var committed, began, repaired journal.Seq
	var done *seqset.Set
	err := c.j.read(ctx, func(st *store) (err error) {
		if repaired, err = st.number(metaRepairedKey(), 0); err != nil {
			return err
		}
		value, err := st.get(cursorKey(c.name))
		if errors.Is(err, journal.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		known = true
		if committed, began, err = decodeCursor(value); err != nil {
			return err
		}
		done, err = st.doneEvents(ctx, c.name, committed)
		return err
	})
	if err != nil {
		return err
	}
	c.j.mu.Lock()
	oldest, first, durable, kept := c.j.oldest, c.j.first(), c.j.durable, slices.Clone(c.j.retained.seqs)
	c.j.mu.Unlock()
	switch {
	case known:
	case repaired >= oldest:
		// A repair may have lost the position.
		c.j.log.Warn("a repair lost positions of sinks, and this sink has none; it begins at the oldest event that is stored",
			zap.String("sink", c.name), zap.Uint64("oldest", uint64(oldest)))
		committed = oldest - 1
		began = committed
	default:
		committed = min(max(journal.Seq(start), first-1), durable)
		began = committed
	}
	c.next = committed + 1
	c.began.Store(uint64(began))
	if done == nil {
		done = seqset.At(committed)
	}
	staged := done.Clone()
	if committed+1 < oldest {
		if missed := c.passRemoved(oldest, kept, staged, done); missed > 0 && known {
			c.j.log.Warn("events passed their retention while no sink of this name was configured; it goes on at the oldest that is stored",
				zap.String("sink", c.name), zap.Uint64("events", missed), zap.Uint64("first_gone", uint64(committed+1)), zap.Uint64("oldest", uint64(oldest)))
		}
		c.next = done.Floor() + 1
	}
	c.mu.Lock()
	c.staged, c.done = staged, done
	c.mu.Unlock()
	if known {
		return nil
	}
	// Without this write a restart would begin a new sink later.
	return c.Commit(ctx, journal.Progress{})
}

// passRemoved adds the events that are not stored any more to sets of done events, and
// returns the number of these events that were not done.
func (c *cursor) passRemoved(oldest journal.Seq, kept []journal.Seq, sets ...*seqset.Set) (missed uint64) {
	from := sets[0].Floor() + 1
	pass := func(to journal.Seq) {
		if from <= to {
			missed += sets[0].Missing(from, to)
			for _, set := range sets {
				set.Add(from, to)
			}
		}
	}
	for _, s := range kept {
		if s >= from && s < oldest {
			pass(s - 1)
			from = s + 1
		}
	}
	pass(oldest - 1)
	return missed
}

// doneEvents reads the done events of a cursor.
func (st *store) doneEvents(ctx context.Context, name string, committed journal.Seq) (*seqset.Set, error) {
	done := seqset.At(committed)
	prefix := sinkPrefix(doneSpace, name)
	for _, err := range entries(ctx, st, prefix, prefix, func(key, page []byte) (struct{}, error) {
		return struct{}{}, done.Load(uint64(seqOf(key)), page)
	}) {
		if err != nil {
			return nil, err
		}
	}
	return done, nil
}

// donePages returns the entries of the changed pages of a set of done events. A removed page
// has no value.
func donePages(name string, done *seqset.Set) (numbers []uint64, pages []keyValue) {
	numbers = done.Changed()
	for _, number := range numbers {
		key := sinkKey(doneSpace, journal.DeliveryID{Sink: name, Seq: journal.Seq(number)})
		pages = append(pages, keyValue{key, done.Page(number)})
	}
	return numbers, pages
}

// Cursors implements journal.Journal.
func (j *Journal) Cursors(ctx context.Context) (all []journal.Position, err error) {
	j.mu.Lock()
	oldest, last := j.oldest, j.durable
	open := slices.Collect(maps.Keys(j.cursors))
	j.mu.Unlock()
	err = j.read(ctx, func(st *store) error {
		all = nil
		for p, err := range entries(ctx, st, []byte{cursorSpace}, []byte{cursorSpace}, func(key, value []byte) (p journal.Position, err error) {
			p.Name = string(key[1:])
			p.Committed, p.StartSeq, err = decodeCursor(value)
			return p, err
		}) {
			if err != nil {
				return err
			}
			p.InUse = slices.Contains(open, p.Name)
			done, err := st.doneEvents(ctx, p.Name, p.Committed)
			if err != nil {
				return err
			}
			p.Done = slices.Collect(done.Ranges())
			p.Lag = done.Missing(oldest, last)
			all = append(all, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing cursors: %w", err)
	}
	return all, nil
}

// DeleteCursor implements journal.Journal.
func (j *Journal) DeleteCursor(ctx context.Context, name string) error {
	j.mu.Lock()
	_, open := j.cursors[name]
	j.mu.Unlock()
	if open {
		return fmt.Errorf("forgetting cursor %s: it is open", name)
	}
	pages := sinkPrefix(doneSpace, name)
	if err := j.change(ctx, func(g *group) error {
		return errors.Join(g.delete(cursorKey(name)), g.deleteRange(pages, after(pages)))
	}); err != nil {
		return fmt.Errorf("forgetting cursor %s: %w", name, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.pins, name)
	return nil
}

// pin has the done events of a cursor that is not open. For a while it keeps its events: a relay
// opens its cursors shortly after the journal, and closes and opens a cursor when the
// configuration of its sink changes.
type pin struct {
	done  *seqset.Set
	until time.Time
}

const pinned = 5 * time.Minute

// pinAll pins the stored cursors.
func (j *Journal) pinAll(ctx context.Context) error {
	positions, err := j.Cursors(ctx)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, p := range positions {
		j.pins[p.Name] = pin{seqset.Of(p.Committed, p.Done), j.opts.Clock().Add(pinned)}
	}
	return nil
}

// deliveredThrough returns the newest sequence that every open or pinned cursor has passed. The caller
// holds mu.
func (j *Journal) deliveredThrough() journal.Seq {
	through := j.durable
	j.doneSets(func(done *seqset.Set) bool {
		through = min(through, done.Floor())
		return true
	})
	return through
}

// read runs do on the store, and waits while the store is reopened.
func (j *Journal) read(ctx context.Context, do func(*store) error) error {
	for {
		j.mu.Lock()
		st, changed, closed := j.store, j.changed, j.closed
		if st != nil {
			st.users.Add(1)
		}
		j.mu.Unlock()
		if st != nil {
			err := do(st)
			st.users.Done()
			if err == nil || st.guard.failure() == nil {
				return err
			}
		}
		if closed {
			return journal.ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reach waits until the event at want is on stable storage, and returns the newest sequence
// on stable storage.
func (j *Journal) reach(ctx context.Context, want journal.Seq) (journal.Seq, error) {
	for {
		j.mu.Lock()
		durable, changed, closed := j.durable, j.changed, j.closed
		j.mu.Unlock()
		if closed {
			return 0, journal.ErrClosed
		}
		if durable >= want {
			return durable, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Next implements journal.Cursor.
func (c *cursor) Next(ctx context.Context, limit int) ([]journal.Record, error) {
	c.mu.RLock()
	next := c.next
	c.mu.RUnlock()
	through, err := c.j.reach(ctx, next)
	if err != nil {
		return nil, err
	}
	records := c.j.tail.read(next, through, limit)
	if len(records) == 0 {
		records, err = c.j.readFrom(ctx, next, through, limit)
	}
	if err != nil {
		return nil, err
	}
	if len(records) == 0 { // a repair found all events so far lost
		c.advance(through + 1)
		return c.Next(ctx, limit)
	}
	c.advance(records[len(records)-1].Seq + 1)
	return records, nil
}

// advance moves the first sequence of the next Next.
func (c *cursor) advance(next journal.Seq) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = max(c.next, next)
}

// Commit implements journal.Cursor.
func (c *cursor) Commit(ctx context.Context, p journal.Progress) error {
	letters, copies, err := c.deadLetters(ctx, p.Undelivered)
	if err != nil {
		return fmt.Errorf("committing %s: %w", c.name, err)
	}
	for _, r := range p.Done {
		c.staged.Add(r.From, r.To)
	}
	committed := c.staged.Floor()
	changed, pages := donePages(c.name, c.staged)
	err = c.j.change(ctx, func(g *group) error {
		for _, l := range letters {
			if err := g.set(l.key, l.value); err != nil {
				return err
			}
		}
		for _, letter := range copies {
			g.appendCopy(letter)
		}
		for _, u := range p.Discarded {
			if err := g.recordDisposition(c.name, u); err != nil {
				return err
			}
		}
		for _, page := range pages {
			change := g.delete
			if page.value != nil {
				change = func(key []byte) error { return g.set(key, page.value) }
			}
			if err := change(page.key); err != nil {
				return err
			}
		}
		return g.set(cursorKey(c.name), encodeCursor(committed, c.StartSeq()))
	})
	if err != nil {
		c.staged.Change(changed)
		return fmt.Errorf("committing %s at %d: %w", c.name, committed, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range p.Done {
		c.done.Add(r.From, r.To)
	}
	c.done.Changed() // staged is what is stored
	c.next = max(c.next, committed+1)
	return nil
}

// keyValue is an entry of the index.
type keyValue struct{ key, value []byte }

// letterCopy is the copy of a dead letter for another sink, encoded and decoded.
type letterCopy struct {
	value []byte
	journal.Record
}

// appendCopy stages the copy of a dead letter as a new event.
func (g *group) appendCopy(l letterCopy) {
	// The store of an earlier attempt may still use the value.
	value := slices.Clone(l.value)
	g.appendRecord(value)
	l.Seq, l.Accepted = g.last, g.time()
	g.appended = append(g.appended, sized{l.Record, len(value)})
}

// deadLetters returns the entries of dead letters, with copies of their events, and the
// copies for further sinks.
func (c *cursor) deadLetters(ctx context.Context, undelivered journal.Undelivered) (letters []keyValue, copies []letterCopy, err error) {
	for _, d := range undelivered.Dead {
		letter, err := json.Marshal(d)
		if err != nil {
			return nil, nil, err
		}
		var event []byte
		err = c.j.read(ctx, func(st *store) (err error) {
			event, err = st.value(d.Seq)
			return err
		})
		if errors.Is(err, journal.ErrNotFound) {
			c.j.log.Error("the event of a dead letter is not in the journal any more; the dead letter is discarded",
				zap.String("sink", c.name), zap.Uint64("seq", uint64(d.Seq)), zap.String("reason", d.Reason))
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("event %d of a dead letter: %w", d.Seq, err)
		}
		id := journal.DeliveryID{Sink: cmp.Or(undelivered.Sink, c.name), Seq: d.Seq}
		letters = append(letters, keyValue{sinkKey(deadSpace, id), joinDead(letter, event)})
		if d.CopyTo == "" {
			continue
		}
		value, err := record.CopyDeadLetter(id.Sink, d, event)
		if err != nil {
			return nil, nil, fmt.Errorf("copying the dead letter %d for sink %s: %w", d.Seq, d.CopyTo, err)
		}
		decoded, err := record.Decode(d.Seq, value)
		if err != nil {
			return nil, nil, fmt.Errorf("copying the dead letter %d for sink %s: %w", d.Seq, d.CopyTo, err)
		}
		copies = append(copies, letterCopy{value, decoded})
	}
	return letters, copies, nil
}

func encodeCursor(committed, began journal.Seq) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(committed)), uint64(began))
}

func decodeCursor(value []byte) (committed, began journal.Seq, err error) {
	r := &record.Reader{B: value}
	committed, began = journal.Seq(r.Uint64()), journal.Seq(r.Uint64())
	return committed, began, r.Err
}

// StartSeq implements journal.Cursor.
func (c *cursor) StartSeq() journal.Seq { return journal.Seq(c.began.Load()) }

// Committed implements journal.Cursor.
func (c *cursor) Committed() journal.Seq {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.done.Floor()
}

// Done implements journal.Cursor.
func (c *cursor) Done(s journal.Seq) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.done.Has(s)
}

// Lag implements journal.Cursor.
func (c *cursor) Lag() uint64 {
	last := c.j.Last() // before the lock: Journal.mu is locked first
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.done.Missing(c.done.Floor()+1, last)
}

// OwnershipLost implements journal.Cursor: one process uses this journal.
func (c *cursor) OwnershipLost() <-chan struct{} { return nil }

// Owner implements journal.Cursor.
func (c *cursor) Owner() journal.Owner { return journal.Owner{Name: c.j.opts.Name, Local: true} }

// Close implements io.Closer.
func (c *cursor) Close() error {
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	if c.j.cursors[c.name] == c {
		delete(c.j.cursors, c.name)
		if c.placed {
			c.mu.RLock()
			c.j.pins[c.name] = pin{c.done.Clone(), c.j.opts.Clock().Add(pinned)}
			c.mu.RUnlock()
		}
	}
	return nil
}
