// Package jetstream is the engine of the journal for several machines. One stream of a NATS
// JetStream cluster holds the events, identity keys, dead letters, quarantined requests and
// cursors. Any number of processes share the stream, and each of them may crash at any
// time.
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
	"github.com/postwire/postwire/internal/boottime"
	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/natsclient"
)

// Options of the engine. URL or Server, and Stream, Window and Name are needed.
type Options struct {
	URL      config.URL // servers of the cluster, separated by commas
	Login    natsclient.Login
	Server   nats.InProcessConnProvider // server of the cluster in this process, instead of URL; nil is none
	Stream   string
	Replicas int    // copies of the stream; 0 is 1
	Update   bool   // change a stream with other settings instead of refusing it
	Name     string // name of this process, unique among the processes that share the stream

	Window    time.Duration // dedupe window, from the first receipt of a key
	Retention time.Duration // how long the journal keeps events that every cursor has passed
	MaxBytes  uint64        // size of the stream at which appends fail; 0 is no limit

	// Quarantine is the limit of the quarantined requests of one source, in bytes. Beyond
	// the limit the engine discards the oldest; 0 is journal.DefaultQuarantine.
	Quarantine uint64
	// Discarded is called when this process has discarded quarantined requests, also
	// concurrently. Nil is allowed.
	Discarded func(journal.QuarantineDiscards)

	// Hold is how long an append waits for the cluster before the spill stores the events,
	// or before the append fails without a spill. 0 is three seconds.
	Hold  time.Duration
	Spill *Spill
	Disk  *Disk // disk of Server; nil watches no disk

	Log   *zap.Logger      // nil logs nothing
	Clock func() time.Time // nil is time.Now; a process whose clock differs from most others by more than an hour is not ready and owns nothing
	Every time.Duration    // interval between two removals of expired data; 0 is a minute

	filling        bool                 // a migration writes the stream and may be unfinished
	lease          time.Duration        // how long the ownership of a cursor lasts without a renewal; 0 is defaultLease
	boot           func() time.Duration // clock of the deadlines of ownerships; nil is boottime.Now
	replicaTimeout time.Duration        // how long a replica may be silent before the quorum is in doubt; 0 is defaultReplicaTimeout
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

	pollNow chan struct{} // requests a poll
	trimNow chan struct{} // receives when the stream becomes nearly full, or an append waits

	publishers []*publisher
	spill      *spill        // nil without a spill
	accepted   atomic.Int64  // newest assigned acceptance time, nanoseconds since 1970
	tokens     atomic.Uint64 // distinguishes appends of this process from those of other processes
	trimmed    atomic.Uint64
	free       atomic.Pointer[uint64] // free bytes of opts.Disk at the last poll; nil is unknown
	repeats    repeats
	shares     shares

	mu           sync.Mutex
	changed      chan struct{} // closed and replaced when one of the following changes
	ready        bool          // the stream is configured, and the cursors have records
	permanentErr error         // why the stream is not ready, if only an operator can help
	lastPollErr  error         // error of the last poll; nil after a successful poll
	id           string        // empty before the first poll
	state        state
	fullSince    time.Time // when the stream became full; zero if it is not full
	cursors      map[string]*cursor
	clocks       clocks
	closed       bool
	leaving      bool // Leave: appends fail
	appends      int  // appends in progress

	expiring   sync.Mutex      // guards the following
	unused     map[string]bool // cursors that do not hold back removal, as of the last Expire
	removalErr error           // why the last Expire removed no events
}

var _ journal.Journal = (*Journal)(nil)

// state is the state of the stream at the last poll.
type state struct {
	bytes  uint64
	events uint64
	oldest journal.Seq // no event before this sequence is stored
	last   journal.Seq // newest event, or a later sequence

	ahead time.Duration // how far the clock of the stream's leader is ahead of the clock of this process
}

const (
	// publishers is the maximum number of groups in flight. Each server takes 50 batches of
	// a stream, enough for a dozen processes.
	publishers = 4
	// apiTimeout bounds one request to the cluster, because a cluster without a leader does
	// not answer.
	apiTimeout = 2 * time.Second
	// setUpTimeout bounds the wait for the cluster at the start.
	setUpTimeout = 3 * time.Second
	// pollInterval is the interval between two polls of the stream.
	pollInterval = 500 * time.Millisecond
	// leaveAfter is how long a connection may not reach the cluster before the process
	// connects to another server. It is shorter than the election of a new leader, so that
	// this process reaches the new leader.
	leaveAfter = 2500 * time.Millisecond
)

