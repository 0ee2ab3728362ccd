package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// cluster is three NATS servers; every way from one to another, and from a client
// to one, can be cut.
type cluster struct {
	nodes  []*natstest.Node
	routes map[[2]int]*proxy // from one to another
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{routes: map[[2]int]*proxy{}}
	c.nodes = natstest.StartCluster(t, func(from, to int, addr string) string {
		p := newProxy(t, addr, false)
		c.routes[[2]int{from, to}] = p
		return p.addr
	})
	c.whole(t)
	return c
}

// connect makes a connection of the test's own.
func (c *cluster) connect(t *testing.T) jetstream.JetStream {
	t.Helper()
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, "nats://"+n.Addr)
	}
	conn, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2)) // leaves a server that hangs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// whole waits until all three servers are there and know of each other's streams.
func (c *cluster) whole(t *testing.T) {
	t.Helper()
	js := c.connect(t)
	eventually(t, "the cluster is whole", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := js.AccountInfo(ctx); err != nil {
			return false
		}
		s, err := js.Stream(ctx, "postwire")
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return true
		}
		if err != nil || s.CachedInfo().Cluster.Leader == "" {
			return false
		}
		for _, r := range s.CachedInfo().Cluster.Replicas {
			if !r.Current || r.Offline {
				return false
			}
		}
		return len(s.CachedInfo().Cluster.Replicas) == 2
	})
}

// leader is which server leads the journal's stream.
func (c *cluster) leader(t *testing.T) int {
	t.Helper()
	js := c.connect(t)
	leader := -1
	eventually(t, "the stream has a leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if s, err := js.Stream(ctx, "postwire"); err == nil {
			for i, n := range c.nodes {
				if n.Name == s.CachedInfo().Cluster.Leader {
					leader = i
				}
			}
		}
		return leader >= 0
	})
	return leader
}

// fleet is three relays on one cluster, behind a load balancer.
type fleet struct {
	*world
	cluster *cluster
	mu      sync.Mutex // guards relays while the load balancer runs, for a fleet that grows
	relays  []*postwire
	ways    [][]*proxy // of each relay to each server
	front   endpoint   // the load balancer
	turn    atomic.Uint64
	passed  atomic.Pointer[error] // why a request was last handed to the next relay
	timeout time.Duration         // of the load balancer for one relay; 0 is the client's
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{world: newWorld(t), cluster: newCluster(t)}
	for i := range 3 {
		var urls []string
		var ways []*proxy
		for _, n := range f.cluster.nodes {
			p := newProxy(t, n.Addr, false)
			ways = append(ways, p)
			urls = append(urls, "nats://"+p.addr)
		}
		f.ways = append(f.ways, ways)
		config := f.change(t, "journal: {", fmt.Sprintf("journal: {engine: jetstream, jetstream: {url: %q}, spill: {dir: %q}, ",
			strings.Join(urls, ","), filepath.Join(t.TempDir(), "spill")))
		config = strings.Replace(config, "server: {", fmt.Sprintf("server: {name: relay-%d, ", i), 1)
		f.relays = append(f.relays, start(t, config))
	}
	f.balanceLoad(t)
	return f
}

