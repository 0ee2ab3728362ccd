package stdout

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipe is a standard output with faults.
type pipe struct {
	mu      sync.Mutex
	wrote   bytes.Buffer
	down    bool
	thawed  chan struct{} // closed unless frozen
	touched bool
	rand    *rand.Rand
	rate    float64
	broken  int
}

var _ sinktest.World = (*pipe)(nil)

func newPipe() *pipe {
	p := &pipe{thawed: make(chan struct{})}
	close(p.thawed)
	return p
}

var errPipe = errors.New("broken pipe, says the test")

func (p *pipe) Write(line []byte) (int, error) {
	p.mu.Lock()
	thawed := p.thawed
	select {
	case <-thawed:
	default:
		p.touched = true
	}
	p.mu.Unlock()
	<-thawed
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return 0, errPipe
	}
	if p.rand != nil && p.rand.Float64() < p.rate {
		p.broken++
		n, _ := p.wrote.Write(line[:p.rand.IntN(len(line)+1)])
		return n, errPipe
	}
	return p.wrote.Write(line)
}

func (*pipe) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("stdout has no business on the network")
}

func (p *pipe) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *pipe) Down() { p.set(func() { p.down = true }) }
func (p *pipe) Up()   { p.set(func() { p.down = false }) }

func (p *pipe) Freeze() { p.set(func() { p.thawed, p.touched = make(chan struct{}), false }) }
func (p *pipe) Thaw()   { p.set(func() { close(p.thawed) }) }

func (p *pipe) Touched(t *testing.T) {
	t.Helper()
	sinktest.Until(t, "the sink writes something", func() (yes bool) {
		p.set(func() { yes = p.touched })
		return yes
	})
}

func (p *pipe) Break(r *rand.Rand, rate float64) {
	p.set(func() { p.rand, p.rate, p.broken = r, rate, 0 })
}

func (p *pipe) Mend() (broken int) {
	p.set(func() { p.rand, broken = nil, p.broken })
	return broken
}

// lines are the whole lines; the pieces that faults left are none.
func (p *pipe) lines() (lines []string) {
	p.set(func() { lines = strings.SplitAfter(p.wrote.String(), "\n") })
	return lines
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: []string{""},
		Lacks: map[string]string{
			"an event that is too large is refused alone":             "a line has no limit",
			"opening fails while the broker is away and passes later": "the standard output is always open",
		},
		Start: func(*testing.T) sinktest.Broker {
			p := newPipe()
			return sinktest.Broker{
				Kind: KindTo(p), World: p, Config: "format: json",
				Read: func(t *testing.T) (all []sinktest.Message) {
					for _, line := range p.lines() {
						strict, err := sinktest.StrictJSON([]byte(line))
						if err != nil {
							continue // check misses the event if it is nowhere whole
						}
						var e cloudevents.Event
						if err := e.UnmarshalJSON([]byte(line)); err != nil {
							t.Fatalf("the SDK: %v", err)
						}
						all = append(all, sinktest.Message{
							Wire: line, Read: map[string]sinktest.ReadEvent{"specification": strict, "SDK": sinktest.FromSDK(&e)},
						})
					}
					return all
				},
			}
		},
	})
}

// TestText: a line for people, that no value can break or color.
func TestText(t *testing.T) {
	p := newPipe()
	s, err := sinktest.Configure(t, KindTo(p), "format: text").Open(t.Context(), sinks.Env{Name: "test", Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := sinktest.Events(2, 1)
	batch[1].CloudEvent.SetSubject("tiktok/\x1b[31m\n1")
	batch[1].CloudEvent.SetExtension(event.Outcome, nil)
	if err := s.Deliver(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	want := "2026-11-03T10:30:00.123456Z  com.upload-post.upload_completed  instagram/0  success  upload_completed/instagram/0/success\n" +
		"2026-11-03T10:30:00.123457Z  com.upload-post.upload_completed  tiktok/\\u001b[31m\\u000a1  -  upload_completed/instagram/1/success\n"
	if got := strings.Join(p.lines(), ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
