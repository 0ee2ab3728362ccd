package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/seqset"
	"github.com/postwire/postwire/sinks"
)

// ReplayState is the state of a replay. The set is closed.
//
// | state | next state | by |
// |---|---|---|
// | planned | running | StartReplay |
// | running | stopped, done, failed | StopReplay, the last event, an error |
// | stopped | running | ContinueReplay |
// | done, failed | – | |
//
// The journal stores each change of the state.
type ReplayState string

// States of a replay.
const (
	ReplayPlanned ReplayState = "planned" // only counted
	ReplayRunning ReplayState = "running"
	ReplayStopped ReplayState = "stopped" // by an operator
	ReplayDone    ReplayState = "done"
	ReplayFailed  ReplayState = "failed" // Replay.Error is the reason
)

// ReplaySpec selects the events of a replay and the sink.
type ReplaySpec struct {
	Sink   string            `json:"sink"`
	From   time.Time         `json:"from" doc:"Start of the range: events accepted at this time or later."`
	To     time.Time         `json:"to" doc:"End of the range, exclusive."`
	Filter string            `json:"filter,omitempty" doc:"CEL expression over the attributes; the filter of the sink must match, too."`
	Keys   map[string]string `json:"keys,omitempty" doc:"Overrides of the sink's keys, such as subject or topic."`
	Rate   int               `json:"rate" doc:"Maximum number of events sent per second."`
	Seq    journal.Seq       `json:"seq,omitempty" doc:"Sequence of the single event to send, instead of a range."`
	Adopts string            `json:"adopts,omitempty" doc:"Sink that is no longer configured, whose pending events are sent, instead of a range of times."`
}

// Replay sends stored events to one sink again, beside live traffic. A replay outlives the
// process.
type Replay struct {
	ID string `json:"id"`
	ReplaySpec
	State   ReplayState `json:"state" enum:"planned,running,stopped,done,failed"`
	First   journal.Seq `json:"first" doc:"Sequence of the first event of the range."`
	Last    journal.Seq `json:"last" doc:"Sequence of the last event of the range."`
	Total   int         `json:"total" doc:"Events of the range that are to be sent."`
	Sent    int         `json:"sent" doc:"Events that the broker acknowledged."`
	Refused int         `json:"refused" doc:"Events that the broker refused permanently."`
	Skipped int         `json:"skipped" doc:"Events of the range that a filter does not match, or that are for another sink; they are not sent."`
	Expired int         `json:"expired" doc:"Events that were to be sent and had passed their retention by then; known when the replay is done."`
	Error   string      `json:"error,omitempty" doc:"Last error of the broker, or the reason of the failed replay."`
	Created time.Time   `json:"created"`
	Updated time.Time   `json:"updated"`
}

var (
	// ErrInvalid is wrapped when an argument is invalid; the error names the reason.
	ErrInvalid = errors.New("invalid")
	// ErrState is wrapped when the state of a replay does not permit the operation.
	ErrState = errors.New("not possible in this state")
)

const (
	replayPrefix  = "replay/"
	replayBatch   = 256
	syncInterval  = 2 * time.Second
	replaysToKeep = 50 // ended replays
)

// replays holds all replays.
type replays struct {
	mu     sync.Mutex
	all    map[string]*replay
	launch func(*replay) // starts a replay; nil while Run does not run
	busy   sync.WaitGroup
}

// replay is a replay with its goroutine.
type replay struct {
	Replay  // guarded by replays.mu
	stop    context.CancelFunc
	local   bool          // this process owns the cursor of the replay
	started bool          // some events may be sent
	ended   chan struct{} // closed when the goroutine has ended; nil before the first run
}

func (rs *replays) wait() {
	rs.mu.Lock()
	rs.launch = nil
	rs.mu.Unlock()
	rs.busy.Wait()
}

// runReplays starts the running replays, and replays that other relays start, until ctx is
// done.
func (r *Relay) runReplays(ctx, hard context.Context) {
	r.replays.mu.Lock()
	r.replays.launch = func(re *replay) { r.launch(ctx, hard, re) }
	for _, re := range r.replays.all { // started before Run
		r.replays.startIfRunning(re)
	}
	r.replays.mu.Unlock()
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		if !first {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		if err := r.syncFromJournal(ctx); err != nil && ctx.Err() == nil {
			r.opts.Log.Warn("reading replays and pauses failed, retrying", zap.Error(err))
		}
	}
}