// balanceLoad starts the load balancer.
func (f *fleet) balanceLoad(t *testing.T) {
	t.Helper()
	f.front = endpoint{addr: natstest.FreeAddr(t)}
	l, err := net.Listen("tcp", f.front.addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(f.balance), ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// balance hands a request to the relays in turn, and to the next one where there
// was no answer: a webhook may be posted again.
func (f *fleet) balance(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	turn := f.turn.Add(1)
	f.mu.Lock()
	relays := f.relays
	f.mu.Unlock()
	for try := range uint64(len(relays)) {
		to := relays[(turn+try)%uint64(len(relays))].addr
		ctx := r.Context()
		if f.timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, f.timeout)
			defer cancel()
		}
		req, err := http.NewRequestWithContext(ctx, r.Method, "http://"+to+r.URL.Path, bytes.NewReader(body))
		if err != nil {
			break
		}
		req.Header = r.Header.Clone()
		resp, err := client.Do(req)
		if err != nil || resp.StatusCode == http.StatusServiceUnavailable {
			if err == nil {
				text, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				err = fmt.Errorf("%s: %s", resp.Status, text)
			}
			f.passed.Store(&err)
			continue
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
		_ = resp.Body.Close()
		return
	}
	w.WriteHeader(http.StatusBadGateway)
}

// stored counts the events of the journal by their ids.
func (f *fleet) stored(t *testing.T) map[string]int {
	t.Helper()
	js := f.cluster.connect(t)
	consumer, err := js.OrderedConsumer(t.Context(), "postwire", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"postwire.event"}})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for {
		batch, err := consumer.FetchNoWait(1000)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for m := range batch.Messages() {
			n++
			meta, err := m.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			r, err := record.Decode(journal.Seq(meta.Sequence.Stream), m.Data())
			if err != nil {
				t.Fatal(err)
			}
			ids[r.Event.CloudEvent.ID()]++
		}
		if n == 0 {
			return ids
		}
	}
}

// calm waits until every relay is there, none keeps events of its own, and both
// sinks have everything.
func (f *fleet) calm(t *testing.T) {
	t.Helper()
	for _, r := range f.relays {
		r.ready(t)
		eventually(t, "nothing is spilled", func() bool { return r.metric(t, "postwire_journal_spilled") == "0" })
		f.settled(t, r.endpoint)
	}
}

// logPassed tells why a request was last handed to the next relay.
func (f *fleet) logPassed(t *testing.T) {
	t.Helper()
	if err := f.passed.Load(); err != nil {
		t.Errorf("one relay: %v", *err)
	}
}

// TestCluster breaks a fleet of three relays on a cluster of three servers in
// every way that one of them can break, while each webhook is posted to two of
// the relays at the same moment. No post is refused, nothing acknowledged is
// missing, no event is stored twice, and the order of each profile holds, but for
// what a relay keeps that alone is cut off.
func TestCluster(t *testing.T) {
	f := newFleet(t)
	pause := pick(3*time.Second, 15*time.Second) // how long a fault lasts is part of it
	faults := []fault{
		{name: "a relay is killed", bring: func(t *testing.T) {
			f.relays[f.holder(t, "nats")].kill(t)
			time.Sleep(pause)
			f.relays[f.dead()].start(t)
		}},
		{name: "a follower of the stream is killed", bring: func(t *testing.T) { f.loseNode(t, (f.cluster.leader(t)+1)%3, pause) }},
		{name: "the stream's leader is killed", bring: func(t *testing.T) { f.loseNode(t, f.cluster.leader(t), pause) }},
		// What a relay keeps nobody else can know of: the next event of a profile, posted to
		// another relay, is stored before it. So it may be where a relay is at a server that
		// is not yet one of the cluster, or not any more, when the others have a leader.
		{name: "a relay is cut off from the cluster", loose: true, bring: func(t *testing.T) { f.cut(t, f.ways[f.holder(t, "kafka")], pause+5*time.Second) }},
		{name: "the cluster is split, the leader alone", loose: true, bring: func(t *testing.T) {
			leader := f.cluster.leader(t)
			var ways []*proxy
			for pair, p := range f.cluster.routes {
				if pair[0] == leader || pair[1] == leader {
					ways = append(ways, p)
				}
			}
			f.cut(t, ways, pause+10*time.Second)
		}},
		{name: "all servers are killed, and a relay with its spill", loose: true, bring: func(t *testing.T) {
			for _, n := range f.cluster.nodes {
				n.Kill(t)
			}
			eventually(t, "events are kept", func() bool { return f.relays[0].metric(t, "postwire_journal_spilled") > "0" })
			f.relays[0].kill(t)
			f.relays[0].start(t)
			for _, n := range f.cluster.nodes {
				n.Start(t)
			}
		}},
		{name: "all servers are restarted, one by one", bring: func(t *testing.T) {
			for _, n := range f.cluster.nodes {
				n.Stop(t)
				n.Start(t)
				f.cluster.whole(t)
			}
		}},
		{name: "all relays are restarted, one by one", bring: func(t *testing.T) {
			for _, r := range f.relays {
				if err := r.stop(t); err != nil {
					t.Errorf("stopping: %v", err)
				}
				r.start(t)
			}
		}},
	}
	trial := newTrial(f, tableCluster, f.cluster.whole, f.storedOnce(pick(8*time.Second, 5*time.Second)))
	for _, fault := range faults {
		trial.run(t, fault)
	}
	trial.end(t)
}

