package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// UnconfiguredSink is a sink that the journal has a cursor of, and the
// configuration does not: it was removed, or renamed.
type UnconfiguredSink struct {
	Sink      string      `json:"sink"`
	Committed journal.Seq `json:"committed" doc:"Sequence of the last event that was delivered, or passed over, for the sink."`
	LagEvents uint64      `json:"lag_events" doc:"Stored events that were pending for the sink when it was removed. They are not delivered unless another sink adopts them."`
	Since     time.Time   `json:"since" doc:"When a relay first found the sink unconfigured."`
	Replay    string      `json:"replay,omitempty" doc:"ID of the replay by which another sink adopts the events."`
}

// unconfigured is what the relay last read of sinks that are not configured.
type unconfigured struct {
	reading sync.Mutex // held while the cursors are read, so that an older list replaces no newer one

	mu     sync.Mutex
	sinks  []UnconfiguredSink
	logged map[string]bool // those whose pending events the log has named
}

// removal is the note that a sink was found unconfigured. Events accepted later
// were never meant for the sink.
type removal struct {
	Events uint64      `json:"events"` // that were pending
	Last   journal.Seq `json:"last"`   // the newest stored event
	Since  time.Time   `json:"since"`
}

const removalPrefix = "removed/"

// removals reads the notes of sinks that were found unconfigured, by sink.
func (r *Relay) removals(ctx context.Context) (map[string]removal, error) {
	all := map[string]removal{}
	for n, err := range r.opts.Journal.Values(ctx, removalPrefix) {
		var note removal
		if err == nil {
			err = json.Unmarshal(n.Value, &note)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", n.Key, err)
		}
		all[strings.TrimPrefix(n.Key, removalPrefix)] = note
	}
	return all, nil
}

// saveRemoval keeps how many events were pending for a sink that is found
// unconfigured for the first time.
func (r *Relay) saveRemoval(ctx context.Context, c journal.Position) (removal, error) {
	note := removal{Events: c.Lag, Last: r.opts.Journal.Last(), Since: r.opts.Now().UTC()}
	value, err := json.Marshal(note)
	if err == nil {
		err = r.opts.Journal.PutValue(ctx, removalPrefix+c.Name, value)
	}
	if err != nil {
		return note, fmt.Errorf("noting that sink %s is not configured: %w", c.Name, err)
	}
	return note, nil
}

// unconfiguredInterval is how often the cursors of the journal are listed.
const unconfiguredInterval = 30 * time.Second

