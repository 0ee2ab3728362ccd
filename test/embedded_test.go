package test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
)

// embeddedFleet is relays with a cluster of their own.
type embeddedFleet struct {
	*fleet
	dirs []string // of the replicas
}

func newEmbeddedFleet(t *testing.T, n int, change ...func(config string) string) *embeddedFleet {
	t.Helper()
	f := &embeddedFleet{fleet: &fleet{world: newWorld(t), timeout: 4 * time.Second}}
	var peers []string
	for range n {
		peers = append(peers, natstest.FreeAddr(t))
	}
	for i := range n {
		dir := t.TempDir()
		f.dirs = append(f.dirs, filepath.Join(dir, "cluster"))
		config := f.change(t, "journal: {", fmt.Sprintf("journal: {engine: jetstream, max_bytes: 256MiB, jetstream: {embedded: {peers: [%s], listen: %q, dir: %q, secret: a-shared-secret-of-the-relays}}, spill: {dir: %q}, ",
			strings.Join(peers, ", "), peers[i], f.dirs[i], filepath.Join(dir, "spill")))
		config = strings.Replace(config, "server: {", fmt.Sprintf("server: {name: relay-%d, ", i), 1)
		for _, c := range change {
			config = c(config)
		}
		f.relays = append(f.relays, prepare(t, config))
	}
	for _, r := range f.relays { // none is ready without the others
		r.launch(t)
	}
	for _, r := range f.relays {
		r.ready(t)
	}
	f.balanceLoad(t)
	return f
}

