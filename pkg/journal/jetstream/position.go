package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

// cursorRecord is the stored record of a cursor: its owner and its position. The record is
// one message of the stream; each write expects the previous write, so that of two
// processes one succeeds. The done events after Committed are in pages of the record, and in
// pages under subjects of their own, which only a batch with the record writes. A sequence
// is done if a page of either kind has it.
type cursorRecord struct {
	Owner    string    `json:"owner"`    // empty if no process owns the cursor
	Since    time.Time `json:"since"`    // beginning of the ownership
	Epoch    uint64    `json:"epoch"`    // number of ownerships
	Renewals uint64    `json:"renewals"` // number of writes
	Token    uint64    `json:"token"`    // random number of the last write
	Opened   time.Time `json:"opened"`   // newest time at which a process is known to have had the cursor open

	Committed journal.Seq `json:"committed"`
	StartSeq  journal.Seq `json:"start"`
	Read      journal.Seq `json:"read"` // newest event that Next returned
	Open      uint64      `json:"open"` // events through Read that are not done

	// Pages of messages, see doneSet.
	Done  map[uint64][]byte `json:"done,omitempty"`  // pages by number
	Pages [][2]uint64       `json:"pages,omitempty"` // runs of numbers of pages under subjects

	Retained        []retainedEvent `json:"retained,omitempty"`         // in order
	RetainedThrough journal.Seq     `json:"retained_through,omitempty"` // sequence through which all open events are retained
}

// Limits of the pages of a record, beyond which a commit moves all of them to subjects in
// an atomic batch. An atomic batch costs the cluster about ten times a single message.
const (
	maxInlineBytes = 8 << 10
	maxStalePages  = 64 // pages under subjects through the committed sequence
)

// inUseFor is how long after its last write an owned record counts as in use.
const inUseFor = 10 * time.Second

// position returns the position, without done ranges and lag.
func (r cursorRecord) position(name string, now time.Time) journal.Position {
	return journal.Position{Name: name, Committed: r.Committed, StartSeq: r.StartSeq, InUse: r.Owner != "" && now.Sub(r.Opened) < inUseFor}
}

// pages are the pages of a cursor: those in the record, and the numbers of those under
// subjects.
type pages struct {
	inline map[uint64][]byte
	stored map[uint64]bool
}

func (r cursorRecord) pages() pages {
	p := pages{inline: maps.Clone(r.Done), stored: pageNumbers(r.Pages)}
	if p.inline == nil {
		p.inline = map[uint64][]byte{}
	}
	return p
}

// update takes over the changed pages of a set, and returns the messages that move pages to
// subjects and that remove them.
func (p *pages) update(j *Journal, name string, set doneSet) (stores, removals []*nats.Msg) {
	for _, number := range set.messages.Changed() {
		if page := set.messages.Page(number); page != nil {
			p.inline[number] = page
		} else {
			delete(p.inline, number)
		}
	}
	size := 0
	for _, page := range p.inline {
		size += len(page) + 16
	}
	var stale []uint64
	for number := range p.stored {
		if (number+1)*seqset.PageSize-1 <= messageOf(set.Floor()) {
			stale = append(stale, number)
		}
	}
	if size > maxInlineBytes {
		for _, number := range slices.Sorted(maps.Keys(p.inline)) {
			p.stored[number] = true
			stores = append(stores, j.messagesFor(j.names.done(name, number), p.inline[number])...)
		}
		clear(p.inline)
	}
	if len(stale) > maxStalePages {
		for _, number := range stale {
			delete(p.stored, number)
			removals = append(removals, removing(j.names.done(name, number)))
		}
	}
	return stores, removals
}

// pageRuns encodes page numbers as runs.
func pageRuns(pages map[uint64]bool) (runs [][2]uint64) {
	for _, number := range slices.Sorted(maps.Keys(pages)) {
		if n := len(runs); n > 0 && runs[n-1][1]+1 == number {
			runs[n-1][1] = number
		} else {
			runs = append(runs, [2]uint64{number, number})
		}
	}
	return runs
}

// pageNumbers decodes runs of page numbers.
func pageNumbers(runs [][2]uint64) map[uint64]bool {
	pages := map[uint64]bool{}
	for _, run := range runs {
		for number := run[0]; number <= run[1]; number++ {
			pages[number] = true
		}
	}
	return pages
}

// recordMessage returns the message that replaces the record in the message at.
func (j *Journal) recordMessage(name string, r cursorRecord, at uint64) (*nats.Msg, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	m := nats.NewMsg(j.names.cursor(name))
	m.Data = value
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	expect(m, at)
	return m, nil
}

// cursorRecord reads the record of a cursor from the leader of the stream, with the
// sequence of its message. Its error may wrap journal.ErrNotFound.
func (j *Journal) cursorRecord(ctx context.Context, name string) (r cursorRecord, at uint64, err error) {
	e, err := j.entry(ctx, j.names.cursor(name))
	if err != nil {
		return r, 0, err
	}
	if err := json.Unmarshal(e.value, &r); err != nil {
		return r, 0, fmt.Errorf("%w: %s: %w", errBroken, e.subject, err)
	}
	return r, e.at, nil
}

