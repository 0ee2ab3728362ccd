package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/app"
)

// TestAllocations holds how much an accepted event may allocate, from the
// request to the answer: a count that hardly depends on the machine. A bare
// handler of net/http makes 25 of them.
func TestAllocations(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates, too")
	}
	const most = 60
	addr := natstest.FreeAddr(t)
	plan, err := app.Load(configure(t, addr, natstest.FreeAddr(t), filepath.Join(t.TempDir(), "journal"), away, 1))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a, err := app.New(ctx, plan, app.LogTo(zap.NewNop()))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	// The client must not allocate: it writes what is made, and looks only
	// for the end of the answer.
	const connections, each = 32, 500
	var clients [connections]*allocationless
	for c := range clients {
		if clients[c], err = newAllocationless(addr, c*each, each); err != nil {
			t.Fatal(err)
		}
		defer clients[c].conn.Close()
		if err := clients[c].post(); err != nil { // a connection's own
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() {
			for len(c.requests) > 0 {
				if err := c.post(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	runtime.ReadMemStats(&after)
	got := float64(after.Mallocs-before.Mallocs) / (connections * (each - 1))
	t.Logf("%.1f allocations and %d bytes an event", got, (after.TotalAlloc-before.TotalAlloc)/(connections*(each-1)))
	if got > most {
		t.Errorf("an accepted event makes %.1f allocations, more than %d", got, most)
	}
}

// allocationless is a connection that posts requests made before.
type allocationless struct {
	conn     net.Conn
	answers  *bufio.Reader
	requests [][]byte
}

func newAllocationless(addr string, from, n int) (*allocationless, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	a := &allocationless{conn: conn, answers: bufio.NewReader(conn)}
	for i := range n {
		s := sender{head: "POST " + hookPath + " HTTP/1.1\r\nHost: " + addr + "\r\nContent-Type: application/json\r\nContent-Length: "}
		a.requests = append(a.requests, s.request(int64(from+i)))
	}
	return a, nil
}

func (a *allocationless) post() error {
	if _, err := a.conn.Write(a.requests[0]); err != nil {
		return err
	}
	a.requests = a.requests[1:]
	line, err := a.answers.ReadSlice('\n')
	if err != nil || !bytes.HasPrefix(line, []byte("HTTP/1.1 202 ")) {
		return fmt.Errorf("answered %q, %w", line, err)
	}
	for err == nil && line[0] != '{' {
		line, err = a.answers.ReadSlice('\n')
	}
	return err
}
