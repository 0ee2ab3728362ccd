package test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/internal/sleep"
)

// maxRepeats is the documented bound of what one fault sends to Kafka twice: the events in
// flight, at most a batch, for each of the owners that the fault ends.
const maxRepeats = 2 * 512

// TestNemesis breaks a fleet of three relays on three servers in the ways that TestCluster
// does not: processes and quorums that hang, slow ways, an administrator that deletes what
// the relays need, and a clock that jumps. The conditions are those of TestCluster.
func TestNemesis(t *testing.T) {
	f := newFleet(t)
	f.timeout = 4 * time.Second
	pause := pick(500*time.Millisecond, 15*time.Second) // how long a fault lasts is part of it
	slow := weather{latency: 200 * time.Millisecond, rate: 64 << 10}
	js := f.cluster.connect(t)
	// again deletes something of the journal, with a while in which the relays notice.
	again := func(do func(t *testing.T, s jetstream.Stream)) func(t *testing.T) {
		return func(t *testing.T) {
			for range pick(2, 5) {
				f.admin(t, js, do)
				time.Sleep(pause)
			}
		}
	}
	const routes, ways, consumers, atRest = "the routes of the stream's leader are slow (200 ms, 64 KiB/s)", "the ways of a relay to the servers are slow (200 ms, 64 KiB/s)",
		"an administrator deletes the consumers", "an administrator deletes the stream, with nothing pending"
	atLength := []string{routes, ways, consumers, atRest} // only in the long form
	faults := []fault{
		{name: "a relay hangs", bring: func(t *testing.T) {
			hung := f.holder(t, "nats")
			f.relays[hung].signal(t, syscall.SIGSTOP)
			f.takenOver(t, "nats", hung)
			time.Sleep(pause)
			f.relays[hung].signal(t, syscall.SIGCONT)
			time.Sleep(f.timeout) // the load balancer may still wait for this relay
		}},
		// The relays at a server that hangs are cut off with it, as TestCluster explains.
		{name: "the server that leads the stream hangs", loose: true, bring: func(t *testing.T) {
			leader := f.cluster.leader(t)
			f.cluster.nodes[leader].Pause(t)
			f.cluster.ledBy(t, js, func(name string) bool { return name != "" && name != f.cluster.nodes[leader].Name })
			time.Sleep(pause)
			f.cluster.nodes[leader].Resume(t)
		}},
		{name: "two of three servers hang", loose: true, bring: func(t *testing.T) {
			leader := f.cluster.leader(t)
			hung := []*natstest.Node{f.cluster.nodes[leader], f.cluster.nodes[(leader+1)%3]}
			for _, n := range hung {
				n.Pause(t)
			}
			eventually(t, "events are kept", func() bool {
				for _, r := range f.relays {
					if r.metric(t, "postwire_journal_spilled") > "0" {
						return true
					}
				}
				return false
			})
			time.Sleep(pause)
			for _, n := range hung {
				n.Resume(t)
			}
		}},
		{name: ways, bring: func(t *testing.T) {
			f.slow(t, f.ways[f.holder(t, "kafka")], slow, pick(2*time.Second, 18*time.Second))
		}},
		{name: routes, bring: func(t *testing.T) {
			leader := f.cluster.leader(t)
			var slowed []*proxy
			for pair, p := range f.cluster.routes {
				if pair[0] == leader || pair[1] == leader {
					slowed = append(slowed, p)
				}
			}
			f.slow(t, slowed, slow, pick(2*time.Second, 18*time.Second))
		}},
		{name: consumers, bring: again(func(t *testing.T, s jetstream.Stream) {
			for name := range s.ConsumerNames(t.Context()).Name() {
				if err := s.DeleteConsumer(t.Context(), name); err != nil {
					t.Logf("deleting consumer %s: %v", name, err) // a relay was faster
				}
			}
		})},
		{name: "an administrator deletes the positions of the sinks", bring: again(func(t *testing.T, s jetstream.Stream) {
			if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("postwire.cursor.>")); err != nil {
				t.Error(err)
			}
		})},
		{name: atRest, rest: true, bring: func(t *testing.T) {
			f.admin(t, js, func(t *testing.T, _ jetstream.Stream) {
				if err := js.DeleteStream(t.Context(), "postwire"); err != nil {
					t.Error(err)
				}
			})
			for _, r := range f.relays {
				r.ready(t)
			}
		}},
	}
	if natstest.ClockShifts {
		faults = append(faults, fault{name: "the clock of the server that leads the stream jumps 25 h ahead, and back", bring: func(t *testing.T) {
			f.jump(t, js, 25*time.Hour+50*time.Minute, pause)
		}})
	}
	trial := newTrial(f, tableNemesis, f.cluster.whole, f.storedOnce(10*time.Second))
	for _, fault := range faults {
		if !*long && slices.Contains(atLength, fault.name) {
			continue
		}
		before := trial.before
		trial.run(t, fault)
		if n := trial.before[1] - before[1]; n > maxRepeats {
			t.Errorf("%s: %d events were sent to Kafka twice", fault.name, n)
		}
	}
	trial.end(t)
}

func (r *postwire) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// takenOver waits until another relay than one that hangs delivers to a sink, by the word of
// a third one.
func (f *fleet) takenOver(t *testing.T, sink string, hung int) {
	t.Helper()
	eventually(t, "another relay delivers to "+sink, func() bool {
		by := f.holderBy(f.relays[(hung+1)%3], sink)
		return by >= 0 && by != hung
	})
}

