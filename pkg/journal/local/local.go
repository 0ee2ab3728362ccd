// Package local is the journal engine on the local disk. A log of segments holds every
// event with its identity keys, and every other change. One committer groups waiting
// requests into one synced write, so that deduplication and durability are one atomic act,
// and many appends share a sync. An index, a Pebble store, follows the log: identity keys,
// positions of events, cursors, dead letters. After a crash the index is brought up to date
// from the end of the log. The bodies of quarantined requests are files.
package local

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Options of the engine. Dir and Window are needed.
type Options struct {
	Dir       string
	Window    time.Duration // dedupe window, from the first receipt of a key
	Retention time.Duration // how long the journal keeps events that every cursor has passed
	MaxBytes  uint64        // size of the journal at which appends fail; 0 is no limit
	MinFree   uint64        // bytes of free disk space below which appends fail

	// Quarantine is the limit of the quarantined requests of one source, in bytes. Beyond
	// the limit the engine discards the oldest; 0 is journal.DefaultQuarantine.
	Quarantine uint64
	// Discarded is called by one goroutine when quarantined requests were discarded. Nil is
	// allowed.
	Discarded func(journal.QuarantineDiscards)

	Name     string // name of this process, the owner of cursors
	KeepKeys bool   // read the identity keys with the records

	Log   *zap.Logger      // nil logs nothing
	FS    vfs.FS           // nil is the disk
	Clock func() time.Time // nil is time.Now
	Every time.Duration    // interval between two removals of expired data; 0 is a minute

	filling bool // a migration writes the journal and may be unfinished
	// Synced is called by one goroutine with the number of changes of each synced write.
	// Nil is allowed.
	Synced func(changes int)

	segment int64 // size of a segment in bytes; 0 is 16 MiB, or less in a small journal. Tests use small segments.
}

// Journal implements journal.Journal.
type Journal struct {
	opts     Options
	log      *zap.Logger
	lock     *pebble.Lock
	marker   marker
	requests chan *request
	stop     chan struct{} // closed by Close
	life     context.Context
	end      context.CancelFunc // with stop
	ended    chan struct{}      // closed when the committer has answered all requests
	done     sync.WaitGroup

	tail      tail
	room      atomic.Pointer[room]
	measuring sync.Mutex // one measurement at a time
	// reserved: the reserve exists or cannot be made.
	reserved        atomic.Bool
	trimmed         atomic.Uint64 // events removed before their retention
	quarantineCount atomic.Int64  // quarantined requests on stable storage
	quarantineBytes atomic.Int64  // their size
	rotated         chan struct{} // wakes makeRoom
	bodies          *bodies
	discards        discards

	mu      sync.Mutex
	store   *store        // nil while the store is reopened
	failure error         // why the store is reopened
	changed chan struct{} // closed and replaced when store, durable or closed changes
	durable journal.Seq
	oldest  journal.Seq // no event before this sequence is stored in the log
	cursors map[string]*cursor

	retained retained
	pins     map[string]pin
	closed   bool
}

var _ journal.Journal = (*Journal)(nil)

// Open opens or creates the journal in opts.Dir. It refuses a folder that another process
// uses, and a journal of another format.
func Open(opts Options) (_ *Journal, err error) {
	defer func() { err = explained(err, opts.Dir) }()
	if opts.Window <= 0 {
		return nil, fmt.Errorf("journal: the dedupe window is %v, it must be longer than 0", opts.Window)
	}
	opts = opts.withDefaults()
	if err := makeDir(opts.FS, opts.Dir); err != nil {
		return nil, fmt.Errorf("journal %s: making the folder: %w", opts.Dir, err)
	}
	lock, err := lockDir(opts)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", opts.Dir, err)
	}
	m, err := checkFormat(opts.FS, opts.Dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), lock.Close())
	}
	if p, ok := opts.FS.(private); ok {
		p.tighten(opts.Dir, opts.Log)
	}
	j := newJournal(opts, lock, m)
	st, err := j.open()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), lock.Close())
	}
	if err := errors.Join(j.bodies.sweep(st), j.pinAll(j.life), removeMigrated(opts)); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: opening: %w", opts.Dir, err), st.close(), lock.Close())
	}
	_, err = opts.FS.Stat(opts.FS.PathJoin(opts.Dir, reserveFile))
	j.reserved.Store(err == nil)
	j.measure()
	j.done.Go(func() { j.run(st) })
	j.done.Go(j.expire)
	j.done.Go(j.watch)
	j.done.Go(j.makeRoom)
	j.done.Go(j.removeBodies)
	return j, nil
}

