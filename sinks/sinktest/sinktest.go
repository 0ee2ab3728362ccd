// Package sinktest is the conformance suite of sinks. The name of each test is
// a sentence of the contract in package sinks.
package sinktest

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Harness tells the suite how to run a sink, and describes the sink.
type Harness struct {
	// Start starts an empty broker for one test.
	Start func(t *testing.T) Broker
	// Modes are the content modes of the sink; a sink without this setting has
	// the mode "".
	Modes []string
	// TooLarge is a size of data that the broker refuses; 0 if the broker has
	// no limit, which Lacks must then declare.
	TooLarge int
	// DropsRepeats says that the broker stores an event only once if the event
	// is sent twice.
	DropsRepeats bool
	// Env has the variables in the example.
	Env map[string]string
	// Lacks declares the tests that this sink cannot pass, with reasons. The
	// tests are skipped with the reason.
	Lacks map[string]string
}

// Broker is a broker for a single test.
type Broker struct {
	Kind sinks.Kind
	// Config is the sink's block without name, type and content_mode, in
	// YAML, not indented.
	Config string
	// World is the network between sink and broker, where faults happen.
	World World
	// Away stops the broker, Back starts the broker again with all its data. If
	// nil, World.Down and World.Up are used.
	Away, Back func(t *testing.T)
	// Read returns all messages of the broker. Messages of a line are in
	// storage order.
	Read func(t *testing.T) []Message
}

// Message is a stored event.
type Message struct {
	// Wire is everything on the wire, as text for the golden files.
	Wire string
	// At is the subject, topic or receiver; empty for a broker without
	// destinations.
	At string
	// Read has the event in the view of each reader, by the reader's name.
	Read map[string]ReadEvent
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	tests := []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"events arrive in order and whole", arrive},
		{"the wire form is as agreed", wireForm},
		{"an event arrives at its destination", destination},
		{"an event that is too large is refused alone", tooLarge},
		{"deliver neither keeps nor changes the batch", unchanged},
		{"deliver may be called concurrently for different keys", concurrent},
		{"the limits never change", limits},
		{"deliver returns when its context ends", contextEnds},
		{"close makes deliver return", closeReturns},
		{"close makes all concurrent deliveries return", closeReturnsAll},
		{"after close nothing is delivered", afterClose},
		{"opening fails while the broker is away and passes later", openingAway},
		{"nothing is lost while the broker is away", away},
		{"order holds for each partition key while connections break", order},
		{"nothing runs on after close", leaks},
		{"the example is a configuration", example},
	}
	declared := 0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if why, lacks := h.Lacks[test.name]; lacks {
				declared++
				t.Skip("declared: " + why)
			}
			test.run(t, h)
		})
	}
	if declared != len(h.Lacks) && !testing.Short() && !filtered() {
		t.Errorf("Lacks declares %d tests, %d of them exist", len(h.Lacks), declared)
	}
}

// filtered reports whether the command line asks for some tests only.
func filtered() bool {
	return slices.ContainsFunc(os.Args, func(arg string) bool {
		return strings.HasPrefix(arg, "-test.run=") || strings.HasPrefix(arg, "-test.skip=")
	})
}

// timeout limits the wait for a condition.
const timeout = 30 * time.Second

// prompt limits an immediate operation. The limit is long, because the race
// detector and a busy machine are slow.
const prompt = 4 * time.Second

