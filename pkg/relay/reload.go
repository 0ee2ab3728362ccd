package relay

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/sinks"
)

// SetSinks lets these sinks take the place of those there are, while the others
// go on. Nothing is lost, because a sink's place is its cursor's:
//
//   - One whose own keys or redaction have changed is opened anew before its next
//     attempt.
//   - One whose settings have changed, or whose kind, gets another pump when the
//     one before has heard of what is with the broker.
//   - One that is new begins where its start says.
//   - One that is no more is let go of, with its replays. Its place is kept, for
//     the case that it comes back; the events it still waited for are not.
//
// An error that comes before anything was changed says so by wrapping
// ErrUnchanged. Otherwise it returns when all is done, or ctx is done.
func (r *Relay) SetSinks(ctx context.Context, next []sinks.Configured) error {
	r.setSinksMu.Lock()
	defer r.setSinksMu.Unlock()
	before := map[string]*Pump{}
	for _, p := range r.pumpSnapshot() {
		before[p.name] = p
	}
	// What may fail comes first.
	fresh := map[string]*Pump{}
	for _, out := range next {
		if _, err := filter.Parse(out.Settings.Filter); err != nil {
			return errors.Join(fmt.Errorf("%w: sink %s: filter: %w", ErrUnchanged, out.Name, err), r.closeCursors(fresh))
		}
		if before[out.Name] != nil {
			continue
		}
		p, err := r.open(ctx, out, nil)
		if err != nil {
			return errors.Join(fmt.Errorf("%w: %w", ErrUnchanged, err), r.closeCursors(fresh))
		}
		fresh[out.Name] = p
	}
	if len(fresh) > 0 { // one that comes back may have been paused
		if _, err := r.readDecisions(ctx); err != nil {
			return errors.Join(fmt.Errorf("%w: %w", ErrUnchanged, err), r.closeCursors(fresh))
		}
	}
	var pumps []*Pump
	for _, out := range next {
		old, p := before[out.Name], fresh[out.Name]
		delete(before, out.Name)
		switch {
		case p != nil:
			p.log.Info("a sink is added")
			r.launchPump(p)
		case same(old, out):
			p = old
			if !reflect.DeepEqual(p.configured.Own, out.Own) || !reflect.DeepEqual(p.configured.Settings.Redact, out.Settings.Redact) {
				p.log.Info("a sink is opened anew")
				p.spec.Store(specOf(out))
			}
			p.configured = out
		default:
			var err error
			if p, err = r.replacePump(ctx, old, out); err != nil {
				return err
			}
		}
		pumps = append(pumps, p)
	}
	r.mu.Lock()
	r.pumps = pumps
	r.mu.Unlock()
	for _, p := range before {
		r.remove(ctx, p)
	}
	if len(before) > 0 || len(fresh) > 0 { // a sink that was removed is listed at once, and one that came back no more
		if err := r.readUnconfigured(ctx); err != nil {
			r.opts.Log.Warn("sinks that are not in the configuration cannot be listed", zap.Error(err))
		}
	}
	return nil
}

// ErrUnchanged is wrapped where an exchange has changed nothing.
var ErrUnchanged = errors.New("nothing was changed")

// same reports whether a pump can go on with a configuration; of the settings it
// looks at what redacts at every attempt, and at start never again.
func same(p *Pump, out sinks.Configured) bool {
	was, is := p.settings, out.Settings
	was.Redact, is.Redact = sinks.Redact{}, sinks.Redact{}
	was.Start, is.Start = "", ""
	return p.kind == out.Kind && reflect.DeepEqual(was, is)
}

// launchPump sets a pump going, if the relay runs.
func (r *Relay) launchPump(p *Pump) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.start != nil {
		r.start(p)
	}
}

// halt returns when a pump has ended: what is with its broker has been heard of,
// and the cursor stands behind it.
func (r *Relay) halt(p *Pump) error {
	r.mu.Lock()
	stop, ended := p.stop, p.ended
	r.mu.Unlock()
	if stop != nil {
		stop()
		<-ended // at most as long as an attempt may take
	}
	return p.cursor.Close()
}

// replacePump puts a pump in another one's place.
func (r *Relay) replacePump(ctx context.Context, old *Pump, out sinks.Configured) (*Pump, error) {
	if err := r.halt(old); err != nil {
		old.log.Warn("letting go of the sink's place", zap.Error(err))
	}
	for {
		p, err := r.open(ctx, out, old)
		if err == nil {
			p.log.Info("a sink goes on with other settings")
			r.launchPump(p)
			return p, nil
		}
		// It waits for the journal as a pump does.
		old.log.Error("the sink's place cannot be opened; it gets nothing until it can", zap.Error(err))
		if sleep.For(ctx, time.Second) != nil {
			return nil, err
		}
	}
}

// remove lets go of a sink.
func (r *Relay) remove(ctx context.Context, p *Pump) {
	for _, re := range r.Replays() {
		if re.Sink == p.name && re.State == ReplayRunning {
			if _, err := r.StopReplay(ctx, re.ID); err != nil {
				p.log.Warn("stopping a replay of a sink that is removed", zap.String("replay", re.ID), zap.Error(err))
			}
		}
	}
	err := r.halt(p)
	p.log.Warn("a sink is removed", zap.Uint64("behind", p.cursor.Lag()), zap.Error(err))
	r.saveCheckpoints(ctx, map[string]*deliveryHistory{p.name: p.history})
	r.histories.delete(p.name)
	r.opts.Metrics.deleteSeries(p.name)
}

// closeCursors closes the cursors of pumps that never ran.
func (r *Relay) closeCursors(pumps map[string]*Pump) error {
	var errs []error
	for name, p := range pumps {
		errs = append(errs, p.cursor.Close())
		r.histories.delete(name)
		r.opts.Metrics.deleteSeries(name)
	}
	return errors.Join(errs...)
}
