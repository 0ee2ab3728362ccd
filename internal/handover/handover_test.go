//go:build unix

package handover

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

func mustMakeDir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

// dial connects as Take does.
func dial(t *testing.T, dir string) net.Conn {
	t.Helper()
	path, folder, err := socketPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The successor gets the sockets. A connection that was made before the successor accepts, and
// after the offering process has closed its listener, is not lost.
func TestHandover(t *testing.T) {
	for name, dir := range map[string]string{"short": t.TempDir(), "longer than the path of a socket may be": filepath.Join(t.TempDir(), strings.Repeat("x", 120))} {
		t.Run(name, func(t *testing.T) {
			mustMakeDir(t, dir)
			if inherited, err := Take(t.Context(), dir); inherited != nil || err != nil {
				t.Fatalf("without an offer: %v, %v", inherited, err)
			}
			offer, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			first, second := listen(t), listen(t)
			served := make(chan error, 1)
			go func() {
				served <- offer.Serve(t.Context(), []Listener{{"a", ":1", first}, {"b", ":2", second}})
			}()
			if err := dial(t, dir).Close(); err != nil { // a stranger that asks for nothing
				t.Fatal(err)
			}
			inherited, err := Take(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			defer inherited.Close()
			if err := <-served; err != nil {
				t.Fatalf("Serve = %v", err)
			}
			if l := inherited.Listener("a", ":other"); l != nil {
				t.Error("a listener of another address was given")
			}
			l := inherited.Listener("a", ":1")
			if l == nil || l.Addr().String() != first.Addr().String() {
				t.Fatalf("the listener is %v", l)
			}
			defer l.Close()
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatalf("between the two processes: %v", err)
			}
			defer client.Close()
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}

			waited := make(chan error, 1)
			go func() { waited <- inherited.Wait(t.Context()) }()
			select {
			case err := <-waited:
				t.Fatalf("Wait returned before the other process stopped: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			if err := offer.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-waited; err != nil {
				t.Errorf("Wait = %v", err)
			}
			if again, err := Take(t.Context(), dir); again != nil || err != nil {
				t.Errorf("after the end: %v, %v", again, err)
			}
			next, err := Open(dir) // the socket of the process that has stopped is in the folder
			if err != nil {
				t.Fatal(err)
			}
			if err := next.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	offer, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer offer.Close()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- offer.Serve(ctx, nil) }()
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v", err)
	}
}

// A process that does not stop is waited for until the context ends.
func TestWaitEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	offer, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer offer.Close()
	go func() { _ = offer.Serve(t.Context(), nil) }()
	inherited, err := Take(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := inherited.Wait(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) {
		t.Errorf("Wait = %v", err)
	}
}
