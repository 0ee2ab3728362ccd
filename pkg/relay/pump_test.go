package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// trial is a pump that runs on a journal in memory, in a bubble of testing/synctest.
type trial struct {
	*memory
	pump *Pump
	sink *scripted
	stop func()

	mu  sync.Mutex
	got []journal.Seq // acknowledged, in order
	at  map[journal.Seq]time.Time
}

func startTrial(t *testing.T, s *scripted, change func(*sinks.Settings)) *trial {
	t.Helper()
	tr := &trial{memory: newMemory(), sink: s, at: map[journal.Seq]time.Time{}}
	s.t = t
	s.acked = func(seq journal.Seq, _ string) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.got = append(tr.got, seq)
		tr.at[seq] = time.Now()
	}
	tr.pump = s.pump(tr.memory, change)
	ctx, cancel := context.WithCancel(context.Background())
	hard, cut := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tr.pump.Run(ctx, hard) }()
	tr.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		cut()
	})
	return tr
}

func (tr *trial) acknowledged() []journal.Seq {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return slices.Clone(tr.got)
}

// when returns the time of an acknowledgement, or false without one.
func (tr *trial) when(seq journal.Seq) (time.Time, bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	at, ok := tr.at[seq]
	return at, ok
}

// putAll appends n events of a key.
func (tr *trial) putAll(n int, key string) {
	for range n {
		tr.put(key)
	}
}

// pass lets time pass in the bubble, until nothing happens any more.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestFailingEventHoldsUpItsKey: an event that fails for ever holds up only later events of
// its partition key, however many other events there are.
func TestFailingEventHoldsUpItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := startTrial(t, &scripted{limits: sinks.Limits{InFlight: 2}, outcome: func(_ context.Context, e event.Event) error {
			if seqOf(e) == 1 {
				return errors.New("500")
			}
			return nil
		}}, func(s *sinks.Settings) { s.MaxPending = 100 })
		defer tr.stop()
		tr.put("poison")
		for n := range 5000 {
			tr.put(fmt.Sprint(n % 37))
			if n%100 == 0 {
				tr.put("poison")
			}
		}
		pass(time.Second)
		if n := len(tr.acknowledged()); n != 5000 {
			t.Errorf("%d events of other keys are delivered, want 5000", n)
		}
		if tr.Committed() != 0 || tr.Lag() != 51 {
			t.Errorf("committed through %d, lag %d", tr.Committed(), tr.Lag())
		}
		began := time.Now()
		tr.put("other")
		pass(time.Second)
		if at, _ := tr.when(tr.last()); at.Sub(began) > time.Millisecond {
			t.Errorf("an event of another key is delivered after %v", at.Sub(began))
		}
		if s := tr.pump.status(); s.State != SinkUp || s.BlockedKeys != 1 || s.DeferredEvents != 50 {
			t.Errorf("the status is %+v", s)
		}
	})
}

// TestHotKeyLeavesRoom: a key with many events does not fill the room of the others, and
// keeps its order.
func TestHotKeyLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := startTrial(t, &scripted{limits: sinks.Limits{Batch: 1}, outcome: func(context.Context, event.Event) error {
			time.Sleep(time.Millisecond)
			return nil
		}}, func(s *sinks.Settings) { s.MaxPending = 4000 })
		defer tr.stop()
		tr.putAll(30000, "hot")
		tr.putAll(10, "cold")
		pass(200 * time.Millisecond)
		for n := range journal.Seq(10) {
			if _, ok := tr.when(30001 + n); !ok {
				t.Errorf("event %d of the cold key waits", 30001+n)
			}
		}
		pass(time.Minute)
		if got := tr.acknowledged(); len(got) != 30010 {
			t.Errorf("%d events are delivered", len(got))
		} else if hot := slices.DeleteFunc(got, func(s journal.Seq) bool { return s > 30000 }); !slices.IsSorted(hot) {
			t.Error("the events of the hot key are out of order")
		}
		if tr.Committed() != 30010 {
			t.Errorf("committed through %d", tr.Committed())
		}
		if tr.reads > 3*30010 {
			t.Errorf("%d events were read for 30010", tr.reads)
		}
	})
}

