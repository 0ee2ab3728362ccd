// Package jetstream is the engine of the journal for more than one machine: the
// log, its identity keys, what was set aside and the cursors are in one stream of
// a NATS JetStream cluster. Any number of processes share it, and any of them may
// die.
package jetstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/natsclient"
)

// Options of the engine. URL, Stream, Window and Name are needed.
type Options struct {
	URL      config.URL // servers of the cluster, separated by commas
	Login    natsclient.Login
	Stream   string
	Replicas int    // servers that keep a copy; 0 is 1
	Update   bool   // change a stream whose settings differ, rather than refuse it
	Name     string // of this process; no other one that shares the stream has it

	Window    time.Duration // dedupe: from the first sight of a key
	Retention time.Duration // how long events stay that every cursor has passed
	MaxBytes  uint64        // size of the stream at which appends are refused; 0 is no limit

	// Quarantine is how many bytes the quarantined requests of one source take
	// before the oldest are discarded; 0 is journal.DefaultQuarantine.
	Quarantine uint64
	// Discarded is told of quarantined requests that this process has discarded,
	// by several goroutines; nil is not told.
	Discarded func(journal.QuarantineDiscards)

	// Hold is how long an append waits for the cluster before it is kept by
	// Spill, or fails where there is none. 0 is three seconds.
	Hold  time.Duration
	Spill *Spill

	Log   *zap.Logger      // nil is silent
	Clock func() time.Time // nil is time.Now; clocks of processes that share a stream must agree
	Every time.Duration    // between two removals of what is old; 0 is a minute

	filling bool // by a transfer, which may not be finished
}

// Journal implements journal.Journal.
type Journal struct {
	opts  Options
	log   *zap.Logger
	names names
	conn  *nats.Conn
	js    jetstream.JetStream

	life  context.Context // until Close
	end   context.CancelFunc
	done  sync.WaitGroup
	epoch atomic.Pointer[connEpoch]

	pollNow chan struct{} // asks for a look at the cluster

	publishers []*publisher
	spill      *spill        // nil where nothing is kept here
	accepted   atomic.Int64  // newest time of acceptance given, nanoseconds since 1970
	tokens     atomic.Uint64 // tells our own events from another process's twins
	trimmed    atomic.Uint64
	repeats    repeats
	shares     shares

	mu           sync.Mutex
	changed      chan struct{} // closed, and made anew, when any of these change
	ready        bool          // the stream is as it must be, and the cursors have their consumers
	permanentErr error         // why it is not, where only an operator can help
	lastPollErr  error         // why the cluster was not heard at the last look; nil is that it was
	id           string        // empty until the stream was seen
	state        state
	cursors      map[string]*cursor
	closed       bool
}

var _ journal.Journal = (*Journal)(nil)

// state is the stream as of a moment ago.
type state struct {
	bytes  uint64
	events uint64
	oldest journal.Seq // no event before it is stored
	last   journal.Seq // newest event, or a place behind all that there were
}

const (
	// publishers is how many groups may be on their way at once. Each server
	// takes 50 of a stream's, so that a dozen processes fit.
	publishers = 4
	// apiTimeout is for one request to the cluster: one that has no leader
	// does not answer.
	apiTimeout = 2 * time.Second
	// setUpTimeout is how long the start waits for the cluster.
	setUpTimeout = 3 * time.Second
	// pollInterval is between two looks at the stream.
	pollInterval = 500 * time.Millisecond
	// leaveAfter is after how long without the cluster a connection is made to
	// another server: sooner than a new leader is elected, so that this process
	// is among those who see it.
	leaveAfter = 2500 * time.Millisecond
)

// Open connects to the cluster and creates or checks the stream. A cluster that
// does not answer is an error only where there is no Spill to keep events in
// until it does: a process must be able to start while the cluster is away.
func Open(ctx context.Context, opts Options) (*Journal, error) {
	if opts.Window <= 0 {
		return nil, fmt.Errorf("journal: the dedupe window is %v, it must be longer than 0", opts.Window)
	}
	opts = opts.withDefaults()
	j := &Journal{
		opts: opts, log: opts.Log, names: names{opts.Stream},
		changed: make(chan struct{}), pollNow: make(chan struct{}, 1), shares: newShares(), cursors: map[string]*cursor{}, state: state{oldest: 1},
	}
	j.tokens.Store(randomToken())
	j.life, j.end = context.WithCancel(context.WithoutCancel(ctx))
	j.newEpoch()
	if err := j.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), j.Close()) //nolint:contextcheck // it is closed even if ctx is done
	}
	return j, nil
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Every <= 0 {
		o.Every = time.Minute
	}
	if o.Hold <= 0 {
		o.Hold = 3 * time.Second
	}
	o.Replicas = max(o.Replicas, 1)
	if o.Quarantine == 0 {
		o.Quarantine = journal.DefaultQuarantine(o.MaxBytes)
	}
	if o.Discarded == nil {
		o.Discarded = func(journal.QuarantineDiscards) {}
	}
	return o
}

