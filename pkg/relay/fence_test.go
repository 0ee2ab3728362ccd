package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/postwire/postwire/pkg/journal"
)

// A delivery that goes on after the end of the ownership writes nothing. A connection without
// a delivery may write.
func TestFence(t *testing.T) {
	owner := true
	f := fence{owns: func() bool { return owner }}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	written := make(chan string, 8)
	go func() {
		defer close(written)
		for b := make([]byte, 8); ; {
			n, err := theirs.Read(b)
			if err != nil {
				return
			}
			written <- string(b[:n])
		}
	}()
	conn, err := f.dial(func(context.Context, string, string) (net.Conn, error) { return ours, nil })(t.Context(), "tcp", "broker")
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) error {
		_, err := io.WriteString(conn, text)
		return err
	}
	for _, step := range []struct {
		owner, flying bool
		text          string
		refused       bool
	}{
		{true, true, "a", false},
		{false, true, "b", true},
		{false, false, "c", false},
		{true, true, "d", false},
	} {
		owner = step.owner
		f.flights.Store(0)
		if step.flying {
			f.flights.Store(1)
		}
		if err := write(step.text); errors.Is(err, journal.ErrOwnershipLost) != step.refused || !step.refused && err != nil {
			t.Errorf("%s: %v", step.text, err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	var all string
	for text := range written {
		all += text
	}
	if all != "acd" {
		t.Errorf("the broker got %q", all)
	}
}
