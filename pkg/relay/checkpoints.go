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
	checkpointSpan     = 10 * time.Second
	checkpointInterval = 10 * time.Second
	// A note of full length is some 20 KiB, and is written anew until it is full.
	// So many notes are four days and more in which something was delivered in
	// every span, and at most half a megabyte a sink.
	checkpointsPerEntry  = 1024
	maxCheckpointEntries = 32
	// checkpointCacheTTL is how long what was read of other processes' marks is used.
	checkpointCacheTTL = 10 * time.Second

	checkpointPrefix = "delivered/"
)

// checkpoint says that of the events from one place through another some were
// acknowledged between two moments, both included.
type checkpoint struct {
	from, to    journal.Seq
	first, last int64 // milliseconds since 1970
}

// checkpoints are those that this process makes of a sink, a note at a time. The zero
// value is ready.
type checkpoints struct {
	key     string       // of the note; empty before its first mark
	open    []checkpoint // of the note
	dirty   bool         // there is what is not stored yet
	full    []journal.KVEntry
	started bool // a note was begun that is not stored yet
}

// add keeps in mind that a run was acknowledged.
func (m *checkpoints) add(sink string, r ackRange) {
	at := r.at.UnixMilli()
	if n := len(m.open); n > 0 {
		if now := &m.open[n-1]; at >= now.first && at-now.first < checkpointSpan.Milliseconds() {
			now.from, now.to, now.last = min(now.from, r.from), max(now.to, r.to), max(now.last, at)
			m.dirty = true
			return
		}
	}
	if len(m.open) == checkpointsPerEntry {
		m.full = append(m.full, journal.KVEntry{Key: m.key, Value: encodeCheckpoints(m.open)})
		m.key, m.open = "", m.open[:0]
	}
	if m.key == "" {
		// Processes that share a journal have each its own; they sort by time.
		m.key, m.started = checkpointPrefix+sink+"/"+uuid.Must(uuid.NewV7()).String(), true
	}
	m.open, m.dirty = append(m.open, checkpoint{r.from, r.to, at, at}), true
}

// unsavedCheckpoints is what has to be stored, and whether a note has been begun.
func (p *deliveryHistory) unsavedCheckpoints() (entries []journal.KVEntry, begun bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &p.checkpoints
	entries = slices.Clone(m.full)
	if m.dirty {
		m.dirty = false
		entries = append(entries, journal.KVEntry{Key: m.key, Value: encodeCheckpoints(m.open)})
	}
	return entries, m.started
}

// stored says that the notes are, or that they are not and have to be again.
func (p *deliveryHistory) checkpointsSaved(entries []journal.KVEntry, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &p.checkpoints
	if err != nil {
		m.dirty = m.dirty || len(m.open) > 0
		return
	}
	m.started = false
	m.full = slices.DeleteFunc(m.full, func(f journal.KVEntry) bool { // less those that have become full meanwhile
		return slices.ContainsFunc(entries, func(n journal.KVEntry) bool { return n.Key == f.Key && bytes.Equal(n.Value, f.Value) })
	})
}

// runCheckpoints stores marks now and then until ctx is done, and what is left when
// done is closed: then nothing is delivered any more.
func (r *Relay) runCheckpoints(ctx, hard context.Context, done <-chan struct{}) {
	tick := time.NewTicker(checkpointInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.saveCheckpoints(ctx, r.histories.all())
		case <-done:
			r.saveCheckpoints(hard, r.histories.all())
			return
		}
	}
}

// saveCheckpoints stores the marks of sinks. Where that fails, it is tried again the
// next time.
func (r *Relay) saveCheckpoints(ctx context.Context, histories map[string]*deliveryHistory) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	begun := false
	for sink, p := range histories {
		notes, started := p.unsavedCheckpoints()
		if len(notes) == 0 {
			continue
		}
		var err error
		for _, n := range notes {
			if err == nil {
				err = r.opts.Journal.PutValue(ctx, n.Key, n.Value)
			}
		}
		p.checkpointsSaved(notes, err)
		if err != nil {
			r.opts.Log.Debug("keeping when events were delivered", zap.String("sink", sink), zap.Error(err))
			continue
		}
		begun = begun || started
	}
	if begun {
		if err := r.pruneCheckpoints(ctx); err != nil {
			r.opts.Log.Debug("removing old marks of when events were delivered", zap.Error(err))
		}
	}
}

