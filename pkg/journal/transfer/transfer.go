// Package transfer migrates a journal from one engine to another: events, the dedupe window,
// cursors, dead letters, dispositions, quarantined requests and values.
//
// A transfer can be interrupted at any point, and run again until it is complete:
//
//  1. The target stores events in pages. The write of a page also stores the sequences of
//     the page in both journals and the progress of the transfer, atomically, so that no
//     page is stored twice.
//  2. The two journals have different sequences. All other data refers to events by
//     sequence, so it is migrated after the events.
//  3. All other data is small. A transfer that was interrupted there deletes the data from
//     the target and writes it again, so that the data is neither repeated nor outdated.
//  4. Until the end the target is marked as unfinished, and its engine refuses to open it,
//     so that no relay uses a partial journal.
//
// A transfer never changes the source.
package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Source is the journal that a transfer reads. No relay uses the journal meanwhile. One
// goroutine at a time uses a Source.
type Source interface {
	// Location describes the journal for users.
	Location() string

	// Range returns the sequences of the oldest and newest stored event and the number
	// of events. Without events oldest is greater than last.
	Range() (oldest, last journal.Seq, events uint64)

	// Events yields all events with a sequence of at least from, in order.
	Events(ctx context.Context, from journal.Seq) iter.Seq2[Event, error]

	// Keys yields the identity keys in the dedupe window. If a key is yielded twice, the
	// last one is valid.
	Keys(ctx context.Context) iter.Seq2[Key, error]

	// The following methods yield in the order of names and sequences. Values leaves out
	// the values of the engine itself.
	DeadLetters(ctx context.Context) iter.Seq2[Dead, error]
	Dispositions(ctx context.Context) iter.Seq2[Disposition, error]
	Quarantined(ctx context.Context) iter.Seq2[journal.QuarantinedRequest, error]
	Values(ctx context.Context) iter.Seq2[journal.KVEntry, error]
	Cursors(ctx context.Context) iter.Seq2[Cursor, error]

	// Unchanged returns an error if the journal was written since the Source was opened,
	// or if a relay uses the journal.
	Unchanged(ctx context.Context) error

	// Missing describes the data that cannot be migrated, as far as read.
	Missing() []string

	io.Closer
}

// Target is the journal that a transfer writes. One goroutine at a time uses a Target.
// After an error the data may be stored or not, and the method may be called again.
type Target interface {
	// Location describes the journal for users.
	Location() string

	// State returns the state of the last Append, or nil. State returns an error if the
	// journal holds data that is not from a transfer, or if a relay uses the journal.
	State(ctx context.Context) ([]byte, error)

	// Rows yields the rows of all Appends, in order.
	Rows(ctx context.Context) iter.Seq2[[]byte, error]

	// Fit returns how many of the first items one Append can store, at least one.
	Fit(items []Item) int

	// Append stores items after all stored items, and in the same atomic write the row and
	// the state that makeRow returns for the new sequences. An Append of a stored state
	// does nothing. Without items Append stores no row.
	Append(ctx context.Context, items []Item, makeRow func(seqs []journal.Seq) (row, state []byte)) error

	// Clear removes all data except events, rows and state.
	Clear(ctx context.Context) error

	// Put stores metadata, and replaces entries of the same name.
	Put(ctx context.Context, m Metadata) error

	// Finish removes the rows and the mark of an unfinished journal.
	Finish(ctx context.Context) error

	io.Closer
}

// Item is an event, or a reserved sequence.
type Item struct {
	Event     *Event      // nil reserves a sequence for an expired event
	SourceSeq journal.Seq // sequence in the source
}

// Event is a stored event.
type Event struct {
	Seq        journal.Seq
	Accepted   time.Time
	TargetSink string      // only sink of the event; empty is every sink
	OriginSeq  journal.Seq // sequence of the original event; 0 for an original
	// DeadLetterOf is the sink that refused the original of a copy of a dead letter.
	DeadLetterOf string
	Keys         []event.Key // set if the engine stores keys with their event
	Encoded      []byte      // encoding of package record
}

