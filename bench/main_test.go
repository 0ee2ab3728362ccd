// Package bench measures the relay against what the machine allows, and beside
// what a user would write instead. Figures are ratios within one run: machines
// are noisy, and differ.
//
//	go test ./bench -run '^$' -bench . -benchtime 1x                    short forms
//	go test ./bench -run '^$' -bench . -benchtime 1x -long -table FILE  as docs/performance.md tells
//
// Another relay is put under the same load with -target, the URL that takes
// webhooks, and -start, the command that starts it. The command finds the
// brokers to deliver to in the environment: BENCH_NATS (a URL; the stream BENCH
// takes all subjects below bench) and BENCH_KAFKA (host:port; the topic bench).
package bench

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"testing"

	"github.com/postwire/postwire/internal/figures"
	"github.com/postwire/postwire/internal/natstest"
)

var (
	long   = flag.Bool("long", false, "as many events, and as long, as the goals ask for")
	table  = flag.String("table", "", "page into which the figures are written")
	target = flag.String("target", "", "URL of another relay, to be measured beside this one")
	start  = flag.String("start", "", "command that starts the other relay")

	profiles = flag.String("profiles", "", "folder into which each relay writes a CPU profile")
)

// The tables there are, and their heads.
const (
	tableAccept  = "accept"
	tableThrough = "through"
	tableHighest = "highest"
	tableDrain   = "drain"
	tableCost    = "cost"
	tableGrowth  = "growth"
)

var results = figures.NewBook(map[string]string{
	tableAccept:  "| connections | who | accepts/s | of bare | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|---|",
	tableThrough: "| to | webhooks/s | p50 | p99 | p99.9 |\n|---|---|---|---|---|",
	tableHighest: "| to | highest webhooks/s with a lag that does not grow | held for |\n|---|---|---|",
	tableDrain:   "| to | events | drained, events/s | plain producer, events/s | ratio |\n|---|---|---|---|---|",
	tableCost:    "| what | cost |\n|---|---|",
	tableGrowth:  "| what grows | to | accepts/s | p50 | p99 | RSS |\n|---|---|---|---|---|---|",
})

func TestMain(m *testing.M) { os.Exit(measure(m)) }

func measure(m *testing.M) int {
	natstest.Serve()
	if role := os.Getenv(roleVar); role != "" {
		fmt.Fprintln(os.Stderr, play(role))
		return 1
	}
	flag.Parse()
	// The load must not wait for its own garbage collector.
	debug.SetGCPercent(400)
	code := m.Run()
	defer func() { _ = os.RemoveAll(build.dir) }() // "" removes nothing
	if code == 0 && *table != "" {
		versions, err := about()
		if err == nil {
			err = results.Write(*table, versions)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// pick is the short or the long form of a number.
func pick[T any](short, whole T) T {
	if *long {
		return whole
	}
	return short
}