// cursorNames returns the names of all cursors.
func (j *Journal) cursorNames(ctx context.Context) (names []string, err error) {
	subjects, err := j.subjects(ctx, j.names.cursors())
	for _, subject := range subjects {
		names = append(names, last(subject))
	}
	slices.Sort(names)
	return names, err
}

// cursorRecords reads the records of all cursors, or fails.
func (j *Journal) cursorRecords(ctx context.Context) (map[string]cursorRecord, error) {
	names, err := j.cursorNames(ctx)
	if err != nil {
		return nil, err
	}
	records := map[string]cursorRecord{}
	for _, name := range names {
		r, _, err := j.cursorRecord(ctx, name)
		if errors.Is(err, journal.ErrNotFound) {
			continue // deleted
		}
		if err != nil {
			return nil, fmt.Errorf("cursor %s: %w", name, err)
		}
		records[name] = r
	}
	return records, nil
}

// doneEvents reads the done events of a record whose message is at a sequence. The answer
// with the pages contains the record or a later one, which proves that the answering server
// does not lag behind the record.
func (j *Journal) doneEvents(ctx context.Context, name string, r cursorRecord, at uint64) (doneSet, error) {
	const maxPages = 256
	set := doneThrough(r.Committed)
	record := j.names.cursor(name)
	for numbers := range slices.Chunk(slices.Sorted(maps.Keys(pageNumbers(r.Pages))), maxPages) {
		subjects := []string{record}
		for _, number := range numbers {
			subjects = append(subjects, j.names.done(name, number))
		}
		messages, err := j.lastOf(ctx, subjects)
		if err != nil {
			return doneSet{}, err
		}
		found, fresh := 0, false
		for _, m := range messages {
			switch {
			case m.subject == record:
				fresh = m.seq >= at
			case m.header.Get(removedHeader) == "":
				number, err := strconv.ParseUint(last(m.subject), 10, 64)
				if err == nil {
					err = set.messages.Load(number, m.data)
				}
				if err != nil {
					return doneSet{}, fmt.Errorf("%w: %s: %w", errBroken, m.subject, err)
				}
				found++
			}
		}
		if !fresh || found < len(numbers) {
			return doneSet{}, errLag
		}
	}
	for number, page := range r.Done {
		if err := set.messages.Load(number, page); err != nil {
			return doneSet{}, fmt.Errorf("%w: %s: %w", errBroken, record, err)
		}
	}
	return set, nil
}

// eventsAfter returns the number of stored events after a sequence. A server that lags
// behind may answer.
func (j *Journal) eventsAfter(ctx context.Context, s journal.Seq) (uint64, error) {
	body, err := json.Marshal(struct {
		Seq     uint64 `json:"seq"`
		NextFor string `json:"next_by_subj"`
		Batch   int    `json:"batch"` // the answer to a batch has the number of further events
	}{messageOf(s) + 1, j.names.event(), 1})
	if err != nil {
		return 0, err
	}
	ctx, cancel := j.ask(ctx)
	defer cancel()
	m, err := j.conn.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+j.opts.Stream, body)
	if err != nil {
		return 0, err
	}
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return 0, nil
	default:
		return 0, fmt.Errorf("the cluster answers %s %s", status, m.Header.Get("Description"))
	}
	further, err := strconv.ParseUint(m.Header.Get(numPendingHeader), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the cluster's answer: %w", err)
	}
	return further + 1, nil
}

// storedPosition reads a position with its done ranges and its lag.
func (j *Journal) storedPosition(ctx context.Context, name string) (p journal.Position, err error) {
	r, at, err := j.cursorRecord(ctx, name)
	if err != nil {
		return p, err
	}
	done, err := j.doneEvents(ctx, name, r, at)
	if err != nil {
		return p, err
	}
	unread, err := j.eventsAfter(ctx, r.Read)
	if err != nil {
		return p, err
	}
	p = r.position(name, j.opts.Clock())
	p.Done, p.Lag = slices.Collect(done.Ranges()), r.Open+unread
	return p, nil
}

// Cursors implements journal.Journal.
func (j *Journal) Cursors(ctx context.Context) (all []journal.Position, err error) {
	names, err := j.cursorNames(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing cursors: %w", err)
	}
	for _, name := range names {
		var p journal.Position
		err := j.retry(ctx, func(ctx context.Context) (err error) {
			p, err = j.storedPosition(ctx, name)
			return err
		})
		if errors.Is(err, journal.ErrNotFound) {
			continue // deleted
		}
		if err != nil {
			return nil, fmt.Errorf("reading cursor %s: %w", name, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// DeleteCursor implements journal.Journal.
func (j *Journal) DeleteCursor(ctx context.Context, name string) error {
	j.mu.Lock()
	_, open := j.cursors[name]
	j.mu.Unlock()
	if open {
		return fmt.Errorf("deleting cursor %s: it is open", name)
	}
	// A page or a copy without a record is never read.
	for _, subject := range []string{j.names.cursor(name), j.names.donePages(name), j.names.allRetained(name), j.names.part(j.names.allRetained(name))} {
		err := j.retry(ctx, func(ctx context.Context) error {
			s, err := j.js.Stream(ctx, j.opts.Stream)
			if err != nil {
				return err
			}
			return s.Purge(ctx, jetstream.WithPurgeSubject(subject))
		})
		if err != nil {
			return fmt.Errorf("deleting cursor %s: %w", name, err)
		}
	}
	return nil
}