// limited ends with the test, and at the latest when timeout does.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// open opens a sink of the broker, and closes the sink with the test.
func open(t *testing.T, b Broker, mode string) sinks.Sink {
	t.Helper()
	s, err := tryOpen(limited(t), t, b, mode)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

func tryOpen(ctx context.Context, t *testing.T, b Broker, mode string) (sinks.Sink, error) {
	t.Helper()
	p := Configure(t, b.Kind, block(b, mode))
	return p.Open(ctx, sinks.Env{
		Name: "test", Log: zap.NewNop(), Dial: b.World.Dial, Now: time.Now,
	})
}

func block(b Broker, mode string) string {
	if mode == "" {
		return b.Config
	}
	return b.Config + "\ncontent_mode: " + mode
}

// Configure reads a YAML block without name and type: lines without
// indentation, or everything in braces.
func Configure(t *testing.T, k sinks.Kind, block string) sinks.Configured {
	t.Helper()
	p, err := TryConfigure(k, block)
	if err != nil {
		t.Fatalf("the configuration is refused: %v", err)
	}
	return p
}

// TryConfigure is Configure for a block that may be invalid.
func TryConfigure(k sinks.Kind, block string) (sinks.Configured, error) {
	text := "sinks:\n  - name: test\n    type: " + k.Name + "\n"
	if rest, ok := strings.CutPrefix(block, "{"); ok {
		text = "sinks:\n  - {name: test, type: " + k.Name + ", " + rest + "\n"
	} else {
		for line := range strings.SplitSeq(strings.TrimSpace(block), "\n") {
			text += "    " + line + "\n"
		}
	}
	c, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		return sinks.Configured{}, err
	}
	return config.NewRegistry(k).Configure("sink", c.Sinks[0])
}

// deliver acts like the relay: deliver in batches, and retry failed events
// before the next batch. Each outcome is checked against the contract.
func deliver(ctx context.Context, t *testing.T, s sinks.Sink, events []event.Event, batch int) {
	t.Helper()
	for chunk := range slices.Chunk(events, batch) {
		for pending := chunk; len(pending) > 0; {
			pending = Attempt(ctx, t, s, pending)
			if len(pending) == 0 {
				break
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Errorf("%d events are still not delivered", len(pending))
				return
			}
		}
	}
}

// Attempt delivers a batch once and returns the events to retry. A permanent
// failure or a wrong order fails the test.
func Attempt(ctx context.Context, t *testing.T, s sinks.Sink, batch []event.Event) []event.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := s.Deliver(ctx, batch)
	if err == nil {
		return nil
	}
	each, ok := errors.AsType[sinks.BatchError](err)
	if !ok {
		if _, refused := sinks.IsPermanent(err); refused {
			t.Errorf("a whole batch is refused: %v", err)
			return nil
		}
		return batch
	}
	if len(each) != len(batch) {
		t.Errorf("the outcome has %d entries for %d events", len(each), len(batch))
		return nil
	}
	var retry []event.Event
	failed := map[string]bool{}
	for i, e := range batch {
		key, keyed := e.Attribute(event.PartitionKey)
		if each[i] == nil {
			if keyed && failed[key] {
				t.Errorf("event %s counts as delivered behind a failed one of its key", e.CloudEvent.ID())
			}
			continue
		}
		if reason, refused := sinks.IsPermanent(each[i]); refused {
			t.Errorf("event %s is refused, %s: %v", e.CloudEvent.ID(), reason, each[i])
			continue
		}
		failed[key] = true
		retry = append(retry, e)
	}
	if len(retry) == 0 && !t.Failed() {
		t.Error("a BatchError names no event")
	}
	return retry
}

// Concurrently acts like the relay: concurrent calls of Deliver within the
// limits of the sink, until all events are delivered. The events of a partition
// key, or of a destination if the limits say so, are in one call at a time.
func Concurrently(ctx context.Context, t *testing.T, s sinks.Sink, events []event.Event) {
	t.Helper()
	limits := s.Limits()
	size := cmp.Or(limits.Batch, 64)
	var calls sync.WaitGroup
	defer calls.Wait()
	if limits.PerDestination {
		lanes := map[sinks.Destination][]event.Event{}
		for _, e := range events {
			lanes[s.Destination(e)] = append(lanes[s.Destination(e)], e)
		}
		slots := make(chan struct{}, max(1, limits.InFlight))
		for _, lane := range lanes {
			calls.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				deliver(ctx, t, s, lane, size)
			})
		}
		return
	}
	lanes := make([][]event.Event, max(1, limits.InFlight))
	for i, line := range sinks.Lines(events) {
		for _, k := range line {
			lanes[i%len(lanes)] = append(lanes[i%len(lanes)], events[k])
		}
	}
	for _, lane := range lanes {
		calls.Go(func() { deliver(ctx, t, s, lane, size) })
	}
}

func forModes(t *testing.T, h Harness, run func(t *testing.T, mode string)) {
	for _, mode := range h.Modes {
		t.Run("mode "+mode, func(t *testing.T) { run(t, mode) })
	}
}

