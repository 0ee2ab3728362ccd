// Package transfer carries a journal from one engine into another: events that
// are stored, the window, cursors, and what was set aside.
//
// A transfer may break off at any point, and ends the same when it is run again:
//
//  1. Events are stored in pages, and with each page, as one act, where the page
//     stands in both journals and how far the transfer is. A page that is stored
//     is therefore known as stored, and none is stored twice.
//  2. Places differ between the journals. Everything else names events by their
//     places, so it follows when all events have theirs.
//  3. It is little beside the events: of a transfer that broke off in it, it is
//     cleared and written anew, so that nothing of it is there twice or is older
//     than the source.
//  4. Until the end the target is marked as unfinished, and its engine does not
//     open it: no relay can work on half of a journal.
//
// The source is only read.
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

// Source is a journal that no relay uses, to be read. It may be used by one
// goroutine.
type Source interface {
	// Location says, for people, which journal it is.
	Location() string

	// Range is the place of the oldest event that is stored and of the newest,
	// and how many there are. Where there is none, oldest is behind last.
	Range() (oldest, last journal.Seq, events uint64)

	// Events yields the events from a place on, in order and with none left out.
	Events(ctx context.Context, from journal.Seq) iter.Seq2[Event, error]

	// Keys yields the identity keys inside the dedupe window. The last one
	// counts where one is yielded again.
	Keys(ctx context.Context) iter.Seq2[Key, error]

	// The rest is yielded in the order of its names and places. Notes are those
	// of the relay; what the engine itself notes is left out.
	DeadLetters(ctx context.Context) iter.Seq2[Dead, error]
	Dispositions(ctx context.Context) iter.Seq2[Disposition, error]
	Quarantined(ctx context.Context) iter.Seq2[journal.QuarantinedRequest, error]
	Values(ctx context.Context) iter.Seq2[journal.KVEntry, error]
	Cursors(ctx context.Context) iter.Seq2[Cursor, error]

	// Unchanged returns an error if something has been written since it was
	// opened, or a relay uses it.
	Unchanged(ctx context.Context) error

	// Missing says what there is that cannot be carried, as far as was read.
	Missing() []string

	io.Closer
}

// Target is the journal that a transfer goes into. It may be used by one
// goroutine. Each method may be called again after an error, which leaves open
// what was stored.
type Target interface {
	// Location says, for people, which journal it is.
	Location() string

	// State returns what Append was given last, or nil. It refuses a journal
	// that holds anything which no transfer has stored, and one that a relay
	// uses.
	State(ctx context.Context) ([]byte, error)

	// Rows yields the rows that Append was given, in order.
	Rows(ctx context.Context) iter.Seq2[[]byte, error]

	// Fit is how many of the first of items one act can take, and at least one.
	Fit(items []Item) int

	// Append stores items in order behind all that there are, and with them, as
	// one act, the row and the state that makeRow returns for their sequences. The same
	// state is stored once, however often it is appended. Without items there
	// is no row.
	Append(ctx context.Context, items []Item, makeRow func(seqs []journal.Seq) (row, state []byte)) error

	// Clear removes all but the events, the rows and the state.
	Clear(ctx context.Context) error

	// Put stores things, in the place of those of the same name.
	Put(ctx context.Context, t Metadata) error

	// Finish removes the rows, and lets the journal be opened.
	Finish(ctx context.Context) error

	io.Closer
}

// Item is what takes a place.
type Item struct {
	Event     *Event      // nil keeps the place free, for an event that is stored no more
	SourceSeq journal.Seq // its place in the source
}

// Event is an event as it is stored.
type Event struct {
	Seq        journal.Seq
	Accepted   time.Time
	TargetSink string      // the sink it is for; empty is every sink
	OriginSeq  journal.Seq // where it was first; 0 is here
	Keys       []event.Key // where the engine keeps them with their event
	Encoded    []byte      // as package record encodes it
}

// Split takes a record apart, and shares no memory with it. What only the keys
// tell, the source, stands in Encoded too: a target may keep no keys.
func Split(s journal.Seq, value []byte) (Event, error) {
	r, encoded, err := record.Split(s, value)
	if err == nil {
		encoded, err = record.Sourced(encoded, r.Event.Keys)
	}
	if err != nil {
		return Event{}, fmt.Errorf("event %d: %w", s, err)
	}
	return Event{s, r.Accepted, r.TargetSink, r.OriginSeq, r.Event.Keys, slices.Clone(encoded)}, nil
}

// Record is what Split takes apart.
func (e Event) Record() []byte {
	b := make([]byte, 8, 64+len(e.Encoded))
	if e.TargetSink != "" {
		b = record.AppendAddress(nil, e.TargetSink, e.OriginSeq)
	}
	if len(e.Keys) > 0 {
		b = record.AppendKeys(b, e.Keys)
	}
	record.SetAccepted(b, e.Accepted)
	return append(b, e.Encoded...)
}

// sum tells events apart that stand at the same place of two journals.
func (e Event) sum() string {
	h := sha256.Sum256(append(fmt.Appendf(nil, "%d ", e.Accepted.UnixNano()), e.Encoded...))
	return hex.EncodeToString(h[:16])
}