// admin does something to the stream of the journal, and repeats it until the stream is there.
func (f *fleet) admin(t *testing.T, js jetstream.JetStream, do func(t *testing.T, s jetstream.Stream)) {
	t.Helper()
	var s jetstream.Stream
	eventually(t, "the stream is there", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var err error
		s, err = js.Stream(ctx, "postwire")
		return err == nil
	})
	do(t, s)
}

// slow makes ways slow for a while.
func (f *fleet) slow(t *testing.T, ways []*proxy, w weather, span time.Duration) {
	t.Helper()
	for _, p := range ways {
		p.set(t, w)
	}
	time.Sleep(span)
	for _, p := range ways {
		p.set(t, weather{})
	}
}

// ledBy waits until the stream has a leader as wanted, and returns its information.
func (c *cluster) ledBy(t *testing.T, js jetstream.JetStream, wanted func(name string) bool) (info *jetstream.StreamInfo) {
	t.Helper()
	eventually(t, "the stream has the wanted leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, "postwire")
		if err != nil {
			return false
		}
		info = s.CachedInfo()
		return info.Cluster != nil && wanted(info.Cluster.Leader)
	})
	return info
}

// jump sets the clock of the stream's leader ahead, and back. The leader expires the identity
// keys by its own clock: with two hours less than the window and the slack, a webhook that
// was posted before stays a duplicate.
func (f *fleet) jump(t *testing.T, js jetstream.JetStream, ahead, pause time.Duration) {
	t.Helper()
	old := upload(99_999, 0)
	if status, err := f.front.post(old); err != nil || status != "accepted" {
		t.Fatalf("the first post: %s, %v", status, err)
	}
	leader := f.cluster.leader(t)
	set := func(ahead time.Duration) {
		f.cluster.nodes[leader].ShiftClock(t, ahead)
		eventually(t, fmt.Sprintf("the clock of the leader is %v ahead", ahead), func() bool {
			info := f.cluster.ledBy(t, js, func(string) bool { return true })
			return info.Cluster.Leader != f.cluster.nodes[leader].Name || (time.Until(info.TimeStamp)-ahead).Abs() < time.Minute
		})
	}
	set(ahead)
	time.Sleep(pause + 2*time.Second) // the server removes what has expired
	if status, err := f.front.post(old); err != nil || status != "duplicate" {
		t.Errorf("with the clock %v ahead, the post was %s, %v", ahead, status, err)
	}
	set(0)
	time.Sleep(pause)
	if status, err := f.front.post(old); err != nil || status != "duplicate" {
		t.Errorf("with the clock right again, the post was %s, %v", status, err)
	}
	for _, r := range f.relays { // the clock of a server does not make a relay unready
		resp, err := http.Get("http://" + r.admin + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("a relay is not ready: %s", resp.Status)
		}
	}
}

// TestNemesisMigration migrates a journal with undelivered events into a stream on three
// servers, while one server after another is killed, hangs and comes back. Each event
// arrives once.
func TestNemesisMigration(t *testing.T) {
	to, cluster := newReceivers(t), newCluster(t)
	to.down.Store(true)
	dir := filepath.Join(t.TempDir(), "journal")
	config := func(engine string) string {
		return migrationConfig(engine, dir, natstest.URLs(cluster.nodes), 3, to.URL)
	}
	r := start(t, config("local"))
	if status, err := r.post(upload(0, 0)); err != nil || status != "accepted" {
		t.Fatal(status, err)
	}
	eventually(t, "the first sink has the event", func() bool { return to.of(t, "/first") == 1 })
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}
	bulk := pick(4000, 60_000)
	fillJournal(t, dir, bulk, "first", "second")
	ctx, cancel := context.WithCancel(t.Context())
	broken := make(chan int)
	go func() {
		n := 0
		defer func() { broken <- n }()
		for ; ctx.Err() == nil && n < pick(2, 6); n++ {
			node := cluster.nodes[n%3]
			if n%2 == 0 {
				node.Kill(t)
				time.Sleep(300 * time.Millisecond)
				node.Start(t)
			} else {
				node.Pause(t)
				time.Sleep(time.Second)
				node.Resume(t)
			}
			_ = sleep.For(ctx, 8*time.Second) // the servers elect a leader
		}
	}()
	tries := 0
	for ; ; tries++ {
		cmd := exec.CommandContext(t.Context(), program, "journal", "migrate", "--from", "local", "--to", "jetstream", "-c", r.config)
		cmd.Env = os.Environ()
		for name, value := range r.env() {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		out, err := cmd.CombinedOutput()
		if err == nil {
			break
		}
		if t.Logf("the migration ended: %s", out); tries == 20 || strings.Contains(string(out), "another journal") {
			cancel()
			<-broken
			t.Fatal("the migration does not end")
		}
	}
	cancel()
	n := <-broken
	cluster.whole(t)
	to.down.Store(false)
	if err := os.WriteFile(r.config, []byte(config("jetstream")), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	eventually(t, "all events have arrived", func() bool {
		return to.of(t, "/first") >= bulk+1 && to.of(t, "/second") >= bulk+1
	})
	if first, second := to.of(t, "/first"), to.of(t, "/second"); first != bulk+1 || second != bulk+1 {
		t.Errorf("%d and %d events have arrived, want %d each", first, second, bulk+1)
	}
	if status, err := r.post(upload(0, 0)); err != nil || status != "duplicate" {
		t.Errorf("after the migration, the first event is %s, %v", status, err)
	}
	t.Logf("%d events were migrated in %d runs, with %d faults", bulk+1, tries+1, n)
}