func arrive(t *testing.T, h Harness) {
	forModes(t, h, func(t *testing.T, mode string) {
		b := h.Start(t)
		events := Events(300, 7)
		deliver(limited(t), t, open(t, b, mode), events, 64)
		got := check(t, b, events, mode != sinks.Binary)
		if len(got) != len(events) {
			t.Errorf("there are %d messages of %d events", len(got), len(events))
		}
	})
}

func destination(t *testing.T, h Harness) {
	b := h.Start(t)
	s, events := open(t, b, h.Modes[0]), Events(3, 1)
	want := s.Destination(events[0])
	deliver(limited(t), t, s, events[:1], 1)
	messages := b.Read(t)
	if len(messages) != 1 || messages[0].At != want.Name {
		t.Fatalf("of one event there are %d messages, the first at %q; its destination is %+v", len(messages), messages[0].At, want)
	}
	if other := s.Destination(events[1]); other.Template != want.Template || want.Template == "" && other.Name != want.Name {
		t.Errorf("another event goes to %+v, this one to %+v", other, want)
	}
	if again := s.Destination(events[0]); again != want {
		t.Errorf("asked again, the destination is %+v, and was %+v", again, want)
	}
}

// check compares the broker's messages with the events: each event exists and
// is equal for every reader, and the events of a partition key are in order,
// except for repeats.
func check(t *testing.T, b Broker, events []event.Event, asJSON bool) []Message {
	t.Helper()
	messages := b.Read(t)
	byID := map[string]int{}
	for i, e := range events {
		byID[e.CloudEvent.ID()] = i
	}
	first := map[int]bool{}
	last := map[string]int{} // by key
	for _, m := range messages {
		if len(m.Read) == 0 {
			t.Fatal("no reader read the message")
		}
		n := -1
		for reader, seen := range m.Read {
			i, ok := byID[seen.Attributes["id"]]
			if !ok {
				t.Fatalf("%s reads an event that nobody sent: %v", reader, seen.Attributes)
			}
			if n >= 0 && i != n {
				t.Fatalf("readers see events %d and %d in one message", n, i)
			}
			n = i
			if diff := Diff(events[i], seen, asJSON); diff != "" {
				t.Errorf("%s reads event %d otherwise (- sent, + read):\n%s", reader, i, diff)
			}
		}
		if first[n] {
			continue
		}
		first[n] = true
		if key, ok := events[n].Attribute(event.PartitionKey); ok {
			if before, ok := last[key]; ok && before > n {
				t.Errorf("of key %s, event %d came before event %d", key, before, n)
			}
			last[key] = n
		}
	}
	if len(first) != len(events) {
		t.Errorf("%d of %d events are there", len(first), len(events))
	}
	return messages
}

func wireForm(t *testing.T, h Harness) {
	forModes(t, h, func(t *testing.T, mode string) {
		b := h.Start(t)
		deliver(limited(t), t, open(t, b, mode), Events(3, 1), 1)
		var got strings.Builder
		for _, m := range b.Read(t) {
			got.WriteString(m.Wire)
			got.WriteString("\n")
		}
		name := mode
		if name == "" {
			name = "wire"
		}
		golden.Check(t, filepath.Join("testdata", name+".golden"), got.String())
	})
}

func tooLarge(t *testing.T, h Harness) {
	forModes(t, h, func(t *testing.T, mode string) {
		b := h.Start(t)
		s := open(t, b, mode)
		events := Events(9, 2)
		if err := events[4].CloudEvent.SetData("application/json", []byte(`"`+strings.Repeat("x", h.TooLarge)+`"`)); err != nil {
			t.Fatal(err)
		}
		var each sinks.BatchError
		Until(t, "the batch is judged", func() bool {
			var ok bool
			each, ok = errors.AsType[sinks.BatchError](s.Deliver(limited(t), events))
			return ok
		})
		for i, err := range each {
			reason, refused := sinks.IsPermanent(err)
			switch {
			case i == 4 && (!refused || reason != sinks.ReasonTooLarge):
				t.Errorf("the large event has %q, %v", reason, err)
			case i == 4 && strings.Contains(err.Error(), "xxxx"):
				t.Error("the error holds the payload")
			case i != 4 && err != nil:
				t.Errorf("event %d failed with it: %v", i, err)
			}
		}
		check(t, b, slices.Delete(slices.Clone(events), 4, 5), mode != sinks.Binary)
	})
}