// TestFailingDestination: events of a destination that fails wait, all others go on, and two
// seconds after the destination works again its events are delivered in order.
func TestFailingDestination(t *testing.T) {
	for _, limits := range []sinks.Limits{{}, {InFlight: 4, PerDestination: true}} {
		synctest.Test(t, func(t *testing.T) {
			up, attempts := time.Now().Add(10*time.Minute), 0
			s := &scripted{limits: limits}
			s.to = func(e event.Event) sinks.Destination {
				key, _ := e.Attribute(event.PartitionKey)
				return sinks.Destination{Name: key[:1]}
			}
			var mu sync.Mutex
			s.outcome = func(_ context.Context, e event.Event) error {
				if key, _ := e.Attribute(event.PartitionKey); key[0] == 'b' && time.Now().Before(up) {
					mu.Lock()
					defer mu.Unlock()
					attempts++
					return sinks.AtDestination(errors.New("no leader"))
				}
				return nil
			}
			tr := startTrial(t, s, func(s *sinks.Settings) { s.MaxPending = 200 })
			defer tr.stop()
			for n := range 2000 {
				tr.put(fmt.Sprintf("%c%d", 'a'+n%2, n%30))
			}
			pass(time.Second)
			if n := len(tr.acknowledged()); n != 1000 {
				t.Errorf("%d events of the other destination are delivered, want 1000", n)
			}
			if s := tr.pump.status(); s.BlockedDestinations != 1 {
				t.Errorf("the status is %+v", s)
			}
			pass(time.Until(up) + 2*time.Second)
			if n := len(tr.acknowledged()); n != 2000 {
				t.Errorf("two seconds after the destination works %d events are delivered, want 2000", n)
			}
			if attempts > 1000 {
				t.Errorf("%d attempts in ten minutes", attempts)
			}
			if tr.Committed() != 2000 {
				t.Errorf("committed through %d", tr.Committed())
			}
		})
	}
}

// TestSinkComesBack: however long a sink was away, delivery goes on within two seconds.
func TestSinkComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, attempts := time.Now().Add(time.Hour), 0
		s := &scripted{outcome: func(context.Context, event.Event) error {
			if attempts++; time.Now().Before(up) {
				return errWhole
			}
			return nil
		}}
		tr := startTrial(t, s, nil)
		defer tr.stop()
		tr.putAll(2000, "")
		pass(time.Minute)
		if s := tr.pump.status(); s.State != SinkFailing || s.Breaker != BreakerOpen {
			t.Errorf("the status is %+v", s)
		}
		pass(time.Until(up) + 2*time.Second)
		if n := len(tr.acknowledged()); n != 2000 {
			t.Errorf("%d events are delivered", n)
		}
		if attempts > 2000+2*3600 {
			t.Errorf("%d attempts", attempts)
		}
		if s := tr.pump.status(); s.State != SinkUp || s.Breaker != BreakerClosed {
			t.Errorf("the status is %+v", s)
		}
	})
}

// TestBreakerTakesTurns: failing events of many keys open the circuit breaker, and cannot
// keep it open for an event that can be delivered.
func TestBreakerTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{limits: sinks.Limits{InFlight: 4, Batch: 1}, outcome: func(_ context.Context, e event.Event) error {
			if seqOf(e) <= 20 {
				return errors.New("500")
			}
			return nil
		}}
		tr := startTrial(t, s, nil)
		defer tr.stop()
		for n := range 20 {
			tr.put(fmt.Sprint("poison", n))
		}
		pass(10 * time.Minute)
		if s := tr.pump.status(); s.Breaker != BreakerOpen {
			t.Errorf("the status is %+v", s)
		}
		began := time.Now()
		tr.put("good")
		pass(10 * time.Second)
		if at, ok := tr.when(21); !ok || at.Sub(began) > 2*time.Second {
			t.Errorf("the good event is delivered at %v, it was stored at %v", at, began)
		}
	})
}