// Split decodes a record, and shares no memory with the record. Encoded contains the name of
// the source, because the target may store no keys.
func Split(s journal.Seq, value []byte) (Event, error) {
	r, encoded, err := record.Split(s, value)
	if err == nil {
		encoded, err = record.Sourced(encoded, r.Event.Keys)
	}
	if err != nil {
		return Event{}, fmt.Errorf("event %d: %w", s, err)
	}
	return Event{s, r.Accepted, r.TargetSink, r.OriginSeq, r.DeadLetterOf, r.Event.Keys, slices.Clone(encoded)}, nil
}

// Record encodes the event as a record.
func (e Event) Record() []byte {
	b := make([]byte, 8, 64+len(e.Encoded))
	if e.TargetSink != "" {
		b = record.AppendAddress(nil, e.TargetSink, e.OriginSeq)
	}
	if e.DeadLetterOf != "" {
		b = record.AppendDeadLetterOf(b, e.DeadLetterOf)
	}
	if len(e.Keys) > 0 {
		b = record.AppendKeys(b, e.Keys)
	}
	record.SetAccepted(b, e.Accepted)
	return append(b, e.Encoded...)
}

// sum distinguishes events with the same sequence in two journals.
func (e Event) sum() string {
	h := sha256.Sum256(append(fmt.Appendf(nil, "%d ", e.Accepted.UnixNano()), e.Encoded...))
	return hex.EncodeToString(h[:16])
}

// Key is an identity key in the dedupe window.
type Key struct {
	Key   event.Key
	First time.Time   // first receipt
	Seq   journal.Seq // event of the key; 0 if the event has expired
	ID    string      // CloudEvents id of the event
}

// Dead is a dead letter with its event. The journal may have removed the event itself.
type Dead struct {
	Sink   string
	Letter journal.DeadLetter
	Event  Event
}

// Disposition is a disposition of a sink.
type Disposition struct {
	Sink string
	journal.Disposition
}

// Cursor is the cursor of a sink or of a replay.
type Cursor struct {
	Name                string
	Committed, StartSeq journal.Seq
	Done                []journal.Range `json:"done,omitempty"` // done events after Committed
}

// Metadata is all data except events.
type Metadata struct {
	Keys         []Key
	Dead         []Dead
	Dispositions []Disposition
	Quarantined  []journal.QuarantinedRequest
	Values       []journal.KVEntry
	Cursors      []Cursor
}

// Options of a transfer.
type Options struct {
	// MoveEntry translates a value for the target: first translates the first sequence
	// of a range, last the last one. Nil leaves values unchanged.
	MoveEntry func(n journal.KVEntry, first, last func(journal.Seq) journal.Seq) (journal.KVEntry, error)
	// Progress is called after every page. Nil reports no progress.
	Progress func(what string, done, total uint64)
	// Page is the maximum number of events of one Append; 0 is 500.
	Page int
}

// Report counts the migrated data.
type Report struct {
	Events      uint64   `json:"events"`
	Keys        uint64   `json:"keys"`
	Dead        uint64   `json:"dead_letters"`
	Discarded   uint64   `json:"dispositions"`
	Quarantined uint64   `json:"quarantined"`
	Values      uint64   `json:"values"`
	Cursors     []Cursor `json:"cursors"` // positions in the target
	Missing     []string `json:"missing,omitempty"`
	Before      bool     `json:"before"` // an earlier run has completed the transfer
}

// state is the progress of a transfer, stored in the target.
type state struct {
	Version int         `json:"version"`
	From    string      `json:"from"`
	Page    int         `json:"page"`   // pages stored
	Events  uint64      `json:"events"` // events stored
	Last    journal.Seq `json:"last"`   // sequence of the newest stored event in the source
	Sum     string      `json:"sum"`    // sum of the newest stored event

	Done        bool    `json:"done"`
	Fingerprint string  `json:"fingerprint,omitempty"` // of the source at the end of the transfer
	Report      *Report `json:"report,omitempty"`
}

const stateVersion = 1

// pageBytes limits the size of one Append.
const pageBytes = 2 << 20

// transfer is one run of a transfer.
type transfer struct {
	src    Source
	dst    Target
	opts   Options
	state  state
	seqs   seqMap
	report Report
}

