package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"
)

const pausePrefix = "pause/"

// Pause says that nothing is sent to a sink, by an operator's will. It is kept
// in the journal: it outlives the process, and holds for all that share the
// journal. The events wait meanwhile, as they do for a broker that is down.
type Pause struct {
	Sink  string    `json:"sink"`
	Since time.Time `json:"since"`
}

// activePause is a pause that is in effect.
type activePause struct {
	Pause
	over chan struct{} // closed when it is not
}

// PauseSink lets nothing more be sent to a sink; what is with its broker by now
// is still heard of. Other processes that share the journal follow within
// seconds. A sink that is paused already stays so since then.
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

// ResumeSink lets a sink be sent to again, from where it stands. One that is not
// paused is left as it is.
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

// setPause puts a pause into effect, or the end of one where it is nil. The lock
// is held.
func (r *Relay) setPause(history *deliveryHistory, sink string, pause *Pause) {
	before := history.pause.Load()
	switch {
	case pause == nil && before != nil:
		history.pause.Store(nil)
		close(before.over)
		r.opts.Log.Warn("a sink is resumed", zap.String("sink", sink))
	case pause != nil && before == nil:
		history.pause.Store(&activePause{*pause, make(chan struct{})})
		r.opts.Log.Warn("a sink is paused; its events wait in the journal", zap.String("sink", sink), zap.Time("since", pause.Since))
	}
	r.opts.Metrics.setPaused(sink, pause != nil)
}

// readDecisions reads what has been noted of replays, and puts into effect what has been
// noted of pauses. From the first time on it is known which sinks are paused,
// and pumps may begin.
func (r *Relay) readDecisions(ctx context.Context) (replays map[string]Replay, err error) {
	r.pauseMu.Lock() // what is read here may not be older than what is in effect
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

// waitResumed returns when the sink is not paused, or with the error of ctx.
func (p *deliveryHistory) waitResumed(ctx context.Context) error {
	select {
	case <-p.pausesLoaded:
	default:
		select {
		case <-p.pausesLoaded:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for now := p.pause.Load(); now != nil; now = p.pause.Load() {
		select {
		case <-now.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