// syncFromJournal applies the pauses and replays that other relays have stored. Every relay
// runs every replay, and the owner of the replay's cursor gets the events.
func (r *Relay) syncFromJournal(ctx context.Context) error {
	r.replays.mu.Lock()
	before := slices.Collect(maps.Keys(r.replays.all))
	r.replays.mu.Unlock()
	noted, err := r.readDecisions(ctx)
	if err != nil {
		return err
	}
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	for _, id := range before {
		re := r.replays.all[id]
		if _, ok := noted[id]; !ok && re != nil && (re.State == ReplayDone || re.State == ReplayFailed) {
			delete(r.replays.all, id) // another relay has pruned the replay
		}
	}
	for id, now := range noted {
		re, known := r.replays.all[id]
		switch {
		case !known:
			re = &replay{Replay: now, started: true}
			r.replays.all[id] = re
			r.replays.startIfRunning(re)
		case !now.Updated.After(re.Updated) || re.local && now.State == ReplayRunning:
		case now.State != ReplayRunning:
			re.Replay = now
			if re.stop != nil {
				re.stop()
			}
		default:
			began := re.State != ReplayRunning
			select {
			case <-re.over():
			default:
				if began {
					continue // the goroutine is still stopping
				}
			}
			if re.Replay = now; began {
				r.replays.startIfRunning(re)
			}
		}
	}
	return nil
}

// becomeOwner is called when this process has got events of a replay. It reads the stored
// state of the replay, and returns false if the replay does not run any more.
func (r *Relay) becomeOwner(ctx context.Context, re *replay) (bool, error) {
	if re.local {
		return true, nil
	}
	if err := r.syncFromJournal(ctx); err != nil {
		return false, err
	}
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	re.local = re.State == ReplayRunning
	return re.local, nil
}

// replayPump returns the pump of a replay, without its cursor.
func (r *Relay) replayPump(spec ReplaySpec, id string) (*Pump, *replayTraffic, error) {
	p, err := r.pump(spec.Sink)
	if err != nil {
		return nil, nil, err
	}
	selects, err := filter.Parse(spec.Filter)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: filter: %w", ErrInvalid, err)
	}
	traffic := &replayTraffic{relay: r, sink: p, filter: selects}
	settings := p.settings
	settings.Discard, settings.Retry.DeadLetterAfter, settings.Retry.MaxAttempts = sinks.Discard{}, 0, 0
	out := &Pump{
		name: p.name, settings: settings, traffic: traffic, log: p.log.With(zap.String("replay", id)), read: p.read, last: p.last, oldest: p.oldest,
		limiter: rate.NewLimiter(rate.Limit(spec.Rate), max(1, min(spec.Rate/10, replayBatch))), metrics: p.metrics.detached(), kind: p.kind, traces: p.traces, pause: p.pause,
		asks: make(chan func(*pumpRun)),
	}
	out.handle = sinkHandle{
		spec: p.spec, timeout: p.settings.Timeout, env: p.handle.env,
		journal: r.opts.Journal.ID, replay: id, unsent: unknownSeq, duplicates: duplicates{counters: p.metrics.duplicates},
	}
	if len(spec.Keys) > 0 {
		if r.opts.Redirect == nil {
			return nil, nil, fmt.Errorf("%w: keys cannot be overridden", ErrInvalid)
		}
		open, err := r.opts.Redirect(spec.Sink, spec.Keys)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		out.handle.spec = &atomic.Pointer[sinkSpec]{}
		out.handle.spec.Store(&sinkSpec{open, p.spec.Load().redact})
	}
	out.handle.env.Log = out.log
	if spec.Adopts != "" {
		out.handle.replay = "" // the message IDs of live traffic, so that brokers drop repeats
	}
	return out, traffic, nil
}

// PlanReplay counts the events of a replay without sending events.
func (r *Relay) PlanReplay(ctx context.Context, spec ReplaySpec) (Replay, error) {
	_, traffic, err := r.replayPump(spec, "")
	if err != nil {
		return Replay{}, err
	}
	p, selects := traffic.sink, traffic.filter
	switch {
	case spec.Seq > 0:
	case !spec.From.Before(spec.To):
		return Replay{}, fmt.Errorf("%w: from, %s, is not before to, %s", ErrInvalid, spec.From.Format(time.RFC3339), spec.To.Format(time.RFC3339))
	}
	if spec.Rate < 1 {
		return Replay{}, fmt.Errorf("%w: rate is %d, use 1 or more", ErrInvalid, spec.Rate)
	}
	re := Replay{ReplaySpec: spec, State: ReplayPlanned, Created: r.opts.Now().UTC()}
	j := r.opts.Journal
	if spec.Seq > 0 {
		return r.planOne(ctx, re, p, selects)
	}
	if re.First, err = j.Since(ctx, spec.From); err != nil {
		return re, err
	}
	end, err := j.Since(ctx, spec.To)
	if err != nil {
		return re, err
	}
	re.Last = re.First - 1
	return re, r.count(ctx, &re, p, selects, end, seqset.At(0))
}

