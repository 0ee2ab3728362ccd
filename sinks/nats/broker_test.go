package nats

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cejetstream "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker is a NATS server inside the test.
type broker struct{ *natstest.Broker }

func start(t testing.TB, change ...func(*server.Options)) *broker {
	t.Helper()
	return &broker{natstest.Start(t, change...)}
}

// messages gives what is stored to both readers.
func messages(t testing.TB, all []*nats.Msg) []sinktest.Message {
	t.Helper()
	read := make([]sinktest.Message, len(all))
	for i, m := range all {
		strict, err := readStrict(m)
		if err != nil {
			t.Fatalf("by the specification: %v", err)
		}
		sdk, err := readSDK(m)
		if err != nil {
			t.Fatalf("the SDK's receiver: %v", err)
		}
		read[i] = sinktest.Message{Wire: wire(m), At: m.Subject, Read: map[string]sinktest.ReadEvent{"specification": strict, "SDK": sdk}}
	}
	return read
}

// readSDK reads with the SDK's receiver. That one leaves attributes as they
// are on the wire, percent-encoded, so they are decoded here.
func readSDK(m *nats.Msg) (sinktest.ReadEvent, error) {
	e, err := binding.ToEvent(context.Background(), cejetstream.NewMessage(m))
	if err != nil {
		return sinktest.ReadEvent{}, err
	}
	seen := sinktest.FromSDK(e)
	if cejetstream.NewMessage(m).ReadEncoding() == binding.EncodingBinary {
		for name, value := range seen.Attributes {
			if seen.Attributes[name], err = url.PathUnescape(value); err != nil {
				return seen, err
			}
		}
	}
	return seen, nil
}

// readStrict reads by the letter of the NATS binding.
func readStrict(m *nats.Msg) (sinktest.ReadEvent, error) {
	if types := m.Header["content-type"]; len(types) == 1 && strings.HasPrefix(types[0], "application/cloudevents") {
		if types[0] != "application/cloudevents+json" {
			return sinktest.ReadEvent{}, fmt.Errorf("the format is %q", types[0])
		}
		return sinktest.StrictJSON(m.Data)
	}
	attributes, err := sinktest.Encoded(m.Header)
	if err != nil {
		return sinktest.ReadEvent{}, err
	}
	return sinktest.Strict(attributes, m.Data)
}

func wire(m *nats.Msg) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "subject: %s\n", m.Subject)
	for _, name := range slices.Sorted(maps.Keys(m.Header)) {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(m.Header[name], " | "))
	}
	fmt.Fprintf(&b, "\n%s\n", m.Data)
	return b.String()
}

// listener collects what core NATS hands out.
type listener struct {
	mu   sync.Mutex
	got  []*nats.Msg
	conn *nats.Conn
}

func (b *broker) listen(t *testing.T, subject string) *listener {
	l := &listener{conn: b.Connect(t).Conn()}
	_, err := l.conn.Subscribe(subject, func(m *nats.Msg) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.got = append(l.got, m)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.conn.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *listener) read(t *testing.T) []*nats.Msg {
	t.Helper()
	if err := l.conn.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	if err := l.conn.Barrier(func() { close(done) }); err != nil {
		t.Fatal(err)
	}
	<-done
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.got)
}