func (f *embeddedFleet) signal(t *testing.T, i int, s os.Signal) {
	t.Helper()
	if err := f.relays[i].cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// whole waits until every relay is in the cluster with all of its data, and has no spill.
func (f *embeddedFleet) whole(t *testing.T) {
	t.Helper()
	var st embedded.ClusterStatus
	eventually(t, "the cluster is whole", func() bool {
		out, _, code := f.relays[0].ask(t, "cluster", "status", "-o", "json")
		if code != 0 || json.Unmarshal([]byte(out), &st) != nil {
			return false
		}
		for _, r := range st.Relays {
			if !r.Online || !r.Complete {
				return false
			}
		}
		for _, r := range f.relays {
			if r.metric(t, "postwire_journal_spilled") != "0" {
				return false
			}
		}
		return len(st.Relays) == len(f.relays)
	})
}

// isReady reports whether a relay is ready now.
func (e endpoint) isReady() bool {
	resp, err := http.Get("http://" + e.admin + "/readyz")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// TestEmbeddedCluster breaks three relays with an embedded cluster, one after the
// other, while each webhook is posted to two relays at the same moment. The relays that
// are left accept every post, nothing acknowledged is missing, no event is stored twice,
// and the order of each profile holds, except where a relay hangs: its spill is cut off.
func TestEmbeddedCluster(t *testing.T) {
	f := newEmbeddedFleet(t, 3)
	pause := pick(2*time.Second, 15*time.Second) // how long a fault lasts is part of it
	each := func(break1 func(t *testing.T, i int)) func(t *testing.T) {
		return func(t *testing.T) {
			for i := range f.relays {
				break1(t, i)
				f.relays[i].ready(t)
				f.whole(t)
			}
		}
	}
	faults := []fault{
		{name: "each relay is killed, with its server", bring: each(func(t *testing.T, i int) {
			f.relays[i].kill(t)
			time.Sleep(pause)
			f.relays[i].launch(t)
		})},
		{name: "each relay hangs, with its server", loose: true, bring: each(func(t *testing.T, i int) {
			f.signal(t, i, syscall.SIGSTOP)
			time.Sleep(pause + 3*time.Second)
			f.signal(t, i, syscall.SIGCONT)
			// The load balancer may still wait for this relay, and must find the next one.
			time.Sleep(f.timeout)
		})},
		{name: "all relays are restarted, one by one", bring: each(func(t *testing.T, i int) {
			if err := f.relays[i].stop(t); err != nil {
				t.Errorf("stopping: %v", err)
			}
			f.relays[i].launch(t)
		})},
		{name: "a relay loses its disk", bring: func(t *testing.T) {
			const lost = 1
			f.relays[lost].kill(t)
			if err := os.RemoveAll(f.dirs[lost]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause)
			for _, i := range []int{0, 2} {
				if !f.relays[i].isReady() {
					t.Errorf("relay %d is not ready while relay %d has no disk", i, lost)
				}
			}
			f.relays[lost].launch(t)
			f.relays[lost].ready(t)
		}},
		{name: "all relays are killed at once", loose: true, everybody: true, bring: func(t *testing.T) {
			for _, r := range f.relays {
				r.kill(t)
			}
			for _, r := range f.relays {
				r.launch(t)
			}
			for _, r := range f.relays {
				r.ready(t)
			}
		}},
	}
	trial := newTrial(f.fleet, tableEmbedded, func(*testing.T) {}, func(t *testing.T, acked map[string]bool, _ time.Duration) {
		eventually(t, fmt.Sprint(len(acked), " events are stored"), func() bool { // a relay that has just started counts a moment later
			return f.relays[0].metric(t, "postwire_journal_events") == fmt.Sprint(len(acked))
		})
	})
	for _, fault := range faults {
		trial.run(t, fault)
	}
	trial.end(t)
}

// TestEmbeddedClusterShrinks removes one of four relays under load. The relay accepts no
// events from then on, nothing acknowledged is missing, and the remaining three relays have
// the journal. A fourth relay less is refused.
func TestEmbeddedClusterShrinks(t *testing.T) {
	f := newEmbeddedFleet(t, 4)
	l := startLoad(t, f.front, 6, 30*time.Millisecond, func(l *load) { l.twins = true })
	l.more(t, 100)
	removed := f.relays[3]
	if out := f.relays[0].refuses(t, "cluster", "remove", "relay-3"); !strings.Contains(out, "send the command to the admin port of relay-3") {
		t.Errorf("another relay removes a relay that runs: %s", out)
	}
	if out := removed.must(t, nil, "cluster", "remove", "relay-3"); !strings.Contains(out, "relay-3 is removed from the cluster") {
		t.Errorf("the removal: %s", out)
	}
	if removed.isReady() {
		t.Error("a removed relay is ready")
	}
	l.more(t, 100)
	if err := removed.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	l.more(t, 100)
	var st embedded.ClusterStatus
	eventually(t, "three relays have all replicas", func() bool {
		f.relays[0].must(t, &st, "cluster", "status")
		for _, r := range st.Relays {
			if !r.Replica || !r.Complete {
				return false
			}
		}
		return len(st.Relays) == 3 && st.Quorum == 2
	})
	l.stop()
	f.relays = f.relays[:3]
	f.calm(t)
	if l.posted != len(l.acked) {
		t.Errorf("%d of %d posts were refused", l.posted-len(l.acked), l.posted)
	}
	nats, kafka := f.arrived(t, l.acked)
	check(t, "JetStream", l.acked, nats, true)
	check(t, "Kafka", l.acked, kafka, false)
	if out := f.relays[2].refuses(t, "cluster", "remove", "relay-2"); !strings.Contains(out, "only 2 relays would remain") {
		t.Errorf("one of three relays is removed: %s", out)
	}
	for i, r := range f.relays {
		if !r.isReady() {
			t.Errorf("relay %d is not ready after a refused removal", i)
		}
	}
}

// refuses runs a command that must fail, and returns its message.
func (r *postwire) refuses(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := r.ask(t, args...)
	if code == 0 {
		t.Errorf("%v succeeded: %s", args, out)
	}
	return errs
}

// TestEmbeddedClusterWithoutQuorum: a relay that is left alone stays ready and spills. If it
// is restarted alone, it accepts events, too, but is not ready: a rolling restart must not
// go on. With the other relays back, all events arrive.
func TestEmbeddedClusterWithoutQuorum(t *testing.T) {
	f := newEmbeddedFleet(t, 3)
	left := f.relays[0]
	l := startLoad(t, left.endpoint, 6, 30*time.Millisecond)
	l.more(t, 100)
	f.relays[1].kill(t)
	f.relays[2].kill(t)
	eventually(t, "events are spilled", func() bool { return left.metric(t, "postwire_journal_spilled") > "0" })
	l.more(t, 300)
	if !left.isReady() {
		t.Error("the relay that is left is not ready")
	}
	if l.stop(); l.posted != len(l.acked) {
		t.Errorf("%d of %d posts were refused", l.posted-len(l.acked), l.posted)
	}
	left.kill(t)
	left.launch(t)
	eventually(t, "the relay accepts events alone", func() bool {
		_, err := left.post(upload(9, 0))
		return err == nil
	})
	if left.isReady() {
		t.Error("a relay without its peers is ready after a restart")
	}
	f.relays[1].launch(t)
	f.relays[2].launch(t)
	f.calm(t)
	acked := maps.Clone(l.acked)
	acked[id(9, 0)] = true
	nats, kafka := f.arrived(t, acked)
	check(t, "JetStream", acked, nats, true)
	check(t, "Kafka", acked, kafka, false)
}

// TestEmbeddedSingleRelay: one relay with an embedded journal keeps its events over a
// restart, and a cluster on its store is refused before the server could delete the events.
func TestEmbeddedSingleRelay(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	peers := []string{natstest.FreeAddr(t), natstest.FreeAddr(t), natstest.FreeAddr(t)}
	config := func(replicas, peers string) string {
		return strings.Replace(w.change(t, "journal: {", fmt.Sprintf("journal: {engine: jetstream, max_bytes: 256MiB, jetstream: {replicas: %s, embedded: {peers: [%s], listen: %q, dir: %q, secret: a-shared-secret-of-the-relays}}, spill: {dir: %q}, ",
			replicas, peers, natstest.FreeAddr(t), filepath.Join(dir, "cluster"), filepath.Join(dir, "spill"))), "server: {", "server: {name: relay-0, ", 1)
	}
	r := start(t, config("1", peers[0]))
	l := startLoad(t, r.endpoint, 6, 0)
	l.more(t, 300)
	r.kill(t)
	r.start(t)
	l.more(t, 300)
	w.settle(t, r.endpoint, l, "one relay with an embedded journal, `kill -9`")
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if err := os.WriteFile(r.config, []byte(config("3", strings.Join(peers, ", "))), 0o600); err != nil {
		t.Fatal(err)
	}
	r.launch(t)
	if err := <-r.exited; err == nil {
		t.Error("a cluster starts on the store of a single relay")
	}
	if !strings.Contains(r.log.String(), "was written by a single relay without a cluster") {
		t.Errorf("the reason is not logged: %s", r.log.String())
	}
}

// TestHostileFloodOfAnEmbeddedCluster posts large bodies to the relays of an embedded cluster,
// faster than the disks store them. Each process, with its server, stays below its limit.
func TestHostileFloodOfAnEmbeddedCluster(t *testing.T) {
	t.Setenv("GOMEMLIMIT", strconv.Itoa(memoryLimit/10*8)) // as the chart sets it
	f := newEmbeddedFleet(t, 3, func(config string) string {
		return strings.Replace(config, "max_bytes: 256MiB", "max_bytes: 4GiB", 1)
	})
	const rate = 350 // a second
	filler := strings.Repeat("x", 1_000_000)
	var stored atomic.Int64
	ctx, stop := context.WithTimeout(t.Context(), pick(6*time.Second, 30*time.Second))
	defer stop()
	attackers(ctx, 128, rate, func(_ context.Context, i int) {
		if _, err := f.relays[i%len(f.relays)].post(captioned(i, int(stored.Load()), filler)); err == nil {
			stored.Add(1)
		}
	})
	if stored.Load() == 0 {
		t.Error("no event is stored")
	}
	for i, r := range f.relays {
		peak := (&besieged{postwire: r}).status(t, "VmHWM")
		t.Logf("relay %d takes %d MiB at most, %d events are stored", i, peak>>20, stored.Load())
		if peak > memoryLimit {
			t.Errorf("relay %d took %d MiB", i, peak>>20)
		}
	}
}