// TestAttemptsOfDeferredEvents: the attempts of an event count also while the event is not in
// hand, because too many failed events are.
func TestAttemptsOfDeferredEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := map[journal.Seq]int{}
		var mu sync.Mutex
		s := &scripted{limits: sinks.Limits{InFlight: 4}, outcome: func(_ context.Context, e event.Event) error {
			if seq := seqOf(e); seq <= 40 {
				mu.Lock()
				defer mu.Unlock()
				attempts[seq]++
				return errors.New("500")
			}
			return nil
		}}
		tr := startTrial(t, s, func(s *sinks.Settings) { s.MaxPending, s.Retry.MaxAttempts = 10, 3 })
		defer tr.stop()
		for n := range 80 {
			tr.put(fmt.Sprint(n))
		}
		pass(time.Hour)
		if tr.Committed() != 80 || len(tr.dead) != 40 {
			t.Fatalf("committed through %d with %d dead letters", tr.Committed(), len(tr.dead))
		}
		for seq, n := range attempts {
			if n != 3 || tr.dead[seq].Attempts != 3 {
				t.Errorf("event %d: %d attempts, %d in the dead letter, want 3", seq, n, tr.dead[seq].Attempts)
			}
		}
	})
}

func TestMaxAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := time.Now().Add(time.Minute)
		s := &scripted{outcome: func(_ context.Context, e event.Event) error {
			switch {
			case time.Now().Before(away):
				return errWhole // no attempt counts
			case seqOf(e) == 1:
				return errors.New("500")
			}
			return nil
		}}
		tr := startTrial(t, s, func(s *sinks.Settings) { s.Retry.MaxAttempts = 3 })
		defer tr.stop()
		tr.putAll(2, "a")
		pass(2 * time.Minute)
		if diff := cmp.Diff([]journal.Seq{2}, tr.acknowledged()); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
		if d := tr.dead[1]; d.Reason != string(sinks.ReasonMaxAttempts) || d.Err != "500" || tr.Committed() != 2 {
			t.Errorf("the dead letter is %+v, committed through %d", d, tr.Committed())
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{limits: sinks.Limits{InFlight: 3}, outcome: func(context.Context, event.Event) error { return nil }}
		tr := startTrial(t, s, func(s *sinks.Settings) { s.Rate = sinks.Rate{PerSecond: 10, Burst: 5} })
		defer tr.stop()
		tr.putAll(100, "")
		pass(2*time.Second + time.Millisecond)
		if n := len(tr.acknowledged()); n != 25 {
			t.Errorf("%d events are delivered after two seconds, want 25", n)
		}
		pass(8 * time.Second)
		if n := len(tr.acknowledged()); n != 100 {
			t.Errorf("%d events are delivered", n)
		}
	})
}

