package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// gates is a network in which single brokers refuse connections, or hang.
type gates struct {
	mu      sync.Mutex
	refused map[string]bool
	hanging map[string]bool
	changed chan struct{} // closed at a change
	conns   map[*gated]struct{}
}

func newGates() *gates {
	return &gates{refused: map[string]bool{}, hanging: map[string]bool{}, changed: make(chan struct{}), conns: map[*gated]struct{}{}}
}

type gated struct {
	net.Conn
	of     *gates
	addr   string
	closed chan struct{}
	once   sync.Once
}

func (g *gates) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused[addr] {
		return nil, errors.New("connection refused, says the test")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &gated{Conn: conn, of: g, addr: addr, closed: make(chan struct{})}
	g.conns[c] = struct{}{}
	return c, nil
}

// set makes a broker refuse all connections, hang, or work.
func (g *gates) set(addr string, refused, hanging bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[addr], g.hanging[addr] = refused, hanging
	close(g.changed)
	g.changed = make(chan struct{})
	for c := range g.conns {
		if refused && c.addr == addr {
			_ = c.Conn.Close()
		}
	}
}

// Read waits while the broker hangs.
func (c *gated) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for {
		c.of.mu.Lock()
		hanging, changed := c.of.hanging[c.addr], c.of.changed
		c.of.mu.Unlock()
		if !hanging {
			return n, err
		}
		select {
		case <-changed:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
}

func (c *gated) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// cluster is a cluster of three brokers. Broker i leads partition i of the topic.
type cluster struct {
	*broker
	*gates
	topic string
	addrs []string
	sinks.Sink
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{broker: startFake(t, kfake.NumBrokers(3)), gates: newGates(), topic: topic()}
	c.addrs = c.Fake.ListenAddrs()
	c.createTopic(t, c.topic, 3)
	for i := range int32(3) {
		if err := c.Fake.MoveTopicPartition(c.topic, i, i); err != nil {
			t.Fatal(err)
		}
	}
	p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q, %q, %q], topic: %s}", c.addrs[0], c.addrs[1], c.addrs[2], c.topic))
	s, err := p.Open(t.Context(), sinks.Env{Name: "test", Log: zap.NewNop(), Dial: c.dial, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c.Sink = s
	return c
}

// to returns an event for a partition.
func (c *cluster) to(t *testing.T, partition int, id string) event.Event {
	t.Helper()
	for i := range 1000 {
		e := numbered(id, fmt.Sprint("key ", i))
		if d := c.Destination(e); d.Partition == partition {
			return e
		}
	}
	t.Fatalf("no key is in partition %d", partition)
	return event.Event{}
}

func (c *cluster) current() *session {
	s := c.Sink.(*Sink)
	ses := s.acquire()
	s.release(ses)
	return ses
}

// failsAlone checks that Deliver fails because of the destination.
func failsAlone(t *testing.T, err error) {
	t.Helper()
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 1 || !sinks.IsAtDestination(each[0]) {
		t.Errorf("Deliver = %v, want an error of the partition", err)
	}
}

func TestDestination(t *testing.T) {
	c := startCluster(t)
	used := map[int]bool{}
	for i := range 50 {
		d := c.Destination(numbered(fmt.Sprint(i), ""))
		if d.Name != c.topic || d.Partition < 0 || d != c.Destination(numbered(fmt.Sprint(i), "")) {
			t.Errorf("without a key: %+v", d)
		}
		used[d.Partition] = true
	}
	if len(used) != 3 {
		t.Errorf("events without a key use partitions %v", used)
	}
	want := kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: []byte("k")}, 0, 1, 2)
	if d := c.Destination(numbered("1", "k")); d.Partition != want {
		t.Errorf("with a key: %+v, want partition %d", d, want)
	}
	s := c.open(t, fmt.Sprintf(`topic: "%s-{platform}"`, c.topic))
	if d := s.Destination(numbered("1", "k")); d.Partition != -1 {
		t.Errorf("of a topic that does not exist: %+v", d)
	}
}

