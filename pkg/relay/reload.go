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

// SetSinks replaces the current sinks with the given ones. Unchanged sinks go on, and no
// event is lost, because the journal keeps the cursor of each sink:
//
//   - A sink whose own keys or redaction changed reopens before its next attempt.
//   - A sink whose settings or kind changed gets a new pump after its batches in flight
//     have completed.
//   - A new sink begins at the event that its start setting names.
//   - A removed sink stops, with its replays. The journal keeps the cursor for a sink of
//     the same name; the pending events are not kept beyond their retention.
//
// An error before any change wraps ErrUnchanged. Otherwise SetSinks returns when all
// changes are made, or when ctx is done.
func (r *Relay) SetSinks(ctx context.Context, next []sinks.Configured) error {
	r.setSinksMu.Lock()
	defer r.setSinksMu.Unlock()
	before := map[string]*Pump{}
	for _, p := range r.pumpSnapshot() {
		before[p.name] = p
	}
	// Do first what can fail.
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
	if len(fresh) > 0 { // a sink that is configured again may be paused
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
			p.log.Info("sink added")
			r.launchPump(p)
		case same(old, out):
			p = old
			if !reflect.DeepEqual(p.configured.Own, out.Own) || !reflect.DeepEqual(p.configured.Settings.Redact, out.Settings.Redact) {
				p.log.Info("sink reopened")
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
	if len(before) > 0 || len(fresh) > 0 { // update the list of unconfigured sinks
		if err := r.readUnconfigured(ctx); err != nil {
			r.opts.Log.Warn("sinks that are not in the configuration cannot be listed", zap.Error(err))
		}
	}
	return nil
}

// ErrUnchanged is wrapped when SetSinks has changed nothing.
var ErrUnchanged = errors.New("nothing was changed")

// same reports whether a pump can go on with a changed configuration. A changed redaction
// takes effect at the next attempt, and start matters only for a new sink.
func same(p *Pump, out sinks.Configured) bool {
	was, is := p.settings, out.Settings
	was.Redact, is.Redact = sinks.Redact{}, sinks.Redact{}
	was.Start, is.Start = "", ""
	return p.kind == out.Kind && reflect.DeepEqual(was, is)
}

// launchPump starts a pump if the relay runs.
func (r *Relay) launchPump(p *Pump) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.start != nil {
		r.start(p)
	}
}

// halt stops a pump, waits until its batches in flight complete, and closes its cursor.
func (r *Relay) halt(p *Pump) error {
	r.mu.Lock()
	stop, ended := p.stop, p.ended
	r.mu.Unlock()
	if stop != nil {
		stop()
		<-ended // within the timeout of one attempt
	}
	return p.cursor.Close()
}

// replacePump replaces a pump after a change of its settings.
func (r *Relay) replacePump(ctx context.Context, old *Pump, out sinks.Configured) (*Pump, error) {
	if err := r.halt(old); err != nil {
		old.log.Warn("closing sink cursor", zap.Error(err))
	}
	for {
		p, err := r.open(ctx, out, old)
		if err == nil {
			p.log.Info("sink restarted with new settings")
			r.launchPump(p)
			return p, nil
		}
		// Wait for the journal, as a pump does.
		old.log.Error("opening sink cursor failed, retrying; the sink gets no events meanwhile", zap.Error(err))
		if sleep.For(ctx, time.Second) != nil {
			return nil, err
		}
	}
}

// remove stops a removed sink and its replays.
func (r *Relay) remove(ctx context.Context, p *Pump) {
	for _, re := range r.Replays() {
		if re.Sink == p.name && re.State == ReplayRunning {
			if _, err := r.StopReplay(ctx, re.ID); err != nil {
				p.log.Warn("stopping a replay of a sink that is removed", zap.String("replay", re.ID), zap.Error(err))
			}
		}
	}
	err := r.halt(p)
	p.log.Warn("sink removed", zap.Uint64("lag_events", p.cursor.Lag()), zap.Error(err))
	r.saveCheckpoints(ctx, map[string]*deliveryHistory{p.name: p.history})
	r.histories.delete(p.name)
	r.opts.Metrics.deleteSeries(p.name)
}

// closeCursors closes the cursors of pumps that were not started.
func (r *Relay) closeCursors(pumps map[string]*Pump) error {
	var errs []error
	for name, p := range pumps {
		errs = append(errs, p.cursor.Close())
		r.histories.delete(name)
		r.opts.Metrics.deleteSeries(name)
	}
	return errors.Join(errs...)
}