// Open connects to the cluster and creates or checks the stream. Without a spill, a cluster
// that does not answer is an error. With a spill it is not, because a process must be able
// to start while the cluster is unavailable.
func Open(ctx context.Context, opts Options) (*Journal, error) {
	if opts.Window <= 0 {
		return nil, fmt.Errorf("journal: the dedupe window is %v, it must be longer than 0", opts.Window)
	}
	opts = opts.withDefaults()
	j := &Journal{
		opts: opts, log: opts.Log, names: names{opts.Stream},
		changed: make(chan struct{}), pollNow: make(chan struct{}, 1), trimNow: make(chan struct{}, 1), shares: newShares(), cursors: map[string]*cursor{}, clocks: clocks{peers: map[string]peerClock{}}, state: state{oldest: 1},
	}
	j.tokens.Store(randomToken())
	j.life, j.end = context.WithCancel(context.WithoutCancel(ctx))
	j.newEpoch()
	if err := j.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), j.Close())
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
	if o.replicaTimeout <= 0 {
		o.replicaTimeout = defaultReplicaTimeout
	}
	if o.lease <= 0 {
		o.lease = defaultLease
	}
	if o.boot == nil {
		o.boot = boottime.Now
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
	// Some servers do not know a stream yet that another process has just created.
	for wait, end := newWait(), time.Now().Add(setUpTimeout); err != nil && ctx.Err() == nil && time.Now().Before(end); err = j.setUp(ctx) {
		if _, permanent := errors.AsType[*refusal](err); permanent || sleep.For(ctx, wait.NextBackOff()) != nil {
			break
		}
	}
	if err != nil {
		// A server in this process finds its peers only while the process runs.
		if _, permanent := errors.AsType[*refusal](err); permanent || j.opts.Spill == nil && j.opts.Server == nil {
			return err
		}
		j.log.Warn("the cluster does not answer; what comes in is kept here until it does", zap.Error(err))
		j.lastPollErr = err
	}
	// Before the first cursor and the first lease.
	clockAnnouncements, err := j.conn.Subscribe(j.clockSubject(), j.onClock)
	if err != nil {
		return fmt.Errorf("subscribing to the clocks of other relays: %w", err)
	}
	j.done.Go(func() {
		j.compareClocks(j.life)
		if err := clockAnnouncements.Unsubscribe(); err != nil {
			j.log.Debug("unsubscribing from the clocks of other relays", zap.Error(err))
		}
	})
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

// connect connects to the cluster, and retries for ever.
func (j *Journal) connect() error {
	opts, err := j.opts.Login.Options()
	if err != nil {
		return err
	}
	opts = append(opts,
		nats.Name("postwire/"+j.opts.Name),
		nats.Timeout(apiTimeout),
		nats.RetryOnFailedConnect(true),
		// Detect a dead connection before the hold of an append is over.
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
	if j.opts.Server != nil {
		opts = append(opts, nats.InProcessServer(j.opts.Server))
	}
	if j.conn, err = nats.Connect(j.opts.URL.Reveal(), opts...); err != nil {
		return fmt.Errorf("connecting to %s: %w", j.address(), natsclient.Bare(err))
	}
	j.js, err = jetstream.New(j.conn, jetstream.WithDefaultTimeout(apiTimeout))
	return err
}

// address returns the address of the servers, for messages.
func (j *Journal) address() string {
	if j.opts.Server != nil {
		return "the server in this process"
	}
	return j.opts.URL.String()
}

// connEpoch is the lifetime of one connection. A request without an answer at its end gets
// no answer any more.
type connEpoch struct {
	context.Context
	cancel context.CancelFunc
}

// newEpoch ends the epoch of the previous connection.
func (j *Journal) newEpoch() {
	ctx, lost := context.WithCancel(j.life)
	if before := j.epoch.Swap(&connEpoch{ctx, lost}); before != nil {
		before.cancel()
	}
}

// ask returns the context of one request to the cluster. The context ends with the epoch.
func (j *Journal) ask(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	stop := context.AfterFunc(j.epoch.Load(), cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// setUp creates or checks the stream, and reads or creates the records of the cursors.
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

// openCursors returns the open cursors of this process.
func (j *Journal) openCursors() []*cursor {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.cursors))
}

// connected waits for a connection.
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
			return fmt.Errorf("connecting to %s: %w", j.address(), natsclient.Bare(why))
		case <-j.life.Done():
			return journal.ErrClosed
		}
	}
	return nil
}

// notify wakes all waiting goroutines. The caller holds mu.
func (j *Journal) notify() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// await waits until done returns true. Await calls done with mu held.
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

// waitReady waits until the stream is ready.
func (j *Journal) waitReady(ctx context.Context) error {
	return j.await(ctx, func() bool { return j.ready })
}

// watch polls the stream, retries a failed set-up, and leaves a server that does not reach
// the cluster.
func (j *Journal) watch() {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var left time.Time // time of the last reconnect to another server
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
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			// A server forgets a stream before it removes the files of the stream. A stream
			// that is created in between stores nothing.
			select {
			case <-time.After(pollInterval):
			case <-j.life.Done():
				return
			}
		}
		now := time.Now()
		if err == nil {
			lastAnswer = now
		}
		// A server without a leader may get one soon. A leader that is cut off from the
		// other servers will not be the leader of the cluster.
		timeout := leaveAfter
		if errors.Is(err, errAlone) {
			timeout = pollInterval
		}
		if j.opts.Server == nil && j.conn.IsConnected() && now.Sub(lastAnswer) > timeout && now.Sub(left) > timeout {
			left = now
			if err := j.conn.ForceReconnect(); err != nil {
				j.log.Debug("looking for another server", zap.Error(err))
			}
		}
	}
}