// Run migrates src to dst. After an error or a crash Run continues the transfer. Run does
// nothing if the transfer is complete.
func Run(ctx context.Context, src Source, dst Target, opts Options) (Report, error) {
	if opts.Page <= 0 {
		opts.Page = 500
	}
	if opts.Progress == nil {
		opts.Progress = func(string, uint64, uint64) {}
	}
	t := &transfer{src: src, dst: dst, opts: opts}
	r, err := t.run(ctx)
	if err != nil {
		return r, fmt.Errorf("migrating %s to %s: %w", src.Location(), dst.Location(), err)
	}
	return r, nil
}

func (t *transfer) run(ctx context.Context) (Report, error) {
	if err := t.resume(ctx); err != nil {
		return Report{}, err
	}
	if t.state.Done {
		return t.checkUnchanged(ctx)
	}
	if err := t.events(ctx); err != nil {
		return Report{}, err
	}
	t.report.Events = t.state.Events
	if err := t.metadata(ctx); err != nil {
		return Report{}, err
	}
	mark, err := t.fingerprint(ctx)
	if err == nil {
		err = t.src.Unchanged(ctx)
	}
	if err != nil {
		return Report{}, err
	}
	t.report.Missing = t.src.Missing()
	t.state.Done, t.state.Fingerprint, t.state.Report = true, mark, &t.report
	if err := t.dst.Append(ctx, nil, func([]journal.Seq) ([]byte, []byte) { return nil, t.state.encode() }); err != nil {
		return Report{}, err
	}
	return t.report, t.dst.Finish(ctx)
}

func (s state) encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // of numbers and strings
	}
	return b
}

// resume reads the progress of an earlier run.
func (t *transfer) resume(ctx context.Context) error {
	b, err := t.dst.State(ctx)
	if err != nil {
		return err
	}
	t.state = state{Version: stateVersion, From: t.src.Location()}
	if b == nil {
		return nil
	}
	if err := json.Unmarshal(b, &t.state); err != nil {
		return fmt.Errorf("reading how far it is: %w", err)
	}
	if t.state.Version != stateVersion {
		return fmt.Errorf("another version of postwire began the migration (format %d, this version has %d): continue with that version, or begin with an empty target", t.state.Version, stateVersion)
	}
	if err := t.sameSource(ctx); err != nil || t.state.Done {
		return err
	}
	for row, err := range t.dst.Rows(ctx) {
		if err == nil {
			err = t.seqs.read(row)
		}
		if err != nil {
			return fmt.Errorf("reading how far it is: %w", err)
		}
	}
	return nil
}

// Complete reports whether state, which Target.State has returned, is of a complete transfer
// of src, and src was not written since.
func Complete(ctx context.Context, src Source, state []byte) (bool, error) {
	t := &transfer{src: src}
	if len(state) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(state, &t.state); err != nil {
		return false, fmt.Errorf("reading the state of a migration: %w", err)
	}
	if !t.state.Done || t.state.Version != stateVersion {
		return false, nil
	}
	mark, err := t.fingerprint(ctx)
	return err == nil && mark == t.state.Fingerprint, err
}

// sameSource returns an error unless the newest event of the target is in the source.
func (t *transfer) sameSource(ctx context.Context) error {
	if t.state.Events == 0 {
		return nil
	}
	other := fmt.Errorf("the target holds events of another journal (%s): begin with an empty target", t.state.From)
	oldest, last, _ := t.src.Range()
	if t.state.Last < oldest || t.state.Last > last {
		return other
	}
	for e, err := range t.src.Events(ctx, t.state.Last) {
		if err != nil {
			return err
		}
		if e.Seq != t.state.Last || e.sum() != t.state.Sum {
			return other
		}
		break
	}
	return nil
}

// checkUnchanged runs if the transfer is already complete: the source must be unchanged.
func (t *transfer) checkUnchanged(ctx context.Context) (Report, error) {
	mark, err := t.fingerprint(ctx)
	if err != nil {
		return Report{}, err
	}
	if mark != t.state.Fingerprint {
		return Report{}, errors.New("the migration is complete, and the source was written after it: the target may be in use and is not changed; begin with an empty target")
	}
	r := *t.state.Report
	r.Before = true
	return r, t.dst.Finish(ctx)
}

