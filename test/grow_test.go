package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"
)

// growing is a fleet that begins with one relay with the engine local, and becomes an
// embedded cluster.
type growing struct {
	*embeddedFleet
	alone bool     // the first relay has an embedded server, instead of the engine local
	peers []string // of all relays that there will be
	home  []string // folders of the relays
}

func newGrowing(t *testing.T, most int, alone bool) *growing {
	t.Helper()
	g := &growing{alone: alone, embeddedFleet: &embeddedFleet{fleet: &fleet{world: newWorld(t), timeout: 4 * time.Second}}}
	for range most {
		g.peers = append(g.peers, natstest.FreeAddr(t))
		g.home = append(g.home, t.TempDir())
	}
	// The founder is known by its host.
	g.peers[0] = strings.Replace(g.peers[0], "127.0.0.1", "localhost", 1)
	g.relays = append(g.relays, prepare(t, ""))
	g.resize(t, 0, 1)
	g.relays[0].start(t)
	g.balanceLoad(t)
	return g
}

// config is the configuration of a relay, in a fleet of n.
func (g *growing) config(t *testing.T, i, n int) string {
	t.Helper()
	config := strings.Replace(g.change(t, "server: {", fmt.Sprintf("server: {name: relay-%d, ", i)), filepath.Dir(journalOf(g.world.config)), g.home[i], 1)
	if n == 1 && !g.alone {
		return config
	}
	_, port, _ := strings.Cut(g.peers[i], ":")
	_, webhooks, _ := strings.Cut(g.relays[0].addr, ":")
	return strings.Replace(config, "journal: {", fmt.Sprintf("journal: {engine: jetstream, max_bytes: 256MiB, jetstream: {replicas: %d, embedded: {peers: [%s], listen: %q, dir: %q, secret: a-shared-secret-of-the-relays, founder: {relay: relay-0, url: \"http://localhost:%s\"}}}, spill: {dir: %q}, ",
		min(n, 3), strings.Join(g.peers[:n], ", "), "127.0.0.1:"+port, filepath.Join(g.home[i], "cluster"), webhooks, filepath.Join(g.home[i], "spill")), 1)
}

// resize writes the configuration of a relay for a fleet of n.
func (g *growing) resize(t *testing.T, i, n int) {
	t.Helper()
	if err := os.WriteFile(g.relays[i].config, []byte(g.config(t, i, n)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// add launches relays until there are n.
func (g *growing) add(t *testing.T, n int) {
	t.Helper()
	for i := len(g.relays); i < n; i++ {
		r := prepare(t, g.config(t, i, n))
		r.launch(t)
		g.mu.Lock()
		g.relays = append(g.relays, r)
		g.mu.Unlock()
	}
}

// readiness is the answer of /readyz.
func (e endpoint) readiness() string {
	resp, err := http.Get("http://" + e.admin + "/readyz")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return string(text)
}

// TestGrowFromOneRelay makes one relay with many undelivered events an embedded cluster of
// three, and of five, in the order in which Kubernetes replaces pods. Nothing acknowledged is
// missing, and the order of each profile holds.
func TestGrowFromOneRelay(t *testing.T) {
	for _, c := range []struct {
		name  string
		alone bool
		kills int
	}{
		{"from the engine local", false, 0},
		{"from the engine local, killed on the way", false, 3},
		{"from an embedded server without a cluster, killed on the way", true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.kills < 3 && !*long {
				t.Skip("the row with three kills does more; the others run in the long form")
			}
			grow(t, c.alone, c.kills)
		})
	}
}

func grow(t *testing.T, alone bool, kills int) {
	began := time.Now()
	step := func(what string) { t.Logf("%5.1fs %s", time.Since(began).Seconds(), what) }
	g := newGrowing(t, 5, alone)
	brokers := []*proxy{g.toNATS, g.toKafka}
	for _, p := range brokers {
		p.set(t, weather{hang: true})
	}
	acked := map[string]bool{}
	base := 0
	begin := func() *load {
		l := startLoad(t, g.front, 10, 5*time.Millisecond, func(l *load) { l.base = base })
		base += 10
		return l
	}
	quiet := func(l *load) {
		t.Helper()
		l.stop()
		for id := range l.acked {
			acked[id] = true
		}
	}

	step("start")
	l := begin()
	l.more(t, pick(2000, 10_000))

	step("stored")
	// New relays pass webhooks on while the old relay has the journal.
	g.add(t, 3)
	for _, r := range g.relays[1:] {
		r.ready(t)
	}
	l.more(t, 100)
	if status, err := g.relays[1].post(upload(999, 0)); err != nil || status != "accepted" {
		t.Errorf("a relay without a journal answers %s, %v", status, err)
	}
	acked[id(999, 0)] = true
	quiet(l)

	step("passed on")
	// Kubernetes replaces the old relay last.
	founder := g.relays[0]
	if err := founder.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	for _, r := range g.relays[1:] {
		if status, err := r.post(upload(998, 0)); err == nil {
			t.Errorf("a relay answers %s while nobody has a journal", status)
		}
	}
	g.resize(t, 0, 3)
	part := regexp.MustCompile(`into the cluster: events, [1-9]`)
	for range kills {
		founder.launch(t)
		eventually(t, "a part of the journal is carried", func() bool { return part.MatchString(founder.readiness()) })
		founder.kill(t)
	}
	founder.launch(t)
	for _, r := range g.relays {
		r.ready(t)
	}
	time.Sleep(pick(0*time.Second, time.Minute)) // a NATS server deletes streams that its cluster does not know after half a minute
	if got := founder.metric(t, "postwire_journal_events"); got != fmt.Sprint(len(acked)) {
		eventually(t, "all events are carried", func() bool { return founder.metric(t, "postwire_journal_events") == fmt.Sprint(len(acked)) })
	}
	step("carried")
	for _, p := range brokers {
		p.set(t, weather{})
	}
	l = begin()
	l.more(t, 100)
	if status, err := g.relays[2].post(upload(999, 0)); err != nil || status != "duplicate" {
		t.Errorf("a repeat of a carried event: %s, %v", status, err)
	}
	quiet(l)
	g.whole(t)

	step("used")
	for _, r := range g.relays {
		r.kill(t)
	}
	for _, r := range g.relays {
		r.launch(t)
	}
	for _, r := range g.relays {
		r.ready(t)
	}
	g.whole(t)

	step("restarted")
	l = begin()
	g.add(t, 5)
	for _, r := range g.relays[3:] {
		r.ready(t)
	}
	for i := range 3 {
		if err := g.relays[i].stop(t); err != nil {
			t.Errorf("stopping: %v", err)
		}
		g.resize(t, i, 5)
		g.relays[i].launch(t)
		g.relays[i].ready(t)
		g.whole(t)
	}
	step("five")
	l.more(t, 100)
	quiet(l)
	g.calm(t)
	step("calm")
	nats, kafka := g.arrived(t, acked)
	check(t, "JetStream", acked, nats, true)
	check(t, "Kafka", acked, kafka, false)
	if lost := slices.ContainsFunc(g.relays, func(r *postwire) bool { return strings.Contains(r.log.String(), "are lost") }); lost {
		t.Error("a relay logs a loss")
	}
}
