// Package test runs the real binary against real brokers, and breaks things.
// What cannot be done to a machine, such as a power loss or a clock that jumps,
// is done to the same assembly inside the test.
//
//	go test ./test                    short forms
//	go test ./test -long              as long as it takes
//	go test ./test -long -table FILE  and the figures into a page
//
// The figures of the hostile suite go into a page of their own:
//
//	go test ./test -run '^TestHostile' -long -hostile-table FILE
package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postwire/postwire/internal/natstest"
)

var (
	long  = flag.Bool("long", false, "run the faults in their long form, and hold latencies against their limits")
	table = flag.String("table", "", "page into which the figures are written")

	hostileTable = flag.String("hostile-table", "", "page into which the figures of the hostile suite are written")
)

// program is the binary under test, built once.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	natstest.Serve()
	flag.Parse()
	dir, err := os.MkdirTemp("", "postwire-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "postwire")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/postwire").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if code == 0 && *table != "" {
		if err := results.Write(*table, kafkaInUse()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if code == 0 && *hostileTable != "" {
		if err := hostileResults.Write(*hostileTable, "with the default configuration and GOMEMLIMIT of 0.9 GiB; attackers, honest sender and relay on one machine"); err != nil {
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
