// Package relay is the fourth step (ingress, source, journal, relay, sinks): a
// pump for each sink, which reads from its own cursor, filters, delivers,
// retries, and sets aside what can never be delivered. One sink's trouble
// touches neither another nor the ingress.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// Options of a Relay. Journal, Log and Metrics are needed.
type Options struct {
	Journal journal.Journal
	Sinks   []sinks.Configured
	Log     *zap.Logger
	Metrics *Metrics
	Traces  *telemetry.Traces                                                 // nil makes none
	Now     func() time.Time                                                  // nil is time.Now
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil is the network

	// Redirect opens a configured sink with some of its keys set otherwise,
	// for a replay; nil refuses that.
	Redirect func(sink string, keys map[string]string) (sinks.Opener, error)
}

// Relay is the pumps of all sinks, and the replays beside them. Its methods
// may be called concurrently.
type Relay struct {
	opts      Options
	changes   broadcast
	replays   replays
	histories histories

	unconfigured unconfigured

	pauseMu          sync.Mutex    // held while pauses change
	pausesLoaded     chan struct{} // closed when it is known which sinks are paused
	pausesLoadedOnce sync.Once     // for noted

	setSinksMu sync.Mutex // held for all of an exchange
	mu         sync.Mutex
	pumps      []*Pump // never changed, only exchanged
	start      func(*Pump)
}

// New opens a cursor for each sink. From then on the journal keeps what the
// sink has not been given.
func New(ctx context.Context, opts Options) (*Relay, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Dial == nil {
		opts.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	r := &Relay{opts: opts, replays: replays{all: map[string]*replay{}}, pausesLoaded: make(chan struct{}), unconfigured: unconfigured{logged: map[string]bool{}}}
	for _, out := range opts.Sinks {
		p, err := r.open(ctx, out, nil)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.pumps = append(r.pumps, p)
	}
	// A journal that is in a cluster may be away, and the start must not wait for
	// it: then they are read when it is there.
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := r.syncFromJournal(soon)
	if err == nil {
		err = r.readUnconfigured(soon) // before anything is accepted that an unconfigured sink was never meant to get
	}
	if err != nil && soon.Err() == nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// open makes the pump of a sink, in place of another one's where that is not
// nil and has let go of its cursor.
func (r *Relay) open(ctx context.Context, out sinks.Configured, before *Pump) (*Pump, error) {
	selects, err := filter.Parse(out.Settings.Filter)
	if err != nil {
		return nil, fmt.Errorf("sink %s: filter: %w", out.Name, err)
	}
	start := journal.Latest
	if out.Settings.Start == "earliest" {
		start = journal.Earliest
	}
	cursor, err := r.opts.Journal.Reader(ctx, out.Name, start)
	if err != nil {
		return nil, fmt.Errorf("sink %s: %w", out.Name, err)
	}
	log := r.opts.Log.With(zap.String("sink", out.Name))
	p := &Pump{
		name: out.Name, configured: out, settings: out.Settings, filter: &sinkFilter{Filter: selects, log: log}, cursor: cursor, log: log,
		kind: out.Kind, traces: r.opts.Traces, moved: r.changes.send, window: newWindow(out.Settings.Batch),
		metrics: r.opts.Metrics.sink(out.Name, cursor, r.opts.Now), spec: &atomic.Pointer[sinkSpec]{},
	}
	p.filter.metrics = p.metrics
	if before != nil {
		p.spec = before.spec // replays that run go by it
	}
	p.spec.Store(specOf(out))
	p.history = r.histories.of(out.Name, func() *deliveryHistory {
		return &deliveryHistory{pausesLoaded: r.pausesLoaded, sink: out.Name, since: r.opts.Now(), startSeq: cursor.Committed()}
	})
	p.handle = sinkHandle{
		history: p.history, spec: p.spec, timeout: out.Settings.Timeout, latency: p.metrics.latency, env: sinks.Env{Name: out.Name, Log: log, DeadLetterOn: out.Settings.Retry.DeadLetterOn, Dial: r.opts.Dial, Now: r.opts.Now, Opaque: p.metrics.opaque.Inc},
		journal: r.opts.Journal.ID, unsent: r.opts.Journal.Last() + 1, duplicates: duplicates{counters: p.metrics.duplicates},
	}
	p.last = r.opts.Journal.Last
	return p, nil
}

// Run runs all pumps until ctx is done; what is with a broker at that moment
// may take until hard is done. When a pump fails, as it does only when the
// journal is broken, the others end too. Replays that were running when the
// last process ended go on. It is called once.
func (r *Relay) Run(ctx, hard context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var replays, pumps, checkpoints sync.WaitGroup
	delivered := make(chan struct{})
	checkpoints.Go(func() { r.runCheckpoints(ctx, hard, delivered) })
	replays.Go(func() { r.runReplays(ctx, hard) })
	replays.Go(func() { r.watchUnconfigured(ctx) })
	var failed []error
	r.mu.Lock()
	r.start = func(p *Pump) {
		running, stop := context.WithCancel(ctx)
		p.stop, p.ended = stop, make(chan struct{})
		pumps.Go(func() {
			defer close(p.ended)
			defer stop()
			err := p.Run(running, hard)
			if err == nil && running.Err() != nil {
				return
			}
			cancel() // the journal is closed, or broken
			r.mu.Lock()
			defer r.mu.Unlock()
			failed = append(failed, err)
		})
	}
	for _, p := range r.pumps {
		r.start(p)
	}
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock()
	r.start = nil
	r.mu.Unlock()
	pumps.Wait()
	close(delivered)
	checkpoints.Wait()
	replays.Wait()
	r.replays.wait()
	return errors.Join(failed...)
}

// Close closes the cursors.
func (r *Relay) Close() error {
	var errs []error
	for _, p := range r.pumpSnapshot() {
		errs = append(errs, p.cursor.Close())
	}
	return errors.Join(errs...)
}

// pumpSnapshot is the pumps there are.
func (r *Relay) pumpSnapshot() []*Pump {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pumps
}

// Has returns nil if there is a sink of that name, and otherwise an error that
// wraps ErrNoSink.
func (r *Relay) Has(sink string) error {
	_, err := r.pump(sink)
	return err
}

// pump returns the pump of a sink.
func (r *Relay) pump(sink string) (*Pump, error) {
	for _, p := range r.pumpSnapshot() {
		if p.name == sink {
			return p, nil
		}
	}
	return nil, fmt.Errorf("sink %q: %w", sink, ErrNoSink)
}

// ErrNoSink is wrapped where there is no sink of that name.
var ErrNoSink = errors.New("it is not in the configuration")

// broadcast wakes all who wait for a change. The zero value is ready.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // nil while nobody waits
}

// next returns a channel that is closed at the next change.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