// fault is what happens to a fleet under load.
type fault struct {
	name string
	// loose: the documented exception to the order of a key. A relay that is cut off when the
	// cluster takes events again has events in its spill that the others cannot know of: they
	// store the next event of the key first.
	loose     bool
	everybody bool // no relay is left to accept events
	rest      bool // happens while nothing is posted and nothing is pending
	bring     func(t *testing.T)
}

// trial brings one fault after another upon a fleet.
type trial struct {
	*fleet
	table string             // of the figures
	whole func(t *testing.T) // waits for the cluster after a fault
	// examine looks at what all faults have left, and at the longest wait of a post, after a
	// fault that leaves a relay.
	examine func(t *testing.T, acked map[string]bool, wait time.Duration)

	base   int             // of the profiles of the next fault
	loose  []int           // profiles whose order does not hold
	before [2]int          // sent twice to NATS, to Kafka
	acked  map[string]bool // by all faults
}

func newTrial(f *fleet, table string, whole func(*testing.T), examine func(t *testing.T, acked map[string]bool, wait time.Duration)) *trial {
	return &trial{fleet: f, table: table, whole: whole, examine: examine, acked: map[string]bool{}}
}

// storedOnce examines a fleet on a cluster of servers: no post takes longer than a time, and
// nothing is stored twice.
func (f *fleet) storedOnce(longest time.Duration) func(*testing.T, map[string]bool, time.Duration) {
	return func(t *testing.T, _ map[string]bool, wait time.Duration) {
		t.Helper()
		if wait > longest {
			t.Errorf("a post waited %v", wait)
			f.logPassed(t)
		}
		for id, n := range f.stored(t) {
			if n > 1 {
				t.Errorf("%s is stored %d times", id, n)
			}
		}
	}
}

// run brings a fault while each webhook is posted twice, and holds what has arrived against
// what was acknowledged, by this fault and by those before.
func (r *trial) run(t *testing.T, fault fault) {
	t.Run(fault.name, func(t *testing.T) {
		base := r.base
		r.base += 12 // a fault at rest has six more behind it
		if fault.loose {
			r.loose = append(r.loose, base, base+1, base+2, base+3, base+4, base+5)
		}
		l := r.post(t, fault, base)
		for id := range l.acked {
			r.acked[id] = true
		}
		if l.posted != len(l.acked) && !fault.everybody {
			t.Errorf("%d of %d posts were refused", l.posted-len(l.acked), l.posted)
			r.logPassed(t)
		}
		var wait time.Duration
		for _, a := range l.times {
			wait = max(wait, a.took)
		}
		nats, kafka := r.arrived(t, r.acked)
		atNATS, atKafka := check(t, "JetStream", r.acked, nats, true, r.loose...), check(t, "Kafka", r.acked, kafka, false, r.loose...)
		repeated := [2]int{atNATS.repeated - r.before[0], atKafka.repeated - r.before[1]}
		r.before = [2]int{atNATS.repeated, atKafka.repeated}
		if !fault.everybody {
			r.examine(t, r.acked, wait)
		}
		results.Add(t, r.table, fmt.Sprintf("| %s | %d | %d | %d | %d / %d | %s | %s | %s / %s |", fault.name, l.posted, len(l.acked), atNATS.lost+atKafka.lost,
			repeated[0], repeated[1], ms(wait), ms(quantile(l.between(time.Time{}, time.Now()), 0.99)), ms(way(nats, base)), ms(way(kafka, base))))
	})
}