// fingerprint changes when the stored data of the source changes.
func (t *transfer) fingerprint(ctx context.Context) (string, error) {
	h := sha256.New()
	_, last, _ := t.src.Range()
	fmt.Fprintln(h, last)
	for c, err := range t.src.Cursors(ctx) {
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, "cursor", c.Name, c.Committed, c.Done)
	}
	for d, err := range t.src.DeadLetters(ctx) {
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, "dead", d.Sink, d.Letter.Seq)
	}
	for q, err := range t.src.Quarantined(ctx) {
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, "quarantined", q.ID, q.Count)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// holes returns the sequences to reserve: those of expired events with a dead letter, and
// the first sequence, so that a sequence exists before every event.
func (t *transfer) holes(ctx context.Context) ([]journal.Seq, error) {
	oldest, _, _ := t.src.Range()
	var holes []journal.Seq
	if oldest > 1 {
		holes = append(holes, 1)
	}
	for d, err := range t.src.DeadLetters(ctx) {
		if err != nil {
			return nil, err
		}
		holes = append(holes, d.Letter.Seq) // events leaves out the sequences of stored events
	}
	slices.Sort(holes)
	return slices.Compact(holes), nil
}

// events stores the events that are not stored yet.
func (t *transfer) events(ctx context.Context) error {
	holes, err := t.holes(ctx)
	if err != nil {
		return err
	}
	_, _, total := t.src.Range()
	carried := t.seqs.last()
	t.opts.Progress("events", t.state.Events, total)
	p := page{t: t, total: total}
	free := func(before journal.Seq) error {
		for len(holes) > 0 && holes[0] < before {
			if holes[0] > carried {
				if err := p.add(ctx, Item{SourceSeq: holes[0]}, 0); err != nil {
					return err
				}
			}
			holes = holes[1:]
		}
		return nil
	}
	for e, err := range t.src.Events(ctx, carried+1) {
		if err != nil {
			return err
		}
		if err := free(e.Seq); err != nil {
			return err
		}
		if len(holes) > 0 && holes[0] == e.Seq {
			holes = holes[1:]
		}
		if len(p.items) > 0 && e.OriginSeq >= p.items[0].SourceSeq {
			if err := p.store(ctx); err != nil { // the sequence of the original must be known
				return err
			}
		}
		if e.OriginSeq != 0 {
			e.OriginSeq = t.seqs.floor(e.OriginSeq)
		}
		if err := p.add(ctx, Item{&e, e.Seq}, len(e.Encoded)); err != nil {
			return err
		}
	}
	if len(holes) > 0 {
		if err := free(holes[len(holes)-1] + 1); err != nil {
			return err
		}
	}
	return p.store(ctx)
}

// page is the next page of items.
type page struct {
	t     *transfer
	items []Item
	bytes int
	total uint64
}

func (p *page) add(ctx context.Context, i Item, size int) error {
	if len(p.items) == p.t.opts.Page || len(p.items) > 0 && p.bytes+size > pageBytes {
		if err := p.store(ctx); err != nil {
			return err
		}
	}
	p.items = append(p.items, i)
	p.bytes += size
	return nil
}

