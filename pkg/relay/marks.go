package relay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// When a broker acknowledged what is kept in the journal too, more roughly than a
// process remembers it: in marks, of which one stands for all that was
// acknowledged within markSpan. It outlives the process, and any process that
// shares the journal can tell it.
//
// They are written every markEvery, beside the deliveries, which never wait for
// it. A crash forgets those of the last markEvery: of the events in them it is
// known only that they were delivered before it.
const (
	markSpan  = 10 * time.Second
	markEvery = 10 * time.Second
	// A note of full length is some 20 KiB, and is written anew until it is full.
	// So many notes are four days and more in which something was delivered in
	// every span, and at most half a megabyte a sink.
	marksInNote   = 1024
	mostMarkNotes = 32
	// marksLastFor is how long what was read of other processes' marks is used.
	marksLastFor = 10 * time.Second

	markPrefix = "delivered/"
)

// mark says that of the events from one place through another some were
// acknowledged between two moments, both included.
type mark struct {
	from, to    journal.Seq
	first, last int64 // milliseconds since 1970
}

// marks are those that this process makes of a sink, a note at a time. The zero
// value is ready.
type marks struct {
	name    string // of the note; empty before its first mark
	all     []mark // of the note
	dirty   bool   // there is what is not stored yet
	full    []journal.Noted
	started bool // a note was begun that is not stored yet
}

// add keeps in mind that a run was acknowledged.
func (m *marks) add(sink string, r run) {
	at := r.at.UnixMilli()
	if n := len(m.all); n > 0 {
		if now := &m.all[n-1]; at >= now.first && at-now.first < markSpan.Milliseconds() {
			now.from, now.to, now.last = min(now.from, r.from), max(now.to, r.to), max(now.last, at)
			m.dirty = true
			return
		}
	}
	if len(m.all) == marksInNote {
		m.full = append(m.full, journal.Noted{Name: m.name, Value: encodeMarks(m.all)})
		m.name, m.all = "", m.all[:0]
	}
	if m.name == "" {
		// Processes that share a journal have each its own; they sort by time.
		m.name, m.started = markPrefix+sink+"/"+uuid.Must(uuid.NewV7()).String(), true
	}
	m.all, m.dirty = append(m.all, mark{r.from, r.to, at, at}), true
}

// markNotes is what has to be stored, and whether a note has been begun.
func (p *past) markNotes() (notes []journal.Noted, begun bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &p.marks
	notes = slices.Clone(m.full)
	if m.dirty {
		m.dirty = false
		notes = append(notes, journal.Noted{Name: m.name, Value: encodeMarks(m.all)})
	}
	return notes, m.started
}

// stored says that the notes are, or that they are not and have to be again.
func (p *past) storedMarks(notes []journal.Noted, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &p.marks
	if err != nil {
		m.dirty = m.dirty || len(m.all) > 0
		return
	}
	m.started = false
	m.full = slices.DeleteFunc(m.full, func(f journal.Noted) bool { // less those that have become full meanwhile
		return slices.ContainsFunc(notes, func(n journal.Noted) bool { return n.Name == f.Name && bytes.Equal(n.Value, f.Value) })
	})
}

// writeMarks stores marks now and then until ctx is done, and what is left when
// done is closed: then nothing is delivered any more.
func (r *Relay) writeMarks(ctx, hard context.Context, done <-chan struct{}) {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.keepMarks(ctx, r.pasts.all())
		case <-done:
			r.keepMarks(hard, r.pasts.all())
			return
		}
	}
}

// keepMarks stores the marks of sinks. Where that fails, it is tried again the
// next time.
func (r *Relay) keepMarks(ctx context.Context, of map[string]*past) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	begun := false
	for sink, p := range of {
		notes, started := p.markNotes()
		if len(notes) == 0 {
			continue
		}
		var err error
		for _, n := range notes {
			if err == nil {
				err = r.opts.Journal.Note(ctx, n.Name, n.Value)
			}
		}
		p.storedMarks(notes, err)
		if err != nil {
			r.opts.Log.Debug("keeping when events were delivered", zap.String("sink", sink), zap.Error(err))
			continue
		}
		begun = begun || started
	}
	if begun {
		if err := r.pruneMarks(ctx); err != nil {
			r.opts.Log.Debug("removing old marks of when events were delivered", zap.Error(err))
		}
	}
}