// count counts the events of a replay from re.First to before end, without done ones, and
// sets re.Last.
func (r *Relay) count(ctx context.Context, re *Replay, p *Pump, selects filter.Filter, end journal.Seq, done *seqset.Set) error {
	for next := re.First; next < end; {
		records, err := r.opts.Journal.Read(ctx, next, tailPage)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			break
		}
		for _, record := range records {
			if next = record.Seq + 1; record.Seq >= end {
				break
			}
			re.Last = record.Seq
			if done.Has(record.Seq) {
				continue
			}
			if re.sends(p, selects, record) {
				re.Total++
			} else {
				re.Skipped++
			}
		}
	}
	return nil
}

// planOne plans a replay of one event. Its error wraps ErrInvalid if the sink does not get
// the event.
func (r *Relay) planOne(ctx context.Context, re Replay, p *Pump, selects filter.Filter) (Replay, error) {
	record, err := r.Record(ctx, re.Seq)
	if err != nil {
		return re, err
	}
	re.From, re.To = record.Accepted, record.Accepted
	re.First, re.Last = re.Seq, re.Seq
	if !re.sends(p, selects, record) {
		return re, fmt.Errorf("%w: the filter of sink %s does not match this event", ErrInvalid, p.name)
	}
	re.Total = 1
	return re, nil
}

// Record returns a stored event. Its error may wrap journal.ErrNotFound.
func (r *Relay) Record(ctx context.Context, seq journal.Seq) (journal.Record, error) {
	records, err := r.opts.Journal.Read(ctx, seq, 1)
	if err != nil {
		return journal.Record{}, err
	}
	if len(records) == 0 || records[0].Seq != seq {
		return journal.Record{}, fmt.Errorf("event %d: %w: the event has expired or never existed", seq, journal.ErrNotFound)
	}
	return records[0], nil
}

// sends reports whether the replay sends a record.
func (re *Replay) sends(p *Pump, selects filter.Filter, record journal.Record) bool {
	switch record.TargetSink {
	case "":
		if ok, _ := p.filter.Matches(record.Event); !ok {
			return false
		}
	case re.Adopts: // a dead letter of the adopted sink that was redelivered
	case p.name:
		if record.OriginSeq >= re.First && record.DeadLetterOf == "" {
			return false // the original event is in the range, too
		}
	default:
		return false
	}
	ok, _ := selects.Matches(record.Event)
	return ok
}

// StartReplay starts a replay.
func (r *Relay) StartReplay(ctx context.Context, spec ReplaySpec) (Replay, error) {
	planned, err := r.PlanReplay(ctx, spec)
	if err != nil {
		return planned, err
	}
	return r.launchPlanned(ctx, planned)
}

// startReplay starts a replay of the events from one sequence through another.
func (r *Relay) startReplay(ctx context.Context, spec ReplaySpec, first, last journal.Seq, done *seqset.Set) (Replay, error) {
	_, traffic, err := r.replayPump(spec, "")
	if err != nil {
		return Replay{}, err
	}
	planned := Replay{ReplaySpec: spec, State: ReplayPlanned, Created: r.opts.Now().UTC(), First: first, Last: first - 1}
	if err := r.count(ctx, &planned, traffic.sink, traffic.filter, last+1, done); err != nil {
		return planned, err
	}
	return r.launchPlanned(ctx, planned)
}

// launchPlanned starts a planned replay.
func (r *Relay) launchPlanned(ctx context.Context, planned Replay) (Replay, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return planned, err
	}
	planned.ID, planned.State = id.String(), ReplayRunning
	re := &replay{Replay: planned}
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	if err := r.saveReplay(ctx, &re.Replay); err != nil {
		return planned, err
	}
	if err := r.prune(ctx); err != nil {
		return planned, err
	}
	r.replays.all[re.ID] = re
	r.replays.startIfRunning(re)
	return re.Replay, nil
}

// prune deletes the oldest ended replays. The caller holds replays.mu.
func (r *Relay) prune(ctx context.Context) error {
	var ended []string
	for id, re := range r.replays.all {
		if re.State == ReplayDone || re.State == ReplayFailed {
			ended = append(ended, id)
		}
	}
	slices.Sort(ended) // by age: replay IDs are UUIDs of version 7
	for _, id := range ended[:max(0, len(ended)-replaysToKeep)] {
		if err := r.opts.Journal.DeleteValue(ctx, replayPrefix+id); err != nil {
			return err
		}
		delete(r.replays.all, id)
	}
	return nil
}