func unchanged(t *testing.T, h Harness) {
	forModes(t, h, func(t *testing.T, mode string) {
		b := h.Start(t)
		events, twins := Events(20, 3), Events(20, 3)
		deliver(limited(t), t, open(t, b, mode), events, 20)
		for i := range events {
			if diff := gocmp.Diff(twins[i].CloudEvent.String(), events[i].CloudEvent.String()); diff != "" {
				t.Errorf("event %d was changed:\n%s", i, diff)
			}
		}
		clear(events) // a sink that kept the slice now has empty events
		check(t, b, twins, mode != sinks.Binary)
	})
}

func concurrent(t *testing.T, h Harness) {
	forModes(t, h, func(t *testing.T, mode string) {
		b := h.Start(t)
		events := Events(600, 40)
		Concurrently(limited(t), t, open(t, b, mode), events)
		if got := check(t, b, events, mode != sinks.Binary); len(got) != len(events) {
			t.Errorf("there are %d messages of %d events", len(got), len(events))
		}
	})
}

func limits(t *testing.T, h Harness) {
	b := h.Start(t)
	s := open(t, b, h.Modes[0])
	want := s.Limits()
	if want.InFlight < 0 || want.Batch < 0 {
		t.Errorf("the limits are %+v", want)
	}
	same := func(when string) {
		t.Helper()
		if got := s.Limits(); got != want {
			t.Errorf("%s the limits are %+v, and were %+v", when, got, want)
		}
	}
	deliver(limited(t), t, s, Events(20, 4), 20)
	same("after a delivery")
	back := goAway(t, b)
	Attempt(limited(t), t, s, Events(20, 4))
	same("while the broker is away")
	back()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	same("after close")
}

func contextEnds(t *testing.T, h Harness) {
	b := h.Start(t)
	s := open(t, b, h.Modes[0])
	events := Events(40, 4)
	deliver(limited(t), t, s, events[:10], 10)
	b.World.Freeze()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Deliver(ctx, events[10:]) }()
	b.World.Touched(t)
	cancel()
	returned(t, done)
	b.World.Thaw()
	deliver(limited(t), t, s, events[10:], 30)
	check(t, b, events, h.Modes[0] != sinks.Binary)
}

// returned waits for Deliver to fail, soon and not for good.
func returned(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err == nil {
			t.Error("deliver reports success")
		}
		each, ok := errors.AsType[sinks.BatchError](err)
		if !ok {
			each = sinks.BatchError{err}
		}
		for _, err := range each {
			if reason, refused := sinks.IsPermanent(err); refused {
				t.Errorf("deliver reports a refusal, %s: %v", reason, err)
			}
		}
	case <-time.After(prompt):
		t.Fatalf("deliver runs on for more than %v", prompt)
	}
}

func closeReturns(t *testing.T, h Harness) { closeDuring(t, h, 1) }

func closeReturnsAll(t *testing.T, h Harness) { closeDuring(t, h, 4) }

// closeDuring closes a sink during some calls of Deliver that get no answer.
func closeDuring(t *testing.T, h Harness, calls int) {
	b := h.Start(t)
	s := open(t, b, h.Modes[0])
	events := Events(40, 4)
	deliver(limited(t), t, s, events[:10], 10)
	b.World.Freeze()
	defer b.World.Thaw()
	done, closed := make(chan error, calls), make(chan error, 1)
	for i := range min(calls, max(1, s.Limits().InFlight)) {
		var batch []event.Event // of its own keys
		for k := i; k < len(events); k += calls {
			batch = append(batch, events[k])
		}
		go func() { done <- s.Deliver(t.Context(), batch) }()
	}
	b.World.Touched(t)
	go func() { closed <- s.Close() }()
	for range min(calls, max(1, s.Limits().InFlight)) {
		returned(t, done)
	}
	select {
	case err := <-closed:
		if err != nil {
			t.Errorf("close: %v", err)
		}
	case <-time.After(prompt):
		t.Fatalf("close runs on for more than %v", prompt)
	}
}