// pruneMarks removes notes whose events have expired, also of sinks that are no
// more, and the oldest of a sink that has too many.
func (r *Relay) pruneMarks(ctx context.Context) error {
	bySink := map[string][]string{} // sorted by time
	var gone []string
	oldest := r.opts.Journal.Oldest()
	for n, err := range r.opts.Journal.Noted(ctx, markPrefix) {
		if err != nil {
			return err
		}
		sink := n.Name[:strings.LastIndexByte(n.Name, '/')]
		all, err := decodeMarks(n.Value)
		if err == nil && !slices.ContainsFunc(all, func(m mark) bool { return m.to >= oldest }) {
			gone = append(gone, n.Name)
			continue
		}
		bySink[sink] = append(bySink[sink], n.Name)
	}
	for _, names := range bySink {
		gone = append(gone, names[:max(0, len(names)-mostMarkNotes)]...)
	}
	var errs []error
	for _, name := range gone {
		errs = append(errs, r.opts.Journal.Note(ctx, name, nil))
	}
	return errors.Join(errs...)
}

// known is what was read of the marks of a sink.
type known struct {
	mu  sync.Mutex
	all []mark
	at  time.Time // of reading; zero before
}

// marked says between which moments the event at a place was acknowledged; zero
// where no mark tells.
func (r *Relay) marked(ctx context.Context, sink string, p *past, s journal.Seq) (after, before time.Time, err error) {
	p.known.mu.Lock()
	defer p.known.mu.Unlock()
	if now := r.opts.Now(); p.known.at.IsZero() || now.Sub(p.known.at) > marksLastFor || now.Before(p.known.at) {
		var all []mark
		for n, err := range r.opts.Journal.Noted(ctx, markPrefix+sink+"/") {
			if err != nil {
				return time.Time{}, time.Time{}, err
			}
			if strings.Contains(n.Name[len(markPrefix+sink+"/"):], "/") {
				continue // of a sink whose name begins alike
			}
			some, err := decodeMarks(n.Value)
			if err != nil {
				return time.Time{}, time.Time{}, fmt.Errorf("reading %s: %w", n.Name, err)
			}
			all = append(all, some...)
		}
		p.known.all, p.known.at = all, now
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var first, last int64
	// What was acknowledged in parts, or twice, is in several marks.
	for _, some := range [...][]mark{p.known.all, p.marks.all} {
		for _, m := range some {
			if m.from > s || s > m.to {
				continue
			}
			first, last = min(cmp.Or(first, m.first), m.first), max(last, m.last)
		}
	}
	if last == 0 {
		return time.Time{}, time.Time{}, nil
	}
	return time.UnixMilli(first), time.UnixMilli(last + 1), nil
}

// Marks are a version byte, and then of each mark, as differences to the one
// before, in varints: from, to from there, first, last from there.
const marksVersion = 1

func encodeMarks(all []mark) []byte {
	b := append(make([]byte, 0, 1+16*len(all)), marksVersion)
	var before mark
	for _, m := range all {
		b = binary.AppendVarint(b, int64(m.from-before.to))
		b = binary.AppendUvarint(b, uint64(m.to-m.from))
		b = binary.AppendVarint(b, m.first-before.last)
		b = binary.AppendUvarint(b, uint64(m.last-m.first))
		before = m
	}
	return b
}

func decodeMarks(b []byte) (all []mark, err error) {
	r := &record.Reader{B: b}
	if v := r.Byte(); r.Err != nil || v != marksVersion {
		return nil, fmt.Errorf("marks have format %d, this version reads %d", v, marksVersion)
	}
	var before mark
	for len(r.B) > 0 && r.Err == nil {
		m := mark{from: before.to + journal.Seq(r.Varint()), first: before.last}
		m.to = m.from + journal.Seq(r.Uvarint())
		m.first += r.Varint()
		m.last = m.first + int64(r.Uvarint())
		all, before = append(all, m), m
	}
	return all, r.Err
}

// moveMarks makes of marks what they are where events have other places.
func moveMarks(b []byte, first, last func(journal.Seq) journal.Seq) ([]byte, error) {
	all, err := decodeMarks(b)
	if err != nil {
		return nil, err
	}
	var moved []mark
	for _, m := range all {
		if m.from, m.to = first(m.from), last(m.to); m.from <= m.to {
			moved = append(moved, m)
		}
	}
	return encodeMarks(moved), nil
}