// TestPartitionWithoutLeader: the partition fails alone, events without a key
// use the other partitions, and delivery goes on soon after there is a leader.
func TestPartitionWithoutLeader(t *testing.T) {
	c := startCluster(t)
	events := []event.Event{c.to(t, 0, "0"), c.to(t, 1, "1"), c.to(t, 2, "2")}
	gone := c.Fake.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: c.topic, Partitions: []int32{1}, Err: kerr.LeaderNotAvailable, Count: -1},
		kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.topic, Partitions: []int32{1}, Err: kerr.NotLeaderForPartition, Count: -1},
	)
	for range 3 {
		err := c.Deliver(t.Context(), events)
		each, _ := errors.AsType[sinks.BatchError](err)
		if len(each) != 3 || each[0] != nil || each[2] != nil || !sinks.IsAtDestination(each[1]) {
			t.Fatalf("Deliver = %v", err)
		}
	}
	sinktest.Until(t, "events without a key avoid the partition", func() bool {
		for i := range 50 {
			if c.Destination(numbered(fmt.Sprint(i), "")).Partition == 1 {
				return false
			}
		}
		return true
	})
	if d := c.Destination(events[1]); d.Partition != 1 {
		t.Errorf("a key moved to %+v", d)
	}
	gone.Remove()
	back := time.Now()
	sinktest.Until(t, "the partition is written again", func() bool { return c.Deliver(t.Context(), events[1:2]) == nil })
	if waited := time.Since(back); waited > 2*time.Second {
		t.Errorf("the partition was written %v after its leader came back", waited)
	}
}

// TestBrokerAway: the partitions of other brokers go on, also a request that is
// in flight while the session changes.
func TestBrokerAway(t *testing.T) {
	c := startCluster(t)
	events := []event.Event{c.to(t, 0, "0"), c.to(t, 1, "1"), c.to(t, 2, "2")}
	if err := c.Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	before := c.current()
	c.set(c.addrs[0], false, true)
	inFlight := make(chan error, 1)
	go func() { inFlight <- c.Deliver(t.Context(), events[:1]) }()
	c.set(c.addrs[1], true, false)
	for begin := time.Now(); time.Since(begin) < 2500*time.Millisecond; {
		failsAlone(t, c.Deliver(t.Context(), events[1:2]))
		if err := c.Deliver(t.Context(), events[2:]); err != nil {
			t.Fatalf("another partition: %v", err)
		}
	}
	if c.current() == before {
		t.Error("the session did not change")
	}
	c.set(c.addrs[0], false, false)
	if err := <-inFlight; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	c.set(c.addrs[1], false, false)
	sinktest.Until(t, "the broker is back", func() bool { return c.Deliver(t.Context(), events[1:2]) == nil })
}

// TestBrokerHangs: a broker that accepts and never answers holds up only its
// own partitions, and does not keep new metadata away.
func TestBrokerHangs(t *testing.T) {
	c := startCluster(t)
	events := []event.Event{c.to(t, 0, "0"), c.to(t, 1, "1"), c.to(t, 2, "2")}
	if err := c.Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	c.set(c.addrs[1], false, true)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		hung := make(chan error, 1)
		go func() { hung <- c.Deliver(ctx, events[1:2]) }()
		for ctx.Err() == nil {
			begin := time.Now()
			if err := c.Deliver(t.Context(), []event.Event{events[0], events[2]}); err != nil {
				t.Fatalf("the other partitions: %v", err)
			}
			if took := time.Since(begin); took > 500*time.Millisecond {
				t.Errorf("the other partitions took %v", took)
			}
		}
		failsAlone(t, <-hung)
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), silence+2*time.Second)
	defer cancel()
	hung := make(chan error, 1)
	go func() { hung <- c.Deliver(ctx, events[1:2]) }()
	time.Sleep(silence + 200*time.Millisecond)
	failsAlone(t, c.Deliver(ctx, events[1:2]))
	if ctx.Err() != nil {
		t.Error("another request waits for the silent broker, too")
	}
	failsAlone(t, <-hung)
	if err := c.Sink.(*Sink).refresh(t.Context(), c.Sink.(*Sink).urgent); err != nil {
		t.Errorf("new metadata: %v", err)
	}
}

// TestNoBroker: if no broker can be reached, the failure is of the whole sink.
func TestNoBroker(t *testing.T) {
	c := startCluster(t)
	events := []event.Event{c.to(t, 0, "0"), c.to(t, 1, "1")}
	if err := c.Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	for _, addr := range c.addrs {
		c.set(addr, true, false)
	}
	err := c.Deliver(t.Context(), events)
	if _, each := errors.AsType[sinks.BatchError](err); err == nil || each {
		t.Errorf("Deliver = %v, want an error of the whole sink", err)
	}
}