// Key is an identity key that counts.
type Key struct {
	Key   event.Key
	First time.Time   // when it was seen first
	Seq   journal.Seq // the event that it stands for; 0 is none that is stored
	ID    string      // of its CloudEvent
}

// Dead is a dead letter with its event, which may be stored no more.
type Dead struct {
	Sink   string
	Letter journal.DeadLetter
	Event  Event
}

// Disposition is what a sink was not given.
type Disposition struct {
	Sink string
	journal.Disposition
}

// Cursor is the place of a sink, or of a replay.
type Cursor struct {
	Name                string
	Committed, StartSeq journal.Seq
}

// Metadata are all that is not an event.
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
	// MoveEntry makes of a note what it is to be in the target: first maps the
	// place of the first event of a range, last that of the last one. Nil
	// leaves notes as they are.
	MoveEntry func(n journal.KVEntry, first, last func(journal.Seq) journal.Seq) (journal.KVEntry, error)
	// Progress is told how far it is, every page. Nil is nobody.
	Progress func(what string, done, total uint64)
	// Page is the most events of one act; 0 is 500.
	Page int
}

// Report says what was carried.
type Report struct {
	Events      uint64   `json:"events"`
	Keys        uint64   `json:"keys"`
	Dead        uint64   `json:"dead_letters"`
	Discarded   uint64   `json:"given_up"`
	Quarantined uint64   `json:"quarantined"`
	Values      uint64   `json:"notes"`
	Cursors     []Cursor `json:"cursors"` // their places in the target
	Missing     []string `json:"missing,omitempty"`
	Before      bool     `json:"before"` // it had been carried before, and nothing was done
}

// state is what a target keeps of a transfer.
type state struct {
	Version int         `json:"version"`
	From    string      `json:"from"`
	Page    int         `json:"page"`   // pages stored
	Events  uint64      `json:"events"` // events stored
	Last    journal.Seq `json:"last"`   // place of the newest of them in the source
	Sum     string      `json:"sum"`    // of that one

	Done        bool    `json:"done"`
	Fingerprint string  `json:"mark,omitempty"` // of the source, when it was done
	Report      *Report `json:"report,omitempty"`
}

const stateVersion = 1

// pageBytes bounds one act.
const pageBytes = 2 << 20

// transfer is one run.
type transfer struct {
	src    Source
	dst    Target
	opts   Options
	state  state
	seqs   seqMap
	report Report
}

// Run carries src into dst. It may be run again after it has failed, or has been
// killed, and goes on; when all has been carried it does nothing more.
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
		return r, fmt.Errorf("carrying %s into %s: %w", src.Location(), dst.Location(), err)
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

// resume reads how far an earlier run has got.
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
		return fmt.Errorf("it was begun by another version of postwire (%d, this one is %d): go on with that one, or begin with an empty target", t.state.Version, stateVersion)
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

// sameSource makes sure that what has been carried came out of this source: the
// newest event of it must be there.
func (t *transfer) sameSource(ctx context.Context) error {
	if t.state.Events == 0 {
		return nil
	}
	other := fmt.Errorf("what it holds was carried out of another journal (%s): begin with an empty target", t.state.From)
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

// checkUnchanged is run when all has been carried before.
func (t *transfer) checkUnchanged(ctx context.Context) (Report, error) {
	mark, err := t.fingerprint(ctx)
	if err != nil {
		return Report{}, err
	}
	if mark != t.state.Fingerprint {
		return Report{}, errors.New("all was carried before, and something has been written to the source since: what is in the target may be in use, so nothing more is carried into it; begin with an empty target")
	}
	r := *t.state.Report
	r.Before = true
	return r, t.dst.Finish(ctx)
}

// fingerprint changes when what is stored in the source does.
func (t *transfer) fingerprint(ctx context.Context) (string, error) {
	h := sha256.New()
	_, last, _ := t.src.Range()
	fmt.Fprintln(h, last)
	for c, err := range t.src.Cursors(ctx) {
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, "cursor", c.Name, c.Committed)
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

// holes are the places that are to be kept free before and between the events:
// those of events that are stored no more and have a dead letter, and the first
// one, which is before all of them: no event is ever without a place to name.
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
		holes = append(holes, d.Letter.Seq) // and left out below where its event is there
	}
	slices.Sort(holes)
	return slices.Compact(holes), nil
}

// events stores those that are not stored yet.
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
			if err := p.store(ctx); err != nil { // its first place must be known
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

// page is what is stored next, as one act.
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

// metadata stores all that is not an event.
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
			return d, fmt.Errorf("dead letter %d of sink %s came when events had been carried that stand behind it: begin with an empty target", d.Letter.Seq, d.Sink)
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
	var none uint64 // of those that expired with their events
	err = each(ctx, t, "given up", t.src.Dispositions(ctx), &none, func(g Disposition) (Disposition, error) {
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
	err = each(ctx, t, "notes", t.src.Values(ctx), &t.report.Values, func(n journal.KVEntry) (journal.KVEntry, error) {
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
		t.report.Cursors = append(t.report.Cursors, c)
		return c, nil
	}, func(all []Cursor) Metadata { return Metadata{Cursors: all} })
}

// each stores what becomes of each thing, some at a time.
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
