// Package sinktest holds what every sink must do. Each test's name is a
// sentence of the contract in package sinks.
package sinktest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Harness is one sink under test and its broker.
type Harness struct {
	Kind sinks.Kind
	// Config is the sink's block without name and type, in YAML flow style,
	// for a destination that is new and empty, in the given content mode.
	Config func(mode string) string
	// Read returns the n events that were delivered first, as the broker's
	// consumers read them. It waits for them.
	Read func(t *testing.T, n int) []cloudevents.Event

	// Features that a broker may lack; what is nil is reported as such.

	// Oversize is more bytes of data than the broker takes; 0 is no limit.
	Oversize int
	// Stop takes the broker away, and Start brings it back.
	Stop, Start func(t *testing.T)
	// Network is whether the sink talks to its broker through Env.Dial.
	Network bool
}

// Run runs the suite; start gives each test a harness of its own.
func Run(t *testing.T, start func(t *testing.T) Harness) {
	tests := []struct {
		name string
		has  func(h Harness) bool
		run  func(t *testing.T, h Harness)
	}{
		{"events arrive in order and whole in binary mode", always, arrive(sinks.Binary)},
		{"events arrive in order and whole in structured mode", always, arrive(sinks.Structured)},
		{"an empty batch is delivered", always, empty},
		{"an event too large is refused alone", func(h Harness) bool { return h.Oversize > 0 }, oversize},
		{"a cancelled context ends deliver", always, cancelled},
		{"close ends deliver", always, closed},
		{"a broker that is away is transient", func(h Harness) bool { return h.Stop != nil }, away},
		{"order holds per partition key through lost connections", func(h Harness) bool { return h.Network }, order},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t)
			if !tt.has(h) {
				t.Skip("the broker lacks this feature, as declared")
			}
			tt.run(t, h)
		})
	}
}

func always(Harness) bool { return true }

// Event makes an event as a source would.
func Event(id, key string) event.Event {
	e := cloudevents.NewEvent()
	e.SetID(id)
	e.SetSource("https://upload-post.com/profiles/caf%C3%A9")
	e.SetType("com.upload-post.upload_completed")
	e.SetSubject("instagram/" + id)
	e.SetTime(time.Date(2024, 3, 15, 14, 30, 0, 123456000, time.UTC))
	e.SetDataSchema("urn:postwire:schema:com.upload-post.upload_completed:1")
	e.SetExtension(event.Platform, "instagram")
	e.SetExtension(event.Outcome, "success")
	e.SetExtension(event.Profile, `café "50%" ✓`)
	e.SetExtension(event.RecordedTime, time.Date(2024, 3, 15, 14, 30, 1, 0, time.UTC))
	if key != "" {
		e.SetExtension(event.PartitionKey, key)
	}
	e.SetDataContentType("application/json")
	e.DataEncoded = []byte(`{"event": "upload_completed",  "title":"ünï\u0041", "n":1.50, "id":"` + id + `"}`)
	return event.Event{CloudEvent: e, Keys: []event.Key{event.Key(id)}}
}

func batch(n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = Event(fmt.Sprintf("%04d", i), "profile")
	}
	return events
}