// saveReplay stores the state of a replay.
func (r *Relay) saveReplay(ctx context.Context, re *Replay) error {
	re.Updated = r.opts.Now().UTC()
	b, err := json.Marshal(re)
	if err != nil {
		return err
	}
	return r.opts.Journal.PutValue(ctx, replayPrefix+re.ID, b)
}

// Replays returns all replays, newest first.
func (r *Relay) Replays() []Replay {
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	all := make([]Replay, 0, len(r.replays.all))
	for _, re := range r.replays.all {
		all = append(all, re.copy())
	}
	slices.SortFunc(all, func(a, b Replay) int { return cmp.Compare(b.ID, a.ID) })
	return all
}

func (re *replay) copy() Replay {
	c := re.Replay
	c.Keys = maps.Clone(c.Keys)
	return c
}

// Replay returns a replay. Its error may wrap journal.ErrNotFound.
func (r *Relay) Replay(id string) (Replay, error) {
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	re, err := r.replays.get(id)
	if err != nil {
		return Replay{}, err
	}
	return re.copy(), nil
}

// get returns a replay. The caller holds replays.mu.
func (rs *replays) get(id string) (*replay, error) {
	re, ok := rs.all[id]
	if !ok {
		return nil, fmt.Errorf("replay %q: %w", id, journal.ErrNotFound)
	}
	return re, nil
}

// StopReplay stops a running replay, and returns when the replay sends no more events.
func (r *Relay) StopReplay(ctx context.Context, id string) (Replay, error) {
	r.replays.mu.Lock()
	re, err := r.replays.get(id)
	if err != nil || re.State != ReplayRunning || re.stop == nil {
		defer r.replays.mu.Unlock()
		if err == nil {
			err = fmt.Errorf("replay %s is %s: %w", id, re.State, ErrState)
		}
		return Replay{}, err
	}
	re.State = ReplayStopped
	err = r.saveReplay(ctx, &re.Replay)
	re.stop()
	ended := re.ended
	r.replays.mu.Unlock()
	if err != nil {
		return Replay{}, err
	}
	select {
	case <-ended:
	case <-ctx.Done():
		return Replay{}, ctx.Err()
	}
	return r.Replay(id)
}

// ContinueReplay continues a stopped replay at its cursor.
func (r *Relay) ContinueReplay(ctx context.Context, id string) (Replay, error) {
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	re, err := r.replays.get(id)
	if err != nil {
		return Replay{}, err
	}
	if re.State != ReplayStopped {
		return Replay{}, fmt.Errorf("replay %s is %s: %w", id, re.State, ErrState)
	}
	select {
	case <-re.over():
	default:
		return Replay{}, fmt.Errorf("replay %s is still stopping: %w", id, ErrState)
	}
	re.State = ReplayRunning
	if err := r.saveReplay(ctx, &re.Replay); err != nil {
		return Replay{}, err
	}
	r.replays.startIfRunning(re)
	return re.copy(), nil
}

// over returns a channel that is closed while the replay does not run.
func (re *replay) over() <-chan struct{} {
	if re.ended != nil {
		return re.ended
	}
	done := make(chan struct{})
	close(done)
	return done
}

// startIfRunning starts a running replay; before Run, Run starts the replay. The caller
// holds replays.mu.
func (rs *replays) startIfRunning(re *replay) {
	if rs.launch != nil && re.State == ReplayRunning {
		rs.launch(re)
	}
}

// launch runs a replay in a goroutine. The caller holds replays.mu.
func (r *Relay) launch(ctx, hard context.Context, re *replay) {
	ctx, stop := context.WithCancel(ctx)
	re.stop, re.ended = stop, make(chan struct{})
	ended := re.ended
	r.replays.busy.Go(func() {
		defer close(ended)
		defer stop()
		err := r.runReplay(ctx, hard, re)
		if err == nil || ctx.Err() != nil || hard.Err() != nil {
			return // done, or continued later
		}
		r.opts.Log.Error("replay failed", zap.String("replay", re.ID), zap.Error(err))
		r.replays.mu.Lock()
		defer r.replays.mu.Unlock()
		re.State, re.Error = ReplayFailed, err.Error()
		if err := r.saveReplay(hard, &re.Replay); err != nil {
			r.opts.Log.Warn("storing the state of a replay failed", zap.String("replay", re.ID), zap.Error(err))
		}
	})
}