// post posts before, during and after a fault, and returns when everything is delivered.
func (r *trial) post(t *testing.T, fault fault, base int) *load {
	t.Helper()
	start := func(base int) *load {
		return startLoad(t, r.front, 6, 30*time.Millisecond, func(l *load) {
			l.twins = true
			l.base = base
		})
	}
	l := start(base)
	l.more(t, 100)
	if fault.rest {
		l.stop()
		r.calm(t)
	}
	fault.bring(t)
	before := l
	if fault.rest {
		l = start(base + 6)
	}
	l.more(t, 100)
	l.stop()
	r.whole(t)
	r.calm(t)
	if fault.rest {
		l.add(before)
	}
	return l
}

// end stops the relays.
func (r *trial) end(t *testing.T) {
	t.Helper()
	for _, relay := range r.relays {
		if err := relay.stop(t); err != nil {
			t.Errorf("stopping: %v", err)
		}
	}
}

// arrived waits until all that was acknowledged is on both brokers, and returns
// what is there: who pumps is another process than the one that is asked, and what
// it says is a moment old.
func (f *fleet) arrived(t *testing.T, acked map[string]bool) (nats, kafka []arrival) {
	t.Helper()
	missing := func(got []arrival) (n int) {
		there := map[string]bool{}
		for _, a := range got {
			there[a.id] = true
		}
		for id := range acked {
			if !there[id] {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		nats, kafka = f.onNATS(t), f.onKafka(t)
		if missing(nats) == 0 && missing(kafka) == 0 || time.Now().After(end) {
			return nats, kafka
		}
	}
}

// way is the longest time from acceptance to the broker of the profiles from one
// on.
func way(got []arrival, from int) (longest time.Duration) {
	seen := map[string]bool{}
	for _, a := range got {
		rest := a.id[strings.LastIndex(a.id[:strings.LastIndexByte(a.id, '/')], "/")+1:]
		profile, _ := strconv.Atoi(rest[:strings.IndexByte(rest, '-')])
		if !seen[a.id] && profile >= from {
			longest = max(longest, a.stored.Sub(a.accepted))
		}
		seen[a.id] = true
	}
	return longest
}

// holder is which relay delivers to a sink, by the word of another one's status.
func (f *fleet) holder(t *testing.T, sink string) int {
	t.Helper()
	holder := -1
	eventually(t, "somebody delivers to "+sink, func() bool {
		holder = f.holderBy(f.relays[0], sink)
		return holder >= 0
	})
	return holder
}

// holderBy is which relay delivers to a sink by the word of a relay, or -1.
func (f *fleet) holderBy(r *postwire, sink string) int {
	resp, err := http.Get("http://" + r.admin + "/api/v1/status")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	var status struct {
		Sinks []struct{ Sink, Owner string }
	}
	if json.NewDecoder(resp.Body).Decode(&status) != nil {
		return -1
	}
	for _, s := range status.Sinks {
		for i := range f.relays {
			if s.Sink == sink && s.Owner == fmt.Sprintf("relay-%d", i) {
				return i
			}
		}
	}
	return -1
}

// dead is which relay does not run.
func (f *fleet) dead() int {
	for i, r := range f.relays {
		if r.cmd.ProcessState != nil {
			return i
		}
	}
	return 0
}

// loseNode kills a server without warning, and starts it again.
func (f *fleet) loseNode(t *testing.T, i int, pause time.Duration) {
	t.Helper()
	f.cluster.nodes[i].Kill(t)
	time.Sleep(pause)
	f.cluster.nodes[i].Start(t)
}

// cut makes ways pass nothing for a while, without saying so.
func (f *fleet) cut(t *testing.T, ways []*proxy, pause time.Duration) {
	t.Helper()
	for _, p := range ways {
		p.set(t, weather{hang: true})
	}
	time.Sleep(pause)
	for _, p := range ways {
		p.set(t, weather{})
	}
}
