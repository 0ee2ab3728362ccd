package bench

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// keysMore is how many identity keys each event of a large journal has beside
// its two own: with a million events, five million keys in all.
const keysMore = 3

// BenchmarkCost is what an event costs on each half: on the way in, with a sink
// that takes nothing, and on the way out, with nothing coming in; and what it
// costs to have the relay at all.
func BenchmarkCost(b *testing.B) {
	row := func(what, format string, values ...any) {
		results.Add(b, tableCost, fmt.Sprintf("| %s | %s |", what, fmt.Sprintf(format, values...)))
	}
	var next atomic.Int64
	for b.Loop() {
		p := run(b, wholeway, none("none"))
		closed(b, p.url, 1, 10, &next)
		row("RSS, idle", "%s, of which %s are pages of the program's file, which the kernel takes back when it needs them", mib(p.rss(b)), mib(p.proc(b, "status", "RssFile")<<10))
		n := pick(20_000, 300_000)
		cpu, written, made, began := p.cpu(b), p.written(b), p.allocations(b), time.Now()
		l := closed(b, p.url, 64, n, &next)
		took := time.Since(began)
		perEvent := float64(p.cpu(b)-cpu) / float64(n) / 1000
		bytes := float64(p.written(b)-written) / float64(n)
		row("CPU of an accepted event, 64 connections", "%.1f µs, at %.0f events/s", perEvent, l.perSecond)
		row("allocations of an accepted event, with all that goes on beside", "%.0f", (p.allocations(b)-made)/float64(n))
		row("disk bytes of an accepted event", "%.0f, %.1f times its body", bytes, bytes/float64(len(webhook(1))))
		row("RSS, under that load", "%s", mib(p.rss(b)))
		row("processors busy under that load", "%.2f", perEvent*float64(n)/1e6/took.Seconds())
		p.stop()

		b.StopTimer()
		events := pick(20_000, 1_000_000)
		dir := filepath.Join(b.TempDir(), "journal")
		fill(b, dir, events, keysMore)
		k := startBrokers(b)
		b.StartTimer()
		began = time.Now()
		p = runOn(b, wholeway, none("none")+away, dir, 1)
		row(fmt.Sprintf("start with %d undelivered events and %d keys", events, events*(2+keysMore)), "%s until it is ready", ms(time.Since(began)))
		row("RSS, idle, with those", "%s", mib(p.rss(b)))
		p.stop()
		for _, to := range []string{"nats", "kafka"} {
			began = time.Now()
			p = runOn(b, wholeway, k.sinks(to), dir, 1)
			started, made := p.cpu(b), p.allocations(b)
			until(b, "the backlog is with "+to, func() bool { time.Sleep(50 * time.Millisecond); return p.lag(b, to) == 0 })
			row("CPU of an event delivered to "+to, "%.1f µs, at %.0f events/s", float64(p.cpu(b)-started)/float64(events)/1000, float64(events)/time.Since(began).Seconds())
			row("allocations of an event delivered to "+to, "%.0f", (p.allocations(b)-made)/float64(events))
			row("RSS, while it goes to "+to, "%s at most", mib(p.proc(b, "status", "VmHWM")<<10))
			p.stop()
		}
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
}
