package relay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/seqset"
	"github.com/postwire/postwire/sinks"
)

// memory is a journal with one cursor in memory. It stores what is committed at once.
type memory struct {
	mu      sync.Mutex
	changed chan struct{}
	records []journal.Record // seq is the index plus one
	next    journal.Seq
	done    *seqset.Set
	dead    map[journal.Seq]journal.DeadLetter
	reads   int    // events that were read
	data    []byte // of the events that put appends; nil is some data
}

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), done: seqset.At(0), next: 1, dead: map[journal.Seq]journal.DeadLetter{}}
}

func (m *memory) put(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seq := journal.Seq(len(m.records) + 1)
	e := journaltest.Event(fmt.Sprint(seq))
	if key != "" {
		e.CloudEvent.SetExtension(event.PartitionKey, key)
	}
	if m.data != nil {
		e.CloudEvent.DataEncoded = m.data
	}
	m.records = append(m.records, journal.Record{Seq: seq, Accepted: time.Now(), Event: e})
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) Next(ctx context.Context, limit int) ([]journal.Record, error) {
	for {
		m.mu.Lock()
		n := min(len(m.records)-int(m.next)+1, limit)
		if n > 0 {
			records := m.records[m.next-1 : int(m.next)-1+n]
			m.next += journal.Seq(n)
			m.reads += n
			m.mu.Unlock()
			return records, nil
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *memory) read(_ context.Context, from journal.Seq, limit int) ([]journal.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int(from) > len(m.records) {
		return nil, nil
	}
	records := m.records[from-1 : min(len(m.records), int(from)-1+limit)]
	m.reads += len(records)
	return records, nil
}

func (m *memory) Commit(_ context.Context, p journal.Progress) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range p.Dead {
		m.dead[d.Seq] = d
	}
	for _, r := range p.Done {
		m.done.Add(r.From, r.To)
	}
	return nil
}

func (m *memory) Committed() journal.Seq {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done.Floor()
}

func (m *memory) Done(s journal.Seq) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done.Has(s)
}

func (m *memory) Lag() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done.Missing(1, journal.Seq(len(m.records)))
}

func (m *memory) last() journal.Seq {
	m.mu.Lock()
	defer m.mu.Unlock()
	return journal.Seq(len(m.records))
}

func (m *memory) StartSeq() journal.Seq          { return 0 }
func (m *memory) OwnershipLost() <-chan struct{} { return nil }
func (m *memory) Owner() journal.Owner           { return journal.Owner{Local: true} }
func (m *memory) Close() error                   { return nil }

// everything implements traffic for all events.
type everything struct{}

func (everything) selects(journal.Record) bool                           { return true }
func (everything) end() journal.Seq                                      { return 0 }
func (everything) attempted(attemptResult)                               {}
func (everything) undelivered(u journal.Undelivered) journal.Undelivered { return u }
func (everything) began(context.Context) (bool, error)                   { return true, nil }
func (everything) lost()                                                 {}
func (everything) committed(context.Context, journal.Undelivered) error  { return nil }

// scripted is a sink whose outcomes a function decides, one event after another.
type scripted struct {
	limits  sinks.Limits
	outcome func(ctx context.Context, e event.Event) error // errWhole fails the whole delivery
	to      func(e event.Event) sinks.Destination
	open    func() error
	acked   func(seq journal.Seq, key string)
	busy    sync.Map // keys in a delivery
	t       *testing.T
}

var errWhole = errors.New("the connection is broken")

func (s *scripted) Deliver(ctx context.Context, batch []event.Event) error {
	errs := make(sinks.BatchError, len(batch))
	failed := map[string]bool{}
	for _, e := range batch {
		if key, ok := e.Attribute(event.PartitionKey); ok {
			if other, twice := s.busy.LoadOrStore(key, &batch); twice && other != &batch {
				s.t.Errorf("key %s is in two deliveries", key)
			}
		}
	}
	defer func() {
		for _, e := range batch {
			if key, ok := e.Attribute(event.PartitionKey); ok {
				s.busy.Delete(key)
			}
		}
	}()
	for n, e := range batch {
		key, keyed := e.Attribute(event.PartitionKey)
		if keyed && failed[key] {
			errs[n] = errors.New("held back")
			continue
		}
		err := s.outcome(ctx, e)
		if errors.Is(err, errWhole) {
			return err
		}
		if _, refused := sinks.IsPermanent(err); err != nil && !refused {
			failed[key] = true
		}
		errs[n] = err
	}
	for n, e := range batch {
		if key, _ := e.Attribute(event.PartitionKey); errs[n] == nil {
			s.acked(seqOf(e), key)
		}
	}
	return sinks.Outcome(errs)
}