func (j *Journal) open(ctx context.Context) error {
	if err := j.connect(); err != nil {
		return err
	}
	err := j.setUp(ctx)
	// A stream that another process has just made is not there for everybody yet.
	for wait, end := newWait(), time.Now().Add(setUpTimeout); err != nil && ctx.Err() == nil && time.Now().Before(end); err = j.setUp(ctx) {
		if _, permanent := errors.AsType[*refusal](err); permanent || sleep.For(ctx, wait.NextBackOff()) != nil {
			break
		}
	}
	if err != nil {
		if _, permanent := errors.AsType[*refusal](err); permanent || j.opts.Spill == nil {
			return err
		}
		j.log.Warn("the cluster does not answer; what comes in is kept here until it does", zap.Error(err))
		j.lastPollErr = err
	}
	for range publishers {
		p := newPublisher(j)
		j.publishers = append(j.publishers, p)
		j.done.Go(func() { p.run(j.life) })
	}
	if j.opts.Spill != nil {
		var err error
		if j.spill, err = openSpill(j); err != nil {
			return err
		}
		j.done.Go(func() { j.spill.run(j.life) })
	}
	j.done.Go(j.watch)
	j.done.Go(j.expireAll)
	j.done.Go(j.keepShares)
	return nil
}

// connect makes the connection, which looks for the cluster for ever.
func (j *Journal) connect() error {
	opts, err := j.opts.Login.Options()
	if err != nil {
		return err
	}
	opts = append(opts,
		nats.Name("postwire/"+j.opts.Name),
		nats.Timeout(apiTimeout),
		nats.RetryOnFailedConnect(true),
		// A connection that is dead without saying so is given up before the
		// hold of an append is over.
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			j.newEpoch()
			if j.life.Err() == nil {
				j.log.Warn("disconnected from the journal's cluster", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			j.log.Info("connected to the journal's cluster again", zap.String("server", c.ConnectedUrlRedacted()))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			j.log.Warn("the journal's cluster reports an error", zap.Error(err))
		}),
	)
	if j.conn, err = nats.Connect(j.opts.URL.Reveal(), opts...); err != nil {
		return fmt.Errorf("connecting to %s: %w", j.opts.URL, natsclient.Bare(err))
	}
	j.js, err = jetstream.New(j.conn, jetstream.WithDefaultTimeout(apiTimeout))
	return err
}

// connEpoch is the time of one connection: an answer that it has not brought, none
// will bring.
type connEpoch struct {
	context.Context
	cancel context.CancelFunc
}

// newEpoch ends the time of the connection before.
func (j *Journal) newEpoch() {
	ctx, lost := context.WithCancel(j.life)
	if before := j.epoch.Swap(&connEpoch{ctx, lost}); before != nil {
		before.cancel()
	}
}

// ask is for one request to the cluster: it ends when there can be no answer any
// more.
func (j *Journal) ask(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	stop := context.AfterFunc(j.epoch.Load(), cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// setUp makes the stream, or checks it, and gives the cursors their consumers.
func (j *Journal) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout)
	defer cancel()
	if err := j.connected(ctx); err != nil {
		return err
	}
	if err := j.configureStream(ctx); err != nil {
		return err
	}
	if err := j.poll(ctx); err != nil {
		return err
	}
	for _, c := range j.openCursors() {
		if err := c.bind(ctx); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ready, j.permanentErr, j.lastPollErr = true, nil, nil
	j.notify()
	return nil
}

// openCursors are those that are open in this process.
func (j *Journal) openCursors() []*cursor {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.cursors))
}