// pruneCheckpoints removes notes whose events have expired, also of sinks that are no
// more, and the oldest of a sink that has too many.
func (r *Relay) pruneCheckpoints(ctx context.Context) error {
	bySink := map[string][]string{} // sorted by time
	var expired []string
	oldest := r.opts.Journal.Oldest()
	for n, err := range r.opts.Journal.Values(ctx, checkpointPrefix) {
		if err != nil {
			return err
		}
		sink := n.Key[:strings.LastIndexByte(n.Key, '/')]
		all, err := decodeCheckpoints(n.Value)
		if err == nil && !slices.ContainsFunc(all, func(m checkpoint) bool { return m.to >= oldest }) {
			expired = append(expired, n.Key)
			continue
		}
		bySink[sink] = append(bySink[sink], n.Key)
	}
	for _, names := range bySink {
		expired = append(expired, names[:max(0, len(names)-maxCheckpointEntries)]...)
	}
	var errs []error
	for _, name := range expired {
		errs = append(errs, r.opts.Journal.DeleteValue(ctx, name))
	}
	return errors.Join(errs...)
}

// checkpointCache is what was read of the marks of a sink.
type checkpointCache struct {
	mu  sync.Mutex
	all []checkpoint
	at  time.Time // of reading; zero before
}

// checkpointTimes says between which moments the event at a place was acknowledged; zero
// where no mark tells.
func (r *Relay) checkpointTimes(ctx context.Context, sink string, p *deliveryHistory, s journal.Seq) (after, before time.Time, err error) {
	p.stored.mu.Lock()
	defer p.stored.mu.Unlock()
	if now := r.opts.Now(); p.stored.at.IsZero() || now.Sub(p.stored.at) > checkpointCacheTTL || now.Before(p.stored.at) {
		var all []checkpoint
		for n, err := range r.opts.Journal.Values(ctx, checkpointPrefix+sink+"/") {
			if err != nil {
				return time.Time{}, time.Time{}, err
			}
			if strings.Contains(n.Key[len(checkpointPrefix+sink+"/"):], "/") {
				continue // of a sink whose name begins alike
			}
			some, err := decodeCheckpoints(n.Value)
			if err != nil {
				return time.Time{}, time.Time{}, fmt.Errorf("reading %s: %w", n.Key, err)
			}
			all = append(all, some...)
		}
		p.stored.all, p.stored.at = all, now
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var first, last int64
	// What was acknowledged in parts, or twice, is in several marks.
	for _, some := range [...][]checkpoint{p.stored.all, p.checkpoints.open} {
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
const checkpointsVersion = 1

func encodeCheckpoints(all []checkpoint) []byte {
	b := append(make([]byte, 0, 1+16*len(all)), checkpointsVersion)
	var before checkpoint
	for _, m := range all {
		b = binary.AppendVarint(b, int64(m.from-before.to))
		b = binary.AppendUvarint(b, uint64(m.to-m.from))
		b = binary.AppendVarint(b, m.first-before.last)
		b = binary.AppendUvarint(b, uint64(m.last-m.first))
		before = m
	}
	return b
}

func decodeCheckpoints(b []byte) (all []checkpoint, err error) {
	r := &record.Reader{B: b}
	if v := r.Byte(); r.Err != nil || v != checkpointsVersion {
		return nil, fmt.Errorf("marks have format %d, this version reads %d", v, checkpointsVersion)
	}
	var before checkpoint
	for len(r.B) > 0 && r.Err == nil {
		m := checkpoint{from: before.to + journal.Seq(r.Varint()), first: before.last}
		m.to = m.from + journal.Seq(r.Uvarint())
		m.first += r.Varint()
		m.last = m.first + int64(r.Uvarint())
		all, before = append(all, m), m
	}
	return all, r.Err
}

// moveCheckpoints makes of marks what they are where events have other places.
func moveCheckpoints(b []byte, first, last func(journal.Seq) journal.Seq) ([]byte, error) {
	all, err := decodeCheckpoints(b)
	if err != nil {
		return nil, err
	}
	var moved []checkpoint
	for _, m := range all {
		if m.from, m.to = first(m.from), last(m.to); m.from <= m.to {
			moved = append(moved, m)
		}
	}
	return encodeCheckpoints(moved), nil
}