// watchUnconfigured keeps the list of unconfigured sinks until ctx is done.
func (r *Relay) watchUnconfigured(ctx context.Context) {
	tick := time.NewTicker(unconfiguredInterval)
	defer tick.Stop()
	for {
		if err := r.readUnconfigured(ctx); err != nil && ctx.Err() == nil {
			r.opts.Log.Warn("sinks that are not in the configuration cannot be listed", zap.Error(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// readUnconfigured lists the cursors of sinks that are not configured, sets the
// metric, and logs each sink with pending events once.
func (r *Relay) readUnconfigured(ctx context.Context) error {
	r.unconfigured.reading.Lock()
	defer r.unconfigured.reading.Unlock()
	cursors, err := r.opts.Journal.Cursors(ctx)
	if err != nil {
		return err
	}
	adoptions := r.adoptions()
	removals, err := r.removals(ctx)
	if err != nil {
		return err
	}
	all := []UnconfiguredSink{}
	for _, c := range cursors {
		if strings.HasPrefix(c.Name, replayPrefix) || r.Has(c.Name) == nil || c.InUse {
			continue // a replay's, a configured sink's, or another relay delivers to the sink
		}
		note, known := removals[c.Name]
		delete(removals, c.Name)
		if !known {
			if note, err = r.saveRemoval(ctx, c); err != nil {
				return err
			}
		}
		all = append(all, UnconfiguredSink{Sink: c.Name, Committed: c.Committed, LagEvents: min(note.Events, c.Lag), Since: note.Since, Replay: adoptions[c.Name]})
	}
	for sink := range removals { // configured again, adopted or deleted
		if err := r.opts.Journal.DeleteValue(ctx, removalPrefix+sink); err != nil {
			return fmt.Errorf("removing the note that sink %s is not configured: %w", sink, err)
		}
	}
	r.unconfigured.mu.Lock()
	defer r.unconfigured.mu.Unlock()
	r.opts.Metrics.unconfigured.Reset()
	for _, p := range r.pumpSnapshot() {
		r.opts.Metrics.unconfigured.WithLabelValues(p.name).Set(0)
	}
	for _, s := range all {
		if s.Replay != "" { // another sink adopts the events
			r.opts.Metrics.unconfigured.WithLabelValues(s.Sink).Set(0)
			continue
		}
		r.opts.Metrics.unconfigured.WithLabelValues(s.Sink).Set(float64(s.LagEvents))
		if s.LagEvents > 0 && !r.unconfigured.logged[s.Sink] {
			r.unconfigured.logged[s.Sink] = true
			r.opts.Log.Error("sink is not in the configuration, its pending events are not delivered", zap.String("sink", s.Sink), zap.Uint64("lag_events", s.LagEvents),
				zap.String("advice", fmt.Sprintf("if the sink was renamed: postwire sinks adopt %s --as NAME; to discard the events: postwire sinks delete %[1]s", s.Sink)))
		}
	}
	r.unconfigured.sinks = all
	return nil
}

// Unconfigured returns the sinks that the journal has a cursor of and the
// configuration does not, by name, as of at most half a minute ago.
func (r *Relay) Unconfigured() []UnconfiguredSink {
	r.unconfigured.mu.Lock()
	defer r.unconfigured.mu.Unlock()
	return append([]UnconfiguredSink{}, r.unconfigured.sinks...)
}

// adoptions returns the IDs of the replays that adopt the events of a sink and have
// not ended, by that sink.
func (r *Relay) adoptions() map[string]string {
	all := map[string]string{}
	for _, re := range r.Replays() {
		if re.Adopts != "" && (re.State == ReplayRunning || re.State == ReplayStopped) {
			all[re.Adopts] = re.ID
		}
	}
	return all
}

// orphan returns the cursor of an unconfigured sink. Its error wraps ErrInvalid
// or journal.ErrNotFound.
func (r *Relay) orphan(ctx context.Context, sink string) (journal.Position, error) {
	if r.Has(sink) == nil {
		return journal.Position{}, fmt.Errorf("%w: sink %q is in the configuration", ErrInvalid, sink)
	}
	cursors, err := r.opts.Journal.Cursors(ctx)
	if err != nil {
		return journal.Position{}, err
	}
	i := slices.IndexFunc(cursors, func(c journal.Position) bool { return c.Name == sink && !strings.HasPrefix(sink, replayPrefix) })
	switch {
	case i < 0:
		return journal.Position{}, fmt.Errorf("sink %q: %w", sink, journal.ErrNotFound)
	case cursors[i].InUse:
		return journal.Position{}, fmt.Errorf("%w: another relay delivers to sink %q", ErrInvalid, sink)
	}
	if id, adopted := r.adoptions()[sink]; adopted {
		return journal.Position{}, fmt.Errorf("sink %q is being adopted by replay %s: %w", sink, id, ErrState)
	}
	return cursors[i], nil
}

// AdoptSink delivers to a configured sink the events that were pending for an
// unconfigured one when that was removed, and then deletes the cursor of the
// unconfigured sink. A replay does it, which outlives the process. Events that are
// still pending for the configured sink are left to it. Events that the
// configured sink got before are sent again, with the same message ID: what the
// filter of the removed sink selected, and what the configured sink passed over by
// an earlier filter, cannot be known. Events that the filter of the configured
// sink does not match are discarded; Replay.Skipped counts them. An event that the
// sink refuses permanently becomes a dead letter of the configured sink.
func (r *Relay) AdoptSink(ctx context.Context, from, as string, rate int) (Replay, error) {
	p, err := r.pump(as)
	if err != nil {
		return Replay{}, err
	}
	position, err := r.orphan(ctx, from)
	if err != nil {
		return Replay{}, err
	}
	now := r.opts.Now().UTC()
	spec := ReplaySpec{Sink: as, Adopts: from, From: now, To: now, Rate: rate, Keys: map[string]string{}}
	removals, err := r.removals(ctx)
	if err != nil {
		return Replay{}, err
	}
	last := r.opts.Journal.Last()
	if note, known := removals[from]; known {
		last = note.Last
	}
	re, err := r.startReplay(ctx, spec, position.Committed+1, min(last, p.cursor.Committed()))
	if err != nil {
		return re, err
	}
	return re, r.readUnconfigured(ctx)
}

// DeleteSink deletes the cursor of an unconfigured sink. It discards the events
// that were pending for the sink, and returns how many.
func (r *Relay) DeleteSink(ctx context.Context, sink string) (discarded uint64, err error) {
	position, err := r.orphan(ctx, sink)
	if err != nil {
		return 0, err
	}
	discarded = position.Lag
	for _, s := range r.Unconfigured() {
		if s.Sink == sink {
			discarded = s.LagEvents
		}
	}
	if err := r.opts.Journal.DeleteCursor(ctx, sink); err != nil {
		return 0, err
	}
	r.opts.Log.Warn("sink deleted by an operator, its pending events are discarded", zap.String("sink", sink), zap.Uint64("events", discarded))
	return discarded, r.readUnconfigured(ctx)
}

// adopted ends the adoption of a sink whose events a replay has sent.
func (r *Relay) adopted(ctx context.Context, spec ReplaySpec) error {
	if spec.Adopts == "" {
		return nil
	}
	if r.Has(spec.Adopts) == nil { // the sink came back meanwhile, and has its own pump
		r.opts.Log.Warn("sink is in the configuration again, so that two sinks got its pending events", zap.String("sink", spec.Adopts), zap.String("adopted_by", spec.Sink))
		return nil
	}
	if err := r.opts.Journal.DeleteCursor(ctx, spec.Adopts); err != nil && !errors.Is(err, journal.ErrNotFound) {
		return fmt.Errorf("deleting the cursor of sink %s, whose events sink %s has adopted: %w", spec.Adopts, spec.Sink, err)
	}
	r.opts.Log.Info("sink adopted", zap.String("sink", spec.Sink), zap.String("adopted", spec.Adopts))
	return r.readUnconfigured(ctx)
}