// connected waits until there is a connection.
func (j *Journal) connected(ctx context.Context) error {
	changes := j.conn.StatusChanged(nats.CONNECTED)
	defer j.conn.RemoveStatusListener(changes)
	for !j.conn.IsConnected() {
		select {
		case <-changes:
		case <-ctx.Done():
			why := j.conn.LastError()
			if why == nil {
				why = errors.New("no server answers")
			}
			return fmt.Errorf("connecting to %s: %w", j.opts.URL, natsclient.Bare(why))
		case <-j.life.Done():
			return journal.ErrClosed
		}
	}
	return nil
}

// notify wakes all who wait for a change. The caller holds mu.
func (j *Journal) notify() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// await waits until done, which is called with mu held, reports true.
func (j *Journal) await(ctx context.Context, done func() bool) error {
	for {
		j.mu.Lock()
		ok, changed, closed := done(), j.changed, j.closed
		j.mu.Unlock()
		switch {
		case closed:
			return journal.ErrClosed
		case ok:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitReady waits until the stream is as it must be.
func (j *Journal) waitReady(ctx context.Context) error {
	return j.await(ctx, func() bool { return j.ready })
}

// watch looks at the stream, sets up what could not be set up when the journal
// was opened, and leaves a server behind which does not find the cluster.
func (j *Journal) watch() {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var left time.Time // a server, for another one
	lastAnswer := time.Now()
	for {
		select {
		case <-tick.C:
		case <-j.pollNow:
		case <-j.life.Done():
			return
		}
		j.mu.Lock()
		ready := j.ready
		j.mu.Unlock()
		var err error
		if ready {
			err = j.poll(j.life)
		} else {
			err = j.setUp(j.life)
		}
		if j.life.Err() != nil {
			return
		}
		j.onPoll(err)
		now := time.Now()
		if err == nil {
			lastAnswer = now
		}
		// A server without a leader may have one soon; a leader that is cut off
		// from the others will not be theirs.
		timeout := leaveAfter
		if errors.Is(err, errAlone) {
			timeout = pollInterval
		}
		if j.conn.IsConnected() && now.Sub(lastAnswer) > timeout && now.Sub(left) > timeout {
			left = now
			if err := j.conn.ForceReconnect(); err != nil {
				j.log.Debug("looking for another server", zap.Error(err))
			}
		}
	}
}

// onPoll notes how a look at the cluster ended.
func (j *Journal) onPoll(err error) {
	j.mu.Lock()
	was, refused := j.lastPollErr, j.permanentErr
	j.lastPollErr = err
	if _, permanent := errors.AsType[*refusal](err); permanent {
		j.permanentErr = err
	}
	if (was == nil) != (err == nil) {
		j.notify()
	}
	report := err != nil && (was == nil || refused == nil && j.permanentErr != nil)
	j.mu.Unlock()
	switch {
	case err == nil && was != nil:
		j.log.Info("the journal's cluster answers again")
		if j.spill != nil {
			j.spill.extendGrace()
		}
	case report:
		j.log.Error("the journal's cluster does not take events", zap.Error(err))
	}
	if err == nil {
		for _, c := range j.openCursors() {
			c.poll(j.life)
		}
	}
}

// poll reads the state of the stream.
func (j *Journal) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := j.readState(ctx)
	if err != nil {
		return fmt.Errorf("looking at the stream %s: %w", j.opts.Stream, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s.last = max(s.last, j.state.last)
	s.oldest = max(s.oldest, j.state.oldest)
	if j.state != s {
		j.state = s
		j.notify()
	}
	return nil
}

// stored notes that the cluster has stored an event.
func (j *Journal) stored(s journal.Seq) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s > j.state.last {
		j.state.last = s
		j.notify()
	}
}

// now is the time of acceptance of what is appended now.
func (j *Journal) now() int64 {
	now := j.opts.Clock().UnixNano()
	for {
		newest := j.accepted.Load()
		if now <= newest {
			return newest
		}
		if j.accepted.CompareAndSwap(newest, now) {
			return now
		}
	}
}

// Check implements journal.Journal.
func (j *Journal) Check() error {
	if err := j.check(); err != nil {
		return err
	}
	j.mu.Lock()
	unheard := j.lastPollErr
	j.mu.Unlock()
	switch {
	case unheard == nil:
		return nil
	case j.spill == nil:
		return fmt.Errorf("%w: %w", journal.ErrUnavailable, unheard)
	}
	return j.spill.check()
}

// check says why nothing is taken, whether the cluster answers or not.
func (j *Journal) check() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return journal.ErrClosed
	case j.permanentErr != nil:
		return fmt.Errorf("%w: %w", journal.ErrUnavailable, j.permanentErr)
	case j.opts.MaxBytes > 0 && j.state.bytes >= j.opts.MaxBytes:
		return fmt.Errorf("%w: the stream takes %d bytes, journal.max_bytes is %d", journal.ErrFull, j.state.bytes, j.opts.MaxBytes)
	}
	return nil
}

// ID implements journal.Log.
func (j *Journal) ID() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.id
}