func seqOf(e event.Event) journal.Seq {
	var seq journal.Seq
	_, _ = fmt.Sscan(e.CloudEvent.ID(), &seq)
	return seq
}

func (s *scripted) Limits() sinks.Limits { return s.limits }
func (s *scripted) Close() error         { return nil }

func (s *scripted) Destination(e event.Event) sinks.Destination {
	if s.to == nil {
		return sinks.Destination{}
	}
	return s.to(e)
}

// pump returns a pump of the journal in memory to the sink.
func (s *scripted) pump(m *memory, change func(*sinks.Settings)) *Pump {
	settings := sinks.DefaultSettings()
	if change != nil {
		change(&settings)
	}
	loaded := make(chan struct{})
	close(loaded)
	spec := &atomic.Pointer[sinkSpec]{}
	spec.Store(&sinkSpec{open: func(context.Context, sinks.Env) (sinks.Sink, error) {
		if s.open != nil {
			if err := s.open(); err != nil {
				return nil, err
			}
		}
		return s, nil
	}})
	metrics := NewMetrics(prometheus.NewRegistry()).sink("test", m, time.Now)
	p := &Pump{
		name: "test", settings: settings, traffic: everything{}, cursor: m, log: zap.NewNop(), read: m.read, last: m.last,
		oldest: func() journal.Seq { return 1 }, limiter: limiterOf(settings.Rate), metrics: metrics,
		filter: &sinkFilter{}, history: &deliveryHistory{pausesLoaded: loaded}, asks: make(chan func(*pumpRun)),
		handle: sinkHandle{
			spec: spec, timeout: settings.Timeout, journal: func() string { return "journal" },
			env: sinks.Env{Name: "test", Log: zap.NewNop(), Now: time.Now},
		},
	}
	p.pause = p.history
	return p
}