// onPoll records the result of a poll.
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
}

// poll reads the state of the stream. If the stream is missing or was made again, the
// journal is not ready until setUp.
func (j *Journal) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	j.readDisk()
	s, err := j.readState(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, errRemade) {
		j.mu.Lock()
		was := j.ready
		j.ready, j.state = false, state{oldest: 1}
		j.notify()
		j.mu.Unlock()
		if was {
			j.log.Error("the stream of the journal is lost, with its events and the positions of sinks; a new stream is used", zap.String("stream", j.opts.Stream), zap.Error(err))
		}
	}
	if err != nil {
		return fmt.Errorf("looking at the stream %s: %w", j.opts.Stream, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.clocks.cluster = s.ahead
	s.ahead = 0 // changes with every poll
	s.last = max(s.last, j.state.last)
	s.oldest = max(s.oldest, j.state.oldest)
	if j.state != s {
		before := j.nearlyFull(j.state.bytes)
		j.state = s
		j.notify()
		if j.nearlyFull(s.bytes) && !before {
			j.trimSoon()
		}
		if full := j.opts.MaxBytes > 0 && s.bytes >= j.opts.MaxBytes; !full {
			j.fullSince = time.Time{}
		} else if j.fullSince.IsZero() {
			j.fullSince = time.Now()
		}
	}
	return nil
}

// stored records that the cluster has stored an event.
func (j *Journal) stored(s journal.Seq) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s > j.state.last {
		j.state.last = s
		j.notify()
	}
}

// now returns the acceptance time of an append.
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
	if err := j.clockSkew(); err != nil {
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

// check returns why appends fail, also while the cluster does not answer.
func (j *Journal) check() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return journal.ErrClosed
	case j.leaving:
		return errLeaving
	case j.permanentErr != nil:
		return fmt.Errorf("%w: %w", journal.ErrUnavailable, j.permanentErr)
	case j.opts.MaxBytes > 0 && j.state.bytes >= j.opts.MaxBytes:
		return fmt.Errorf("%w: the stream takes %d bytes, journal.max_bytes is %d", journal.ErrFull, j.state.bytes, j.opts.MaxBytes)
	}
	return j.checkDisk()
}

// checkRoom is check for an append. In a stream that has just become full, checkRoom waits
// for the hold: delivered events make room before anything is refused.
func (j *Journal) checkRoom(ctx context.Context) error {
	err := j.check()
	if !errors.Is(err, journal.ErrFull) {
		return err
	}
	j.mu.Lock()
	wait := time.Since(j.fullSince) < 2*trimInterval
	j.mu.Unlock()
	if !wait {
		return err
	}
	j.trimSoon()
	hold, cancel := context.WithTimeout(ctx, j.opts.Hold)
	defer cancel()
	if j.await(hold, func() bool { return j.state.bytes < j.opts.MaxBytes }) == nil {
		return j.check()
	}
	return err
}

// trimSoon requests the removal of delivered events.
func (j *Journal) trimSoon() {
	select {
	case j.trimNow <- struct{}{}:
	default: // already requested
	}
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
	j.diskUsage(&u)
	return u
}

// Append implements journal.Appender. Append splits events that do not fit one batch into
// several batches, one after another.
func (j *Journal) Append(ctx context.Context, events ...event.Event) ([]journal.Receipt, error) {
	if err := j.checkRoom(ctx); err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	done, err := j.begin()
	if err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	defer done()
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

// submitWithin passes a request to its publisher and waits for the result, at most for
// Hold.
func (j *Journal) submitWithin(ctx context.Context, r *request) ([]journal.Receipt, error) {
	hold := time.NewTimer(j.opts.Hold)
	defer hold.Stop()
	receipts, err := j.submit(ctx, r, hold.C)
	if errors.Is(err, errHoldTimeout) {
		return nil, fmt.Errorf("%w: %w", journal.ErrUnavailable, err)
	}
	return receipts, err
}

// errHoldTimeout is returned if the cluster did not answer within the hold. The request may
// be stored or not.
var errHoldTimeout = errors.New("the cluster has not answered in time")

// submit passes a request to its publisher and waits for the result until ctx is done or
// timeout fires. Then the request may be stored or not.
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

// enqueue passes a request to its publisher. The publisher answers at done.
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
	if err := j.checkRoom(ctx); err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	done, err := j.begin()
	if err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	defer done()
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
	var closing sync.WaitGroup
	for _, c := range j.openCursors() { // free the leases while the process is connected
		closing.Go(func() {
			if err := c.Close(); err != nil {
				j.log.Warn("closing a cursor", zap.Error(err))
			}
		})
	}
	closing.Wait()
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
