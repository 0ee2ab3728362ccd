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
	"github.com/postwire/postwire/pkg/journal/seqset"
)

// UnconfiguredSink is a sink with a cursor in the journal that was removed from the
// configuration, or renamed.
type UnconfiguredSink struct {
	Sink      string      `json:"sink"`
	Committed journal.Seq `json:"committed" doc:"Sequence of the last event that was delivered, or passed over, for the sink."`
	LagEvents uint64      `json:"lag_events" doc:"Pending events of the sink at its removal. Not delivered unless another sink adopts the events."`
	Since     time.Time   `json:"since" doc:"Time at which a relay first found the sink unconfigured."`
	Replay    string      `json:"replay,omitempty" doc:"ID of the replay by which another sink adopts the events."`
}

// unconfigured is the last list of unconfigured sinks.
type unconfigured struct {
	reading sync.Mutex // held while the cursors are read, so that an older list does not replace a newer one

	mu     sync.Mutex
	sinks  []UnconfiguredSink
	logged map[string]bool // sinks whose pending events are logged
}

// removal is the stored entry of a sink that was found unconfigured. Events accepted later
// are not for the sink.
type removal struct {
	Events uint64      `json:"events"` // pending events
	Last   journal.Seq `json:"last"`   // newest stored event
	Since  time.Time   `json:"since"`
}

const removalPrefix = "removed/"

// removals reads the entries of unconfigured sinks, by sink.
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

// saveRemoval stores the number of pending events of a newly unconfigured sink.
func (r *Relay) saveRemoval(ctx context.Context, c journal.Position) (removal, error) {
	note := removal{Events: c.Lag, Last: r.opts.Journal.Last(), Since: r.opts.Now().UTC()}
	value, err := json.Marshal(note)
	if err == nil {
		err = r.opts.Journal.PutValue(ctx, removalPrefix+c.Name, value)
	}
	if err != nil {
		return note, fmt.Errorf("storing that sink %s is not configured: %w", c.Name, err)
	}
	return note, nil
}

// unconfiguredInterval is how often the cursors of the journal are listed.
const unconfiguredInterval = 30 * time.Second

// watchUnconfigured updates the list of unconfigured sinks until ctx is done.
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

// readUnconfigured lists the unconfigured sinks, sets the metric, and logs each
// unconfigured sink with pending events once.
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
			continue // the cursor of a replay or of a configured sink, or another relay delivers
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

// Unconfigured returns the sinks that have a cursor in the journal and are not configured,
// sorted by name. The list is at most unconfiguredInterval old.
func (r *Relay) Unconfigured() []UnconfiguredSink {
	r.unconfigured.mu.Lock()
	defer r.unconfigured.mu.Unlock()
	return append([]UnconfiguredSink{}, r.unconfigured.sinks...)
}

// adoptions returns the ID of the running or stopped replay that adopts the events of a
// sink, by sink.
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

// AdoptSink delivers the pending events of an unconfigured sink to a configured sink, and
// then deletes the cursor of the unconfigured sink. A replay does the work, so that the
// adoption outlives the process.
//
//   - Events that are pending for the configured sink are left to its pump.
//   - Events that the configured sink already got are sent again with the same message ID:
//     the relay does not know what the filter of the unconfigured sink matched.
//   - AdoptSink discards events that the filter of the configured sink does not match;
//     Replay.Skipped counts the discarded events.
//   - An event that the configured sink refuses permanently becomes its dead letter.
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
	re, err := r.startReplay(ctx, spec, position.Committed+1, min(last, p.cursor.Committed()), seqset.Of(position.Committed, position.Done))
	if err != nil {
		return re, err
	}
	return re, r.readUnconfigured(ctx)
}

// DeleteSink deletes the cursor of an unconfigured sink. DeleteSink discards the pending
// events of the sink, and returns their number.
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

// adopted deletes the cursor of an adopted sink after its replay.
func (r *Relay) adopted(ctx context.Context, spec ReplaySpec) error {
	if spec.Adopts == "" {
		return nil
	}
	if r.Has(spec.Adopts) == nil { // the sink is configured again and has a pump
		r.opts.Log.Warn("sink is in the configuration again, so that two sinks got its pending events", zap.String("sink", spec.Adopts), zap.String("adopted_by", spec.Sink))
		return nil
	}
	if err := r.opts.Journal.DeleteCursor(ctx, spec.Adopts); err != nil && !errors.Is(err, journal.ErrNotFound) {
		return fmt.Errorf("deleting the cursor of sink %s, whose events sink %s has adopted: %w", spec.Adopts, spec.Sink, err)
	}
	r.opts.Log.Info("sink adopted", zap.String("sink", spec.Sink), zap.String("adopted", spec.Adopts))
	return r.readUnconfigured(ctx)
}