// TestSchedulesOfFailures runs random schedules of failures and crashes. It checks that no
// event is lost, that keys keep their order, and that a crash repeats only what was in
// flight or acknowledged since the last commit.
func TestSchedulesOfFailures(t *testing.T) {
	for seed := range uint64(pick(t, 150, 3000)) {
		synctest.Test(t, func(t *testing.T) { failures(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// pick returns the short or the long form of a number.
func pick(t *testing.T, short, long int) int {
	t.Helper()
	if os.Getenv("CI_LONG") == "" {
		return short
	}
	return long
}

// describe returns the state of a schedule, for the message of a failed test.
func (s *schedule) describe() string {
	text := fmt.Sprintf("head %d, in hand %d, deferred %d in %d keys, waiting %d, blocked destinations %d, ready groups %d, catch-up %+v, next %+v", s.head, s.inHand, s.deferredCount, len(s.deferred), len(s.waiting), len(s.destinations), len(s.ready), s.pass, s.next)
	for _, k := range s.keys {
		text += fmt.Sprintf("\n  key in state %d: %d queued, %d in a delivery, %d not stored", k.state, len(k.queue), k.flying, k.pendingCommits)
	}
	return text
}

func failures(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	m := newMemory()
	type ack struct {
		at  time.Time
		run int
	}
	var mu sync.Mutex // guards the following, and random
	acks := map[journal.Seq]ack{}
	newest := map[string]journal.Seq{} // by key: the newest acknowledged event
	run, calm := 0, false
	var crashed time.Time
	destinations, byEvent := 1+random.IntN(4), random.IntN(2) == 0
	down := map[string]time.Time{} // destinations that fail until then
	rate := random.Float64() * 0.4
	s := &scripted{t: t}
	s.limits = sinks.Limits{InFlight: random.IntN(6), Batch: random.IntN(20), PerDestination: random.IntN(2) == 0}
	s.to = func(e event.Event) sinks.Destination {
		key, _ := e.Attribute(event.PartitionKey)
		n := int(seqOf(e))
		if key != "" && !byEvent { // otherwise the events of a key have several destinations
			n = int(key[0])
		}
		return sinks.Destination{Name: fmt.Sprint(n % destinations)}
	}
	s.open = func() error {
		mu.Lock()
		defer mu.Unlock()
		if !calm && random.Float64() < rate/2 {
			return errWhole
		}
		return nil
	}
	s.outcome = func(ctx context.Context, e event.Event) error {
		mu.Lock()
		x, to, bad := random.Float64(), s.to(e).Name, time.Now().Before(down[s.to(e).Name])
		if !calm && !bad && random.Float64() < rate/20 {
			down[to] = time.Now().Add(time.Duration(random.IntN(20)) * time.Second)
		}
		quiet := calm
		mu.Unlock()
		switch {
		case quiet:
			return nil
		case bad:
			return sinks.AtDestination(errors.New("no leader"))
		case x < rate/2:
			return errors.New("500")
		case x < rate/2+0.02:
			return sinks.Permanent(sinks.ReasonInvalid, errors.New("422"))
		case x < rate/2+0.03:
			return errWhole
		case x < rate/2+0.035: // hangs
			<-ctx.Done()
			return ctx.Err()
		case x < rate/2+0.04:
			return sinks.RetryAfter(2*time.Second, errors.New("429"))
		case x < rate/2+0.1:
			time.Sleep(time.Duration(x * float64(50*time.Millisecond)))
		}
		return nil
	}
	s.acked = func(seq journal.Seq, key string) {
		mu.Lock()
		defer mu.Unlock()
		before, known := acks[seq]
		if known && before.run == run {
			t.Errorf("event %d is delivered twice without a crash", seq)
		}
		if known && crashed.Sub(before.at) > commitInterval+time.Millisecond {
			t.Errorf("event %d, acknowledged %v before the crash, is repeated", seq, crashed.Sub(before.at))
		}
		if key != "" && !known {
			if seq < newest[key] {
				t.Errorf("of key %s, event %d comes after event %d", key, seq, newest[key])
			}
			newest[key] = seq
		}
		acks[seq] = ack{time.Now(), run}
	}
	intN := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	keys := 1 + intN(30)
	put := func(n int) {
		for range n {
			mu.Lock()
			key := fmt.Sprintf("%c", 'a'+random.IntN(keys))
			if random.IntN(10) == 0 {
				key = ""
			}
			mu.Unlock()
			m.put(key)
		}
	}
	maxPending := 1 + intN(60)
	for n := range 4 {
		mu.Lock()
		run = n
		mu.Unlock()
		ctx, stop := context.WithCancel(context.Background())
		hard, cut := context.WithCancel(context.Background())
		p := s.pump(m, func(settings *sinks.Settings) {
			settings.MaxPending, settings.Batch, settings.Timeout = maxPending, 16, 5*time.Second
			settings.Retry.Max = 4 * time.Second
		})
		ended := make(chan error, 1)
		m.mu.Lock()
		m.next = m.done.Floor() + 1
		m.mu.Unlock()
		go func() { ended <- p.Run(ctx, hard) }()
		for range 5 {
			put(intN(40))
			time.Sleep(time.Duration(intN(2000)) * time.Millisecond)
		}
		if n == 3 {
			mu.Lock()
			calm = true
			mu.Unlock()
			time.Sleep(time.Minute)
			if m.Lag() > 0 {
				_, _ = p.ask(ctx, func(r *pumpRun) {
					t.Log(r.schedule.describe(), r.health.open.Load(), time.Until(r.sendAt), r.flying)
				})
			}
		}
		mu.Lock()
		crashed = time.Now()
		mu.Unlock()
		cut() // a crash: nothing more is committed
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		synctest.Wait()
	}
	for seq := range m.last() {
		_, acked := acks[seq+1]
		_, dead := m.dead[seq+1]
		if acked == dead && !dead || !m.Done(seq+1) {
			t.Errorf("event %d: acknowledged %v, dead letter %v, done %v", seq+1, acked, dead, m.Done(seq+1))
		}
	}
}