// runReplay sends the events of a replay after its cursor.
func (r *Relay) runReplay(ctx, hard context.Context, re *replay) (err error) {
	r.replays.mu.Lock()
	spec, first, last, begun := re.ReplaySpec, re.First, re.Last, re.started
	re.started = true
	r.replays.mu.Unlock()
	p, traffic, err := r.replayPump(spec, re.ID)
	if err != nil {
		return err
	}
	traffic.replay, traffic.last = re, last
	if traffic.sink.cursor.OwnershipLost() == nil && !begun { // no other process shares the journal
		p.handle.unsent = first
	}
	name := replayPrefix + re.ID
	// The open cursor also keeps the remaining events from expiring.
	if p.cursor, err = r.opts.Journal.Reader(ctx, name, journal.Start(first-1)); err != nil {
		return err
	}
	traffic.cursor = p.cursor
	defer func() {
		traffic.lost()
		err = errors.Join(err, p.cursor.Close())
	}()
	if p.cursor.Committed() < last {
		if err := p.Run(ctx, hard); err != nil || p.cursor.Committed() < last {
			return err
		}
	}
	if err := p.cursor.Close(); err != nil {
		return err
	}
	if err := r.adopted(hard, spec); err != nil {
		return err
	}
	r.replays.mu.Lock()
	defer r.replays.mu.Unlock()
	re.State, re.Expired = ReplayDone, max(0, re.Total-re.Sent-re.Refused)
	p.log.Info("replay done", zap.Int("sent", re.Sent), zap.Int("refused", re.Refused), zap.Int("expired", re.Expired))
	return errors.Join(r.saveReplay(hard, &re.Replay), r.opts.Journal.DeleteCursor(hard, name))
}

// passDelivered passes the events that an adopted sink already got.
func (r *Relay) passDelivered(ctx context.Context, adopted string, cursor journal.Cursor) error {
	positions, err := r.opts.Journal.Cursors(ctx)
	if err != nil {
		return err
	}
	for _, at := range positions {
		if at.Name == adopted && len(at.Done) > 0 {
			err := cursor.Commit(ctx, journal.Progress{Done: at.Done})
			if errors.Is(err, journal.ErrOwnershipLost) {
				return nil // the owner of the replay does
			}
			return err
		}
	}
	return nil
}

// replayTraffic implements traffic for a replay.
type replayTraffic struct {
	relay  *Relay
	replay *replay
	sink   *Pump // of live events
	filter filter.Filter
	last   journal.Seq
	cursor journal.Cursor
}

// selects implements traffic.
func (t *replayTraffic) selects(r journal.Record) bool {
	return t.replay.sends(t.sink, t.filter, r)
}

// end implements traffic.
func (t *replayTraffic) end() journal.Seq { return t.last }

// began implements traffic.
func (t *replayTraffic) began(ctx context.Context) (bool, error) {
	here, err := t.relay.becomeOwner(ctx, t.replay)
	if err == nil && here && t.replay.Adopts != "" {
		err = t.relay.passDelivered(ctx, t.replay.Adopts, t.cursor)
	}
	return here, err
}

// lost implements traffic.
func (t *replayTraffic) lost() {
	t.relay.replays.mu.Lock()
	defer t.relay.replays.mu.Unlock()
	t.replay.local = false
}

// attempted implements traffic.
func (t *replayTraffic) attempted(result attemptResult) {
	t.relay.opts.Metrics.replayed.WithLabelValues(t.sink.name).Add(float64(len(result.delivered)))
	t.relay.replays.mu.Lock()
	defer t.relay.replays.mu.Unlock()
	t.replay.Sent += len(result.delivered)
	t.replay.Refused += len(result.dead)
	if result.failure != nil {
		t.replay.Error = result.failure.Error()
	}
	for _, d := range result.dead {
		t.replay.Error = d.Err
	}
}

// undelivered implements traffic. The events of a replay were delivered before, or are dead
// letters already; adopted events are not.
func (t *replayTraffic) undelivered(u journal.Undelivered) journal.Undelivered {
	if t.replay.Adopts == "" {
		return journal.Undelivered{}
	}
	return journal.Undelivered{Sink: t.sink.name, Dead: u.Dead}
}

// committed implements traffic.
func (t *replayTraffic) committed(ctx context.Context, _ journal.Undelivered) error {
	t.relay.replays.mu.Lock()
	defer t.relay.replays.mu.Unlock()
	return t.relay.saveReplay(ctx, &t.replay.Replay)
}
