// Package relay is the fourth step (ingress, source, journal, relay, sinks). A pump for
// each sink reads events from the sink's cursor, filters them, delivers them, retries, and
// turns events that the sink refuses permanently into dead letters.
//
// The relay keeps these invariants:
//
//  1. An event is done for a sink only after the broker acknowledged or permanently refused
//     the event, or after the discard policy or the filter left the event out.
//  2. A crash repeats deliveries of events that were in flight, or done since the last
//     commit, with the same CloudEvents id; a crash never skips an event.
//  3. Events with the same partition key are delivered in order: a failed event is retried
//     before later ones are sent. Events with other keys, or without a key, do not wait.
//  4. Dead letters and dispositions are stored before later events of their key are sent.
//  5. A failing or slow sink delays neither another sink nor the ingress.
//  6. Of the relays that share a journal, only the owner of a cursor delivers.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

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
	Traces  *telemetry.Traces                                                 // nil disables tracing
	Now     func() time.Time                                                  // nil is time.Now
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil is a net.Dialer

	// Redirect returns an opener of a configured sink with other values for some of
	// its keys, for a replay. With nil a replay cannot override keys.
	Redirect func(sink string, keys map[string]string) (sinks.Opener, error)
}

// Relay runs the pumps of all sinks, and replays. The methods may be called concurrently.
type Relay struct {
	opts      Options
	changes   broadcast
	replays   replays
	histories histories

	unconfigured unconfigured

	pauseMu          sync.Mutex    // held while pauses change
	pausesLoaded     chan struct{} // closed when the pauses are read from the journal
	pausesLoadedOnce sync.Once     // closes pausesLoaded

	setSinksMu sync.Mutex // held for all of an exchange
	mu         sync.Mutex
	pumps      []*Pump // replaced as a whole by SetSinks
	start      func(*Pump)
}

// New opens a cursor for each sink. From then on the journal keeps the events after the
// cursor.
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
	// The cluster of the journal may be unavailable. Run reads replays and pauses when
	// the cluster is back.
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

// open returns a new pump for a sink. A pump that is replaced has closed its cursor
// before; replays of the sink go on with the new configuration.
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
		kind: out.Kind, traces: r.opts.Traces, metrics: r.opts.Metrics.sink(out.Name, cursor, r.opts.Now), spec: &atomic.Pointer[sinkSpec]{},
		read: r.opts.Journal.Read, last: r.opts.Journal.Last, oldest: r.opts.Journal.Oldest,
		limiter: limiterOf(out.Settings.Rate), asks: make(chan func(*pumpRun)),
	}
	p.filter.metrics = p.metrics
	if before != nil {
		p.spec = before.spec // replays that run go by it
	}
	p.spec.Store(specOf(out))
	p.history = r.histories.of(out.Name, func() *deliveryHistory {
		return &deliveryHistory{pausesLoaded: r.pausesLoaded, sink: out.Name, since: r.opts.Now(), startSeq: cursor.Committed()}
	})
	p.pause = p.history
	p.traffic = &live{out.Name, p.filter, p.metrics, p.history, r.changes.send}
	p.handle = sinkHandle{
		spec: p.spec, timeout: out.Settings.Timeout, env: sinks.Env{Name: out.Name, Log: log, DeadLetterOn: out.Settings.Retry.DeadLetterOn, Dial: r.opts.Dial, Now: r.opts.Now, Opaque: p.metrics.opaque.Inc},
		journal: r.opts.Journal.ID, unsent: r.opts.Journal.Last() + 1, duplicates: duplicates{counters: p.metrics.duplicates},
	}
	if before != nil && before.kind == out.Kind {
		p.owned, p.handle.memory = before.owned, before.handle.memory
	}
	return p, nil
}

// limiterOf returns the limiter of a rate; nil is no limit.
func limiterOf(r sinks.Rate) *rate.Limiter {
	if r.PerSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(r.PerSecond), max(1, cmp.Or(r.Burst, int(r.PerSecond))))
}

// Run runs all pumps and replays until ctx is done. Batches in flight may complete until
// hard is done. A pump fails only if the journal fails; then Run ends all pumps. Run is
// called once.
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

// pumpSnapshot returns the current pumps. The caller does not change the slice.
func (r *Relay) pumpSnapshot() []*Pump {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pumps
}

// Has returns nil for the name of a configured sink, and otherwise an error that wraps
// ErrNoSink.
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

// ErrNoSink is wrapped when no configured sink has the name.
var ErrNoSink = errors.New("it is not in the configuration")

// broadcast wakes all waiting goroutines. The zero value is ready.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // nil while no goroutine waits
}

// next returns a channel that the next send closes.
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