func afterClose(t *testing.T, h Harness) {
	b := h.Start(t)
	s := open(t, b, h.Modes[0])
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Deliver(t.Context(), Events(3, 1)) }()
		returned(t, done)
	}
	if got := b.Read(t); len(got) != 0 {
		t.Errorf("%d messages arrived", len(got))
	}
}

func goAway(t *testing.T, b Broker) (back func()) {
	if b.Away == nil {
		b.World.Down()
		return b.World.Up
	}
	b.Away(t)
	return func() { b.Back(t) }
}

func openingAway(t *testing.T, h Harness) {
	b := h.Start(t)
	back := goAway(t, b)
	for range 2 {
		s, err := tryOpen(limited(t), t, b, h.Modes[0])
		if err == nil {
			_ = s.Close()
			t.Fatal("a sink is open while its broker is away")
		}
		if reason, refused := sinks.IsPermanent(err); refused {
			t.Errorf("opening is refused for good, %s: %v", reason, err)
		}
	}
	b.World.Freeze()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		s, err := tryOpen(ctx, t, b, h.Modes[0])
		if err == nil {
			_ = s.Close()
		}
		done <- err
	}()
	cancel()
	returned(t, done)
	b.World.Thaw()
	back()
	events := Events(10, 2)
	deliver(limited(t), t, open(t, b, h.Modes[0]), events, 10)
	check(t, b, events, h.Modes[0] != sinks.Binary)
}

func away(t *testing.T, h Harness) {
	b := h.Start(t)
	s := open(t, b, h.Modes[0])
	events := Events(200, 5)
	deliver(limited(t), t, s, events[:100], 50)
	back := goAway(t, b)
	for range 3 {
		if left := Attempt(limited(t), t, s, events[100:]); len(left) == 0 {
			t.Error("deliver reports success while the broker is away")
		}
	}
	back()
	deliver(limited(t), t, s, events[100:], 50)
	got := check(t, b, events, h.Modes[0] != sinks.Binary)
	if h.DropsRepeats && len(got) != len(events) {
		t.Errorf("there are %d messages of %d events", len(got), len(events))
	}
}

func order(t *testing.T, h Harness) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := h.Start(t)
	s := open(t, b, h.Modes[0])
	const round = 600
	r := rand.New(rand.NewPCG(seed, 1))
	var events []event.Event
	for broken := 0; broken < 5; {
		events = Events(len(events)+round, 9)
		b.World.Break(r, 0.02)
		Concurrently(limited(t), t, s, events[len(events)-round:])
		n := b.World.Mend()
		broken += n
		t.Logf("%d connections broken", n)
	}
	got := check(t, b, events, h.Modes[0] != sinks.Binary)
	t.Logf("%d messages of %d events", len(got), len(events))
	if h.DropsRepeats && len(got) != len(events) {
		t.Errorf("there are %d messages of %d events", len(got), len(events))
	}
}

func leaks(t *testing.T, h Harness) {
	b := h.Start(t)
	once := func() {
		s, err := tryOpen(limited(t), t, b, h.Modes[0])
		if err != nil {
			t.Fatal(err)
		}
		deliver(limited(t), t, s, Events(50, 5), 50)
		b.World.Freeze() // leaves requests without an answer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Deliver(ctx, Events(50, 5)) }()
		b.World.Touched(t)
		cancel()
		if err := <-done; err == nil {
			t.Error("deliver reports success on a frozen way")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		b.World.Thaw()
	}
	once() // objects for the broker's first client stay
	before := goleak.IgnoreCurrent()
	once()
	once()
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func example(t *testing.T, h Harness) {
	c, err := config.Load("example.yaml", func(name string) (string, bool) {
		value, ok := h.Env[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range c.Sinks {
		if _, err := config.NewRegistry(h.Start(t).Kind).Configure("sink", b); err != nil {
			t.Error(err)
		}
	}
	if len(c.Sinks) == 0 {
		t.Error("the example has no sink")
	}
}

// Until waits for a condition, and fails the test if the condition stays false.
func Until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in %v it did not come to pass that %s", timeout, what)
		}
	}
}