func (p *page) store(ctx context.Context) error {
	for rest := p.items; len(rest) > 0; {
		n := p.t.dst.Fit(rest)
		if err := p.act(ctx, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	p.items, p.bytes = p.items[:0], 0
	return nil
}

func (p *page) act(ctx context.Context, items []Item) error {
	next := p.t.state
	next.Page++
	for _, i := range items {
		if i.Event != nil {
			next.Events++
			next.Last, next.Sum = i.Event.Seq, i.Event.sum()
		}
	}
	var row []byte
	err := p.t.dst.Append(ctx, items, func(places []journal.Seq) ([]byte, []byte) {
		row = encodeRow(items, places)
		return row, next.encode()
	})
	if err != nil {
		return err
	}
	p.t.state = next
	p.t.opts.Progress("events", next.Events, p.total)
	return p.t.seqs.read(row)
}

// metadata stores all data except events.
func (t *transfer) metadata(ctx context.Context) error {
	if err := t.dst.Clear(ctx); err != nil {
		return err
	}
	err := each(ctx, t, "keys", t.src.Keys(ctx), &t.report.Keys, func(k Key) (Key, error) {
		k.Seq, _ = t.seqs.exact(k.Seq)
		return k, nil
	}, func(keys []Key) Metadata { return Metadata{Keys: keys} })
	if err != nil {
		return err
	}
	err = each(ctx, t, "dead letters", t.src.DeadLetters(ctx), &t.report.Dead, func(d Dead) (Dead, error) {
		at, ok := t.seqs.exact(d.Letter.Seq)
		if !ok {
			return d, fmt.Errorf("dead letter %d of sink %s is newer than the migrated events after it: begin with an empty target", d.Letter.Seq, d.Sink)
		}
		d.Letter.Seq, d.Event.Seq = at, at
		if d.Event.OriginSeq != 0 {
			d.Event.OriginSeq = t.seqs.floor(d.Event.OriginSeq)
		}
		return d, nil
	}, func(dead []Dead) Metadata { return Metadata{Dead: dead} })
	if err != nil {
		return err
	}
	var none uint64 // also counts dispositions of expired events
	err = each(ctx, t, "dispositions", t.src.Dispositions(ctx), &none, func(g Disposition) (Disposition, error) {
		g.From, g.To = t.seqs.ceil(g.From), t.seqs.floor(g.To)
		if g.RedeliveredAs != 0 {
			g.RedeliveredAs, _ = t.seqs.exact(g.RedeliveredAs)
		}
		return g, nil
	}, func(all []Disposition) Metadata {
		all = slices.DeleteFunc(all, func(g Disposition) bool { return g.From > g.To })
		t.report.Discarded += uint64(len(all))
		return Metadata{Dispositions: all}
	})
	if err != nil {
		return err
	}
	err = each(ctx, t, "quarantined", t.src.Quarantined(ctx), &t.report.Quarantined, func(q journal.QuarantinedRequest) (journal.QuarantinedRequest, error) {
		return q, nil
	}, func(all []journal.QuarantinedRequest) Metadata { return Metadata{Quarantined: all} })
	if err != nil {
		return err
	}
	err = each(ctx, t, "values", t.src.Values(ctx), &t.report.Values, func(n journal.KVEntry) (journal.KVEntry, error) {
		if t.opts.MoveEntry == nil {
			return n, nil
		}
		return t.opts.MoveEntry(n, t.seqs.ceil, t.seqs.floor)
	}, func(all []journal.KVEntry) Metadata { return Metadata{Values: all} })
	if err != nil {
		return err
	}
	var cursors uint64
	return each(ctx, t, "cursors", t.src.Cursors(ctx), &cursors, func(c Cursor) (Cursor, error) {
		c.Committed, c.StartSeq = t.seqs.floor(c.Committed), t.seqs.floor(c.StartSeq)
		var done []journal.Range
		for _, r := range c.Done {
			if r.From, r.To = t.seqs.ceil(r.From), t.seqs.floor(r.To); r.From <= r.To {
				done = append(done, r)
			}
		}
		c.Done = done
		t.report.Cursors = append(t.report.Cursors, c)
		return c, nil
	}, func(all []Cursor) Metadata { return Metadata{Cursors: all} })
}

// each converts and stores items, one page at a time.
func each[T any](ctx context.Context, t *transfer, what string, from iter.Seq2[T, error], count *uint64, become func(T) (T, error), things func([]T) Metadata) error {
	var some []T
	store := func() error {
		if len(some) == 0 {
			return nil
		}
		n := uint64(len(some))
		if err := t.dst.Put(ctx, things(some)); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		*count += n
		t.opts.Progress(what, *count, 0)
		some = nil
		return nil
	}
	for item, err := range from {
		if err == nil {
			item, err = become(item)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if some = append(some, item); len(some) == t.opts.Page {
			if err := store(); err != nil {
				return err
			}
		}
	}
	return store()
}