func newJournal(opts Options, lock *pebble.Lock, m marker) *Journal {
	j := &Journal{
		opts: opts, log: opts.Log, lock: lock, marker: m,
		requests: make(chan *request, maxGroupRequests),
		stop:     make(chan struct{}),
		ended:    make(chan struct{}),
		changed:  make(chan struct{}),
		rotated:  make(chan struct{}, 1),
		bodies:   newBodies(opts),
		cursors:  map[string]*cursor{},
		pins:     map[string]pin{},
	}
	j.life, j.end = context.WithCancel(context.Background())
	j.room.Store(&room{})
	return j
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	o.FS = privateDisk(o.FS)
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Every <= 0 {
		o.Every = time.Minute
	}
	if o.segment == 0 {
		// Room is made and limits are kept in segments.
		o.segment = 16 << 20
		if o.MaxBytes > 0 {
			o.segment = min(max(int64(o.MaxBytes/64), 256<<10), o.segment)
		}
	}
	if o.Quarantine == 0 {
		o.Quarantine = journal.DefaultQuarantine(o.MaxBytes)
	}
	if o.Discarded == nil {
		o.Discarded = func(journal.QuarantineDiscards) {}
	}
	return o
}

// notify wakes all waiting goroutines. The caller holds mu.
func (j *Journal) notify() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// run commits on the current store until Close, and reopens the store after a failure.
func (j *Journal) run(st *store) {
	defer close(j.ended)
	for {
		failure := st.commit(j.requests, j.stop, j.synced)
		j.mu.Lock()
		j.store, j.failure = nil, failure
		j.notify()
		j.mu.Unlock()
		st.users.Wait()
		if err := st.close(); err != nil && failure == nil {
			j.log.Error("closing the journal", zap.Error(err))
		}
		if failure == nil {
			return
		}
		j.log.Error("the journal's disk failed; new events are refused until it has been opened again",
			zap.String("dir", j.opts.Dir), zap.Error(failure))
		if st = j.reopen(); st == nil {
			return
		}
		j.log.Info("the journal is open again", zap.String("dir", j.opts.Dir), zap.Uint64("last", uint64(j.Last())))
	}
}

// reopen reopens the store, with retries, and refuses requests meanwhile. It returns nil
// after Close.
func (j *Journal) reopen() *store {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, 5*time.Second
	for {
		retry := time.NewTimer(wait.NextBackOff())
		for waiting := true; waiting; {
			select {
			case <-retry.C:
				waiting = false
			case r := <-j.requests:
				r.done <- j.Check()
			case <-j.stop:
				retry.Stop()
				return nil
			}
		}
		st, err := j.open()
		if err == nil {
			return st
		}
		j.mu.Lock()
		j.failure = err
		j.mu.Unlock()
		j.log.Warn("the journal cannot be opened yet", zap.String("dir", j.opts.Dir), zap.Error(err))
	}
}

// synced advances the durable sequence after the sync of a group.
func (j *Journal) synced(g *group) {
	if j.opts.Synced != nil {
		j.opts.Synced(len(g.requests))
	}
	j.tail.add(g.appended)
	j.quarantineCount.Add(g.added)
	j.quarantineBytes.Add(g.addedBytes)
	j.bodies.remove(g.dropped)
	j.discards.add(g.discarded)
	for _, d := range g.discarded {
		j.opts.Discarded(d)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if g.last > j.durable {
		j.durable = g.last
		j.notify()
	}
}

// Last implements journal.Journal.
func (j *Journal) Last() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// ID implements journal.Log.
func (j *Journal) ID() string { return j.marker.id.String() }

// Oldest implements journal.Log.
func (j *Journal) Oldest() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.first()
}