// Usage implements journal.Journal.
func (j *Journal) Usage() journal.Usage {
	j.mu.Lock()
	u := journal.Usage{Events: j.state.events, Bytes: j.state.bytes, MaxBytes: j.opts.MaxBytes, Trimmed: j.trimmed.Load()}
	j.mu.Unlock()
	if j.spill != nil {
		u.Spilled, u.SpilledSince = j.spill.depth()
	}
	return u
}

// Append implements journal.Appender. More events than fit one act are several,
// one after another.
func (j *Journal) Append(ctx context.Context, events ...event.Event) ([]journal.Receipt, error) {
	if err := j.check(); err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	staged, err := stage(events)
	if err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	var receipts []journal.Receipt
	for _, part := range fitting(staged) {
		r, err := j.appendPart(ctx, part)
		if err != nil {
			return nil, fmt.Errorf("appending: %w", err)
		}
		receipts = append(receipts, r...)
	}
	return receipts, nil
}

func (j *Journal) appendPart(ctx context.Context, events []*staged) ([]journal.Receipt, error) {
	if j.spill != nil {
		return j.spill.append(ctx, events)
	}
	return j.submitWithin(ctx, &request{events: events})
}

// submitWithin hands a request to its publisher and waits for the outcome, but no
// longer than the hold.
func (j *Journal) submitWithin(ctx context.Context, r *request) ([]journal.Receipt, error) {
	hold := time.NewTimer(j.opts.Hold)
	defer hold.Stop()
	receipts, err := j.submit(ctx, r, hold.C)
	if errors.Is(err, errHoldTimeout) {
		return nil, fmt.Errorf("%w: %w", journal.ErrUnavailable, err)
	}
	return receipts, err
}

// errHoldTimeout is returned for what the cluster did not settle within the hold: it
// may have stored it, or not.
var errHoldTimeout = errors.New("the cluster has not answered in time")

// submit hands a request to its publisher and waits for the outcome until ctx is
// done or give fires. What became of it after that is not known.
func (j *Journal) submit(ctx context.Context, r *request, timeout <-chan time.Time) ([]journal.Receipt, error) {
	if err := j.enqueue(ctx, r, timeout); err != nil {
		return nil, err
	}
	select {
	case err := <-r.done:
		return r.receipts, err
	case <-timeout:
		r.abandon()
		return nil, errHoldTimeout
	case <-ctx.Done():
		r.abandon()
		return nil, ctx.Err()
	}
}

// enqueue hands a request to its publisher, which answers at done.
func (j *Journal) enqueue(ctx context.Context, r *request, timeout <-chan time.Time) error {
	r.done = make(chan error, 1)
	select {
	case j.publishers[r.publisher()].requests <- r:
		return nil
	case <-timeout:
		return errHoldTimeout
	case <-ctx.Done():
		return ctx.Err()
	case <-j.life.Done():
		return journal.ErrClosed
	}
}

// Quarantine implements journal.Appender.
func (j *Journal) Quarantine(ctx context.Context, r journal.QuarantinedRequest) (string, error) {
	if err := j.check(); err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	r = r.WithDefaults(j.opts.Clock())
	if j.spill != nil {
		return j.spill.quarantine(ctx, r)
	}
	id, err := j.quarantine(ctx, r)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", journal.ErrUnavailable, err)
	}
	return id, err
}

// Close implements io.Closer. A second call does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.notify()
	j.mu.Unlock()
	for _, c := range j.openCursors() { // they hand over while there is a connection
		if err := c.Close(); err != nil {
			j.log.Warn("closing a cursor", zap.Error(err))
		}
	}
	j.end()
	j.done.Wait()
	var err error
	if j.spill != nil {
		err = j.spill.close()
	}
	if j.conn != nil {
		j.conn.Close()
	}
	if err != nil {
		return fmt.Errorf("closing the journal: %w", err)
	}
	return nil
}
