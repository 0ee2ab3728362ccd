package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"
)

const pausePrefix = "pause/"

// Pause is an operator's decision to stop delivery to a sink. The journal stores the
// pause, so that the pause outlives the process and applies to all relays that share the
// journal. The events of the sink wait in the journal.
type Pause struct {
	Sink  string    `json:"sink"`
	Since time.Time `json:"since"`
}

// activePause is a pause in effect.
type activePause struct {
	Pause
	over chan struct{} // closed by the resume
}

// PauseSink stops delivery to a sink. Batches in flight still complete. Other relays that
// share the journal follow within seconds. For a paused sink PauseSink returns the
// existing pause.
func (r *Relay) PauseSink(ctx context.Context, sink string) (Pause, error) {
	p, err := r.pump(sink)
	if err != nil {
		return Pause{}, err
	}
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	if now := p.history.pause.Load(); now != nil {
		return now.Pause, nil
	}
	pause := Pause{Sink: sink, Since: r.opts.Now().UTC()}
	text, err := json.Marshal(pause)
	if err != nil {
		return Pause{}, err
	}
	if err := r.opts.Journal.PutValue(ctx, pausePrefix+sink, text); err != nil {
		return Pause{}, err
	}
	r.setPause(p.history, sink, &pause)
	return pause, nil
}

// ResumeSink resumes delivery to a sink at its cursor. Without a pause ResumeSink changes
// nothing.
func (r *Relay) ResumeSink(ctx context.Context, sink string) error {
	p, err := r.pump(sink)
	if err != nil {
		return err
	}
	r.pauseMu.Lock()
	defer r.pauseMu.Unlock()
	if err := r.opts.Journal.DeleteValue(ctx, pausePrefix+sink); err != nil {
		return err
	}
	r.setPause(p.history, sink, nil)
	return nil
}

// setPause applies a pause, or the end of a pause if pause is nil. The caller holds
// pauseMu.
func (r *Relay) setPause(history *deliveryHistory, sink string, pause *Pause) {
	before := history.pause.Load()
	switch {
	case pause == nil && before != nil:
		history.pause.Store(nil)
		close(before.over)
		r.opts.Log.Warn("sink resumed", zap.String("sink", sink))
	case pause != nil && before == nil:
		history.pause.Store(&activePause{*pause, make(chan struct{})})
		r.opts.Log.Warn("sink paused, its events wait in the journal", zap.String("sink", sink), zap.Time("since", pause.Since))
	}
	r.opts.Metrics.setPaused(sink, pause != nil)
}

// readDecisions reads the stored replays and pauses, applies the pauses, and returns the
// replays. The first successful call lets the pumps begin.
func (r *Relay) readDecisions(ctx context.Context) (replays map[string]Replay, err error) {
	r.pauseMu.Lock() // so that an older pause does not replace a newer one
	defer r.pauseMu.Unlock()
	replays, pauses := map[string]Replay{}, map[string]Pause{}
	for n, err := range r.opts.Journal.Values(ctx, replayPrefix) {
		var re Replay
		if err == nil {
			err = json.Unmarshal(n.Value, &re)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", n.Key, err)
		}
		replays[re.ID] = re
	}
	for n, err := range r.opts.Journal.Values(ctx, pausePrefix) {
		var pause Pause
		if err == nil {
			err = json.Unmarshal(n.Value, &pause)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", n.Key, err)
		}
		pauses[pause.Sink] = pause
	}
	for sink, history := range r.histories.all() {
		if pause, ok := pauses[sink]; ok {
			r.setPause(history, sink, &pause)
		} else {
			r.setPause(history, sink, nil)
		}
	}
	r.pausesLoadedOnce.Do(func() { close(r.pausesLoaded) })
	return replays, nil
}
