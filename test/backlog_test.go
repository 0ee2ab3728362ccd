package test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBacklog lets events pile up while both brokers are away, kills the
// relay, and lets the brokers come back: memory stays flat, a start takes
// seconds, and new events are accepted meanwhile.
func TestBacklog(t *testing.T) {
	w := newWorld(t)
	for _, way := range []*proxy{w.toNATS, w.toKafka} {
		way.set(t, weather{shut: true})
	}
	r := start(t, w.config)
	l := startLoad(t, r.endpoint, 64, 0)
	row := func(what string, rate float64, remark string) {
		t.Helper()
		perSecond := ""
		if rate > 0 {
			perSecond = fmt.Sprintf("%.0f", rate)
		}
		results.Add(t, tableBacklog, fmt.Sprintf("| %s | %d MiB | %s | %s |", what, r.rss(t)>>20, perSecond, remark))
	}
	row("0", 0, "")
	var alone float64
	for _, n := range []int{pick(2_000, 100_000), pick(20_000, 1_000_000)} {
		alone = l.rate(t, func() { l.more(t, n-l.acks()) })
		row(fmt.Sprint(n), alone, "NATS and Kafka unavailable")
	}
	r.kill(t)
	began := time.Now()
	r.start(t)
	took := time.Since(began)
	full := l.acks()
	row(fmt.Sprint(full), 0, fmt.Sprintf("restarted in %s after `kill -9`", ms(took)))
	for _, way := range []*proxy{w.toNATS, w.toKafka} {
		way.set(t, weather{})
	}
	began = time.Now()
	draining := l.rate(t, func() { l.more(t, full/4) })
	row(fmt.Sprint(full), draining, fmt.Sprintf("during the drain: %.2f of the accept rate without a drain", draining/alone))
	l.stop()
	drained := map[string]time.Duration{}
	for _, sink := range []string{"nats", "kafka"} {
		eventually(t, sink+" has everything", func() bool {
			return r.metric(t, `postwire_sink_lag_events{sink="`+sink+`"}`) == "0"
		})
		drained[sink] = time.Since(began)
	}
	row("0", 0, fmt.Sprintf("drained: at least %.0f events/s to NATS, %.0f to Kafka", float64(l.acks())/drained["nats"].Seconds(), float64(l.acks())/drained["kafka"].Seconds()))
	w.settle(t, r.endpoint, l, fmt.Sprintf("a backlog of %d, `kill -9` on it", full))
}

// rate returns how many acknowledgements a second came while f ran.
func (l *load) rate(t *testing.T, f func()) float64 {
	t.Helper()
	before, began := l.acks(), time.Now()
	f()
	return float64(l.acks()-before) / time.Since(began).Seconds()
}

// rss is the memory that the process holds, in bytes.
func (r *postwire) rss(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("the process tells no VmRSS")
	return 0
}
