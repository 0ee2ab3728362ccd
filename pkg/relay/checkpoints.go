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

// The journal stores delivery times as checkpoints. A checkpoint covers the events that a
// broker acknowledged within checkpointSpan, so that delivery times outlive the process and
// are known to every relay that shares the journal. The relay writes checkpoints every
// checkpointInterval beside the deliveries. A crash loses the checkpoints of the last
// interval: of their events only an upper bound of the delivery time is known.
const (
	checkpointSpan     = 10 * time.Second
	checkpointInterval = 10 * time.Second
	// A full entry has about 20 KiB, and is rewritten until it is full. The maximum
	// covers at least four days of uninterrupted deliveries, in half a megabyte a sink.
	checkpointsPerEntry  = 1024
	maxCheckpointEntries = 32
	// checkpointCacheTTL is how long the checkpoints of other processes are cached.
	checkpointCacheTTL = 10 * time.Second

	checkpointPrefix = "delivered/"
)

// checkpoint records that the broker acknowledged events with sequences from to to between
// the times first and last, inclusive.
type checkpoint struct {
	from, to    journal.Seq
	first, last int64 // milliseconds since 1970
}

// checkpoints are the checkpoints that this process makes for a sink. The zero value is
// ready.
type checkpoints struct {
	key     string            // key of the open entry; empty without checkpoints
	open    []checkpoint      // checkpoints of the open entry
	dirty   bool              // the open entry has unsaved checkpoints
	full    []journal.KVEntry // full entries that are not saved yet
	started bool              // a new entry is not saved yet
}

// add records an acknowledged range.
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
		// Each process has entries of its own; the keys sort by time.
		m.key, m.started = checkpointPrefix+sink+"/"+uuid.Must(uuid.NewV7()).String(), true
	}
	m.open, m.dirty = append(m.open, checkpoint{r.from, r.to, at, at}), true
}

// unsavedCheckpoints returns the entries to store, and whether one of them is new.
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

// checkpointsSaved records the result of storing entries. After an error the next call of
// unsavedCheckpoints returns the entries again.
func (p *deliveryHistory) checkpointsSaved(entries []journal.KVEntry, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &p.checkpoints
	if err != nil {
		m.dirty = m.dirty || len(m.open) > 0
		return
	}
	m.started = false
	m.full = slices.DeleteFunc(m.full, func(f journal.KVEntry) bool { // keep entries that became full meanwhile
		return slices.ContainsFunc(entries, func(n journal.KVEntry) bool { return n.Key == f.Key && bytes.Equal(n.Value, f.Value) })
	})
}

// runCheckpoints stores checkpoints every checkpointInterval until ctx is done, and once
// more when done is closed after the last delivery.
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

// saveCheckpoints stores the checkpoints of sinks. The next call repeats a failed write.
func (r *Relay) saveCheckpoints(ctx context.Context, histories map[string]*deliveryHistory) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	begun := false
	for sink, p := range histories {
		entries, started := p.unsavedCheckpoints()
		if len(entries) == 0 {
			continue
		}
		var err error
		for _, n := range entries {
			if err == nil {
				err = r.opts.Journal.PutValue(ctx, n.Key, n.Value)
			}
		}
		p.checkpointsSaved(entries, err)
		if err != nil {
			r.opts.Log.Debug("storing checkpoints failed, retrying", zap.String("sink", sink), zap.Error(err))
			continue
		}
		begun = begun || started
	}
	if begun {
		if err := r.pruneCheckpoints(ctx); err != nil {
			r.opts.Log.Debug("removing old checkpoints failed", zap.Error(err))
		}
	}
}

// pruneCheckpoints deletes entries whose events have expired, also of removed sinks, and
// the oldest entries of a sink beyond maxCheckpointEntries.
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

// checkpointCache holds the stored checkpoints of a sink.
type checkpointCache struct {
	mu  sync.Mutex
	all []checkpoint
	at  time.Time // time of reading; zero before the first
}

// checkpointTimes returns the bounds of the time at which the broker acknowledged an event,
// or zero times without a checkpoint.
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
				continue // a sink whose name begins with the name of this sink
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
	// Several checkpoints can cover an event: acknowledgements of parts, or repeats.
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

// Encoding: a version byte, then for each checkpoint the varints from, to, first, last.
// From is relative to the previous to, to relative to from, first relative to the previous
// last, and last relative to first.
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
		return nil, fmt.Errorf("checkpoints have format %d, this version reads %d", v, checkpointsVersion)
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

// moveCheckpoints translates the sequences of encoded checkpoints to another journal.
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