// Opener reads a block of the configuration.
func Opener(t testing.TB, k sinks.Kind, block string) sinks.Opener {
	t.Helper()
	text := fmt.Sprintf("sinks:\n  - {name: test, type: %s, %s}\n", k.Name, block)
	c, err := config.Parse("test.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	s, err := config.NewRegistry(k).Configure("sink", c.Sinks[0])
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return s.Open
}

// Open opens the sink of a harness, and closes it with the test.
func (h Harness) Open(t *testing.T, mode string, env sinks.Env) sinks.Sink {
	t.Helper()
	env.Name = "test"
	if env.Log == nil {
		env.Log = zap.NewNop()
	}
	if env.Now == nil {
		env.Now = time.Now
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Opener(t, h.Kind, h.Config(mode))(ctx, env)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func deliver(t *testing.T, s sinks.Sink, events []event.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Deliver(ctx, events); err != nil {
		t.Fatalf("Deliver: %v", err)
	}
}

func compare(t *testing.T, want []event.Event, got []cloudevents.Event, mode string) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("read %d events, want %d", len(got), len(want))
	}
	for i := range want {
		w, g := want[i], event.Event{CloudEvent: got[i]}
		for _, name := range event.Attributes() {
			wv, wok := w.Attribute(name)
			gv, gok := g.Attribute(name)
			if wv != gv || wok != gok {
				t.Errorf("event %d: attribute %s is %q, want %q", i, name, gv, wv)
			}
		}
		wd, gd := w.CloudEvent.Data(), got[i].Data()
		if mode == sinks.Structured {
			wd, gd = canonical(t, wd), canonical(t, gd)
		}
		if !bytes.Equal(wd, gd) {
			t.Errorf("event %d: data is\n%s, want\n%s", i, gd, wd)
		}
	}
}

func canonical(t *testing.T, data []byte) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func arrive(mode string) func(t *testing.T, h Harness) {
	return func(t *testing.T, h Harness) {
		s := h.Open(t, mode, sinks.Env{})
		events := batch(50)
		bare := cloudevents.NewEvent()
		bare.SetID("bare")
		bare.SetSource("/s")
		bare.SetType("t")
		bare.SetExtension(event.PartitionKey, "profile") // the same line as the others
		bare.SetDataContentType("application/json")
		bare.DataEncoded = []byte(`{}`)
		events = append(events, event.Event{CloudEvent: bare})
		deliver(t, s, events[:20])
		deliver(t, s, events[20:])
		compare(t, events, h.Read(t, len(events)), mode)
	}
}

func empty(t *testing.T, h Harness) { deliver(t, h.Open(t, sinks.Binary, sinks.Env{}), nil) }

func oversize(t *testing.T, h Harness) {
	s := h.Open(t, sinks.Binary, sinks.Env{})
	events := batch(9)
	big := Event("big", "profile")
	big.CloudEvent.DataEncoded = []byte(`"` + string(bytes.Repeat([]byte("x"), h.Oversize)) + `"`)
	events[4] = big
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := s.Deliver(ctx, events)
	each, ok := errors.AsType[sinks.BatchError](err)
	if !ok || len(each) != len(events) {
		t.Fatalf("Deliver = %v, want a BatchError", err)
	}
	for i, err := range each {
		reason, refused := sinks.IsPermanent(err)
		if i == 4 && (!refused || reason != sinks.ReasonTooLarge) {
			t.Errorf("the event too large: %v", err)
		}
		if i != 4 && err != nil {
			t.Errorf("event %d: %v", i, err)
		}
	}
	compare(t, slices.Delete(slices.Clone(events), 4, 5), h.Read(t, len(events)-1), sinks.Binary)
}

func cancelled(t *testing.T, h Harness) {
	s := h.Open(t, sinks.Binary, sinks.Env{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Deliver(ctx, batch(3)); err == nil {
		t.Error("Deliver succeeded under a cancelled context")
	}
	deliver(t, s, batch(3)) // and the sink is none the worse
}

func closed(t *testing.T, h Harness) {
	s := h.Open(t, sinks.Binary, sinks.Env{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 {
			_ = s.Deliver(t.Context(), batch(100))
		}
	}()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("Deliver still runs after Close")
	}
}

func away(t *testing.T, h Harness) {
	s := h.Open(t, sinks.Binary, sinks.Env{})
	events := batch(20)
	deliver(t, s, events[:10])
	h.Stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := s.Deliver(ctx, events[10:])
	if err == nil {
		t.Fatal("Deliver succeeded without a broker")
	}
	errs := []error{err}
	if each, ok := errors.AsType[sinks.BatchError](err); ok {
		errs = each
	}
	for _, err := range errs {
		if _, refused := sinks.IsPermanent(err); refused {
			t.Errorf("without a broker an event was refused for good: %v", err)
		}
	}
	h.Start(t)
	if err := carry(t, s, events[10:], 30*time.Second); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for len(seen) < len(events) { // some may be there twice
		for _, e := range h.Read(t, len(events)) {
			seen[e.ID()] = true
		}
	}
}

// carry does what the relay does: it tries until all are delivered.
func carry(t *testing.T, s sinks.Sink, pending []event.Event, limit time.Duration) error {
	t.Helper()
	for end := time.Now().Add(limit); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := s.Deliver(ctx, pending)
		cancel()
		if err == nil {
			return nil
		}
		if each, ok := errors.AsType[sinks.BatchError](err); ok {
			var rest []event.Event
			for i, err := range each {
				if _, refused := sinks.IsPermanent(err); refused {
					return err
				}
				if err != nil {
					rest = append(rest, pending[i])
				}
			}
			pending = rest
		}
		if time.Now().After(end) {
			return fmt.Errorf("not delivered in %v: %w", limit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// flaky is a network whose connections are lost every few kilobytes.
type flaky struct {
	mu    sync.Mutex
	rng   *rand.Rand
	lost  int
	calm  bool
	conns []net.Conn
}

func (f *flaky) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
	return &flakyConn{Conn: c, f: f, left: 2000 + f.rng.IntN(30000)}, nil
}

type flakyConn struct {
	net.Conn
	f    *flaky
	left int // bytes until it is lost; counted in both directions
}

func (c *flakyConn) spend(n int) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.left -= n; c.left < 0 && !c.f.calm {
		c.f.lost++
		_ = c.Conn.Close()
	}
}

func (c *flakyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.spend(n)
	return n, err
}

func (c *flakyConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.spend(n)
	return n, err
}

func order(t *testing.T, h Harness) {
	f := &flaky{rng: rand.New(rand.NewPCG(1, 2))}
	f.calm = true // until it is open
	s := h.Open(t, sinks.Binary, sinks.Env{Dial: f.dial})
	f.mu.Lock()
	f.calm = false
	f.mu.Unlock()
	const keys, each = 7, 40
	var events []event.Event
	for i := range each {
		for k := range keys {
			events = append(events, Event(fmt.Sprintf("%d-%03d", k, i), fmt.Sprint("profile", k)))
		}
	}
	// The connection that was opened calmly is lost, so that new ones come.
	f.mu.Lock()
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	for part := range slices.Chunk(events, 40) {
		if err := carry(t, s, part, 60*time.Second); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		for _, c := range f.conns { // between two batches, too
			_ = c.Close()
		}
		f.lost += len(f.conns)
		f.conns = nil
		f.mu.Unlock()
	}
	f.mu.Lock()
	f.calm = true
	lost := f.lost
	f.mu.Unlock()
	if lost == 0 {
		t.Error("no connection was lost")
	}
	// What a lost answer made the sink send twice may be there twice; the
	// first of each counts.
	var got []string
	seen := map[string]bool{}
	for n := len(events); len(got) < len(events); n++ {
		got, seen = nil, map[string]bool{}
		for _, e := range h.Read(t, n) {
			if !seen[e.ID()] {
				seen[e.ID()] = true
				got = append(got, e.ID())
			}
		}
	}
	t.Logf("%d events through %d lost connections", len(got), lost)
	for k := range keys {
		var line, want []string
		for _, id := range got {
			if id[0] == byte('0'+k) {
				line = append(line, id)
			}
		}
		for i := range each {
			want = append(want, fmt.Sprintf("%d-%03d", k, i))
		}
		if diff := cmp.Diff(want, line); diff != "" {
			t.Errorf("partition key %d (-want +got):\n%s", k, diff)
		}
	}
}

// Mistake reads a block of the configuration and returns what is wrong with it.
func Mistake(t *testing.T, k sinks.Kind, block string) error {
	t.Helper()
	text := fmt.Sprintf("sinks:\n  - {name: test, type: %s, %s}\n", k.Name, block)
	c, err := config.Parse("test.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		return err
	}
	_, err = config.NewRegistry(k).Configure("sink", c.Sinks[0])
	return err
}

// Example reads the example that the reference page shows.
func Example(t *testing.T, k sinks.Kind, file string) {
	t.Helper()
	c, err := config.Load(file, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range c.Sinks {
		if _, err := config.NewRegistry(k).Configure("sink", b); err != nil {
			t.Error(err)
		}
	}
}

// Env is what a test opens a sink with.
func Env() sinks.Env { return sinks.Env{Name: "test", Log: zap.NewNop(), Now: time.Now} }