// removedBefore returns the sequence before which the log has no stored event.
func (j *Journal) removedBefore() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.oldest
}

// AcquireLease implements journal.Journal: one process uses this journal.
func (j *Journal) AcquireLease(context.Context, string, time.Duration) (bool, error) {
	return true, nil
}

// Count implements journal.Log. The sequences of the events in the log have no gaps.
func (j *Journal) Count(_ context.Context, from, through journal.Seq) (n uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, fmt.Errorf("counting events: %w", journal.ErrClosed)
	}
	for _, s := range j.retained.seqs {
		if s >= from && s <= through && s < j.oldest {
			n++
		}
	}
	if from, through = max(from, j.oldest), min(through, j.durable); from <= through {
		n += uint64(through-from) + 1
	}
	return n, nil
}

// Wait implements journal.Log.
func (j *Journal) Wait(ctx context.Context, s journal.Seq) error {
	_, err := j.reach(ctx, s)
	return err
}

// Check implements journal.Journal.
func (j *Journal) Check() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return journal.ErrClosed
	case j.store == nil:
		return fmt.Errorf("%w: %w", journal.ErrUnavailable, j.failure)
	case j.room.Load().full != "":
		return fmt.Errorf("%w: %s", journal.ErrFull, j.room.Load().full)
	}
	return j.roomFor(j.store, 0)
}

// spare holds unused requests.
var spare = sync.Pool{New: func() any { return &request{done: make(chan error, 1)} }}

// do passes a change to the committer and waits for its result. If ctx ends first, the
// committer still makes the change.
func (j *Journal) do(ctx context.Context, size int, stage func(*group) error) error {
	return j.hand(ctx, size, false, stage)
}

// grow is do for a change that is refused if the journal is full.
func (j *Journal) grow(ctx context.Context, size int, stage func(*group) error) error {
	return j.hand(ctx, size, true, stage)
}

func (j *Journal) hand(ctx context.Context, size int, grows bool, stage func(*group) error) error {
	r := spare.Get().(*request)
	r.size, r.grows, r.stage = size, grows, stage
	select {
	case j.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-j.stop:
		return journal.ErrClosed
	}
	select {
	case err := <-r.done:
		r.stage = nil
		spare.Put(r) // the only place where no other goroutine uses the request
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-j.stop:
	}
	// Close waits until the committer has handled the received requests.
	<-j.ended
	select {
	case err := <-r.done:
		return err
	default:
		return journal.ErrClosed
	}
}

// Append implements journal.Appender.
func (j *Journal) Append(ctx context.Context, events ...event.Event) ([]journal.Receipt, error) {
	if err := j.Check(); err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	values, size, err := j.encodeAll(events)
	if err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	receipts := make([]journal.Receipt, len(events))
	err = j.grow(ctx, size, func(g *group) error { return g.appendAll(events, values, receipts) })
	if err != nil {
		return nil, fmt.Errorf("appending: %w", err)
	}
	return receipts, nil
}

// encodeAll encodes events, each after eight bytes for the acceptance time.
func (j *Journal) encodeAll(events []event.Event) (values [][]byte, size int, err error) {
	values = make([][]byte, len(events))
	for i, e := range events {
		if len(e.Keys) == 0 {
			return nil, 0, fmt.Errorf("%s: the event has no identity key", e.CloudEvent.ID())
		}
		value := make([]byte, 8, 768+len(e.CloudEvent.DataEncoded))
		value, err := record.AppendEvent(record.AppendKeys(value, e.Keys), e)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", e.CloudEvent.ID(), err)
		}
		values[i] = value
		size += len(value)
	}
	return values, size, nil
}

// Close implements io.Closer. A second call does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	close(j.stop)
	j.end()
	j.notify()
	j.mu.Unlock()
	j.done.Wait()
	j.discards.log(j.log, true)
	if err := j.lock.Close(); err != nil {
		return fmt.Errorf("closing the journal: %w", err)
	}
	return nil
}