// TestResolveBlocked: an operator decides about one event, or about all events of its key.
func TestResolveBlocked(t *testing.T) {
	for _, test := range []struct {
		name     string
		what     BlockedDecision
		wholeKey bool
		dead     []journal.Seq
		done     []journal.Seq
	}{
		{"dead letter", BlockedDeadLetter, false, []journal.Seq{1}, []journal.Seq{2, 3, 4, 5, 6}},
		{"discard", BlockedDiscard, false, nil, []journal.Seq{2, 3, 4, 5, 6}},
		{"whole key", BlockedDeadLetter, true, []journal.Seq{1, 3, 5}, []journal.Seq{2, 4, 6}},
		{"retry", BlockedRetry, false, nil, []journal.Seq{2, 4}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{outcome: func(_ context.Context, e event.Event) error {
					if seqOf(e) == 1 {
						return errors.New("500")
					}
					return nil
				}}
				tr := startTrial(t, s, func(s *sinks.Settings) { s.Retry.Initial, s.Retry.Max = time.Hour, time.Hour })
				defer tr.stop()
				for range 2 {
					tr.put("bad")
					tr.put("good")
				}
				tr.put("bad")
				pass(time.Second)
				run := func(what BlockedDecision, seq journal.Seq) (err error) {
					if here, _ := tr.pump.ask(t.Context(), func(r *pumpRun) { err = r.resolveBlocked(seq, what, test.wholeKey) }); !here {
						t.Error("the pump does not answer")
					}
					return err
				}
				if err := run(test.what, 2); !errors.Is(err, journal.ErrNotFound) {
					t.Errorf("an event that is not blocked: %v", err)
				}
				if err := run(test.what, 1); err != nil {
					t.Error(err)
				}
				pass(time.Second)
				if test.what != BlockedRetry {
					tr.put("bad") // later events of the key are delivered
				}
				pass(time.Second)
				got := tr.acknowledged()
				slices.Sort(got)
				if diff := cmp.Diff(test.done, got); diff != "" {
					t.Errorf("delivered (-want +got):\n%s", diff)
				}
				var dead []journal.Seq
				for seq := range tr.dead {
					dead = append(dead, seq)
				}
				slices.Sort(dead)
				if diff := cmp.Diff(test.dead, dead); diff != "" {
					t.Errorf("dead letters (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestProbesWithOtherDestinations: the events of a key can have several destinations. A probe
// that the connection cuts off, and an acknowledgement in the batch of a failure, keep the
// later events of the key in order.
func TestProbesWithOtherDestinations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		full, cut := true, false
		s := &scripted{limits: sinks.Limits{InFlight: 2}}
		s.to = func(e event.Event) sinks.Destination {
			return sinks.Destination{Name: fmt.Sprint(seqOf(e) % 3)} // the keys change their destinations
		}
		s.outcome = func(_ context.Context, e event.Event) error {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case cut:
				return errWhole
			case full && seqOf(e)%3 == 1 && seqOf(e) != 7:
				return sinks.AtDestination(errors.New("full"))
			}
			return nil
		}
		tr := startTrial(t, s, func(s *sinks.Settings) { s.MaxPending = 100 })
		defer tr.stop()
		for n := range 60 {
			tr.put(fmt.Sprint("key", n%4))
		}
		pass(time.Second)
		for range 3 {
			mu.Lock()
			cut = true
			mu.Unlock()
			pass(1500 * time.Millisecond)
			for n := range 8 {
				tr.put(fmt.Sprint("key", n%4))
			}
			mu.Lock()
			cut = false
			mu.Unlock()
			pass(2 * time.Second)
		}
		mu.Lock()
		full = false
		mu.Unlock()
		pass(5 * time.Second)
		if tr.Committed() != 84 {
			t.Errorf("committed through %d, want 84", tr.Committed())
		}
		last := map[string]journal.Seq{}
		for _, seq := range tr.acknowledged() {
			key, _ := tr.records[seq-1].Event.Attribute(event.PartitionKey)
			if seq < last[key] {
				t.Errorf("of %s, event %d comes after event %d", key, seq, last[key])
			}
			last[key] = seq
		}
	})
}

// TestLargeFailingEvents: failing events of many megabytes leave room for the others.
func TestLargeFailingEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{limits: sinks.Limits{InFlight: 4, Batch: 1}, outcome: func(_ context.Context, e event.Event) error {
			if len(e.CloudEvent.DataEncoded) > 1<<20 {
				return errors.New("500")
			}
			return nil
		}}
		tr := startTrial(t, s, nil)
		defer tr.stop()
		tr.data = make([]byte, 1<<20+1)
		for n := range 60 {
			tr.put(fmt.Sprint("large", n))
		}
		tr.data = nil
		for n := range 100 {
			tr.put(fmt.Sprint("small", n))
		}
		pass(10 * time.Minute)
		if n := len(tr.acknowledged()); n != 100 {
			t.Errorf("%d small events are delivered, want 100", n)
		}
	})
}

// TestDiscardBeyondSparesOthers: deferred events behind a blocked one are not events behind
// those of other keys.
func TestDiscardBeyondSparesOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{outcome: func(_ context.Context, e event.Event) error {
			if seqOf(e) == 1 {
				return errors.New("500")
			}
			return nil
		}}
		tr := startTrial(t, s, func(s *sinks.Settings) { s.Discard.Beyond = 1000 })
		defer tr.stop()
		tr.putAll(900, "bad")
		for n := range 100 {
			tr.putAll(5, fmt.Sprint("good", n))
			pass(100 * time.Millisecond)
		}
		if n := len(tr.acknowledged()); n != 500 {
			t.Errorf("%d events of other keys are delivered, want 500", n)
		}
	})
}
