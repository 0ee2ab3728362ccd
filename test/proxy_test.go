package test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// weather is what a proxy does to what passes it. The zero value is fair.
type weather struct {
	shut    bool          // nobody listens, and connections are cut
	hang    bool          // connections stay, and nothing passes
	latency time.Duration // each way
	rate    int           // bytes a second, each way; 0 is no limit
	cut     int           // bytes from the client after which a connection is cut; 0 is never
}

// proxy is a way to a broker on which there can be weather.
type proxy struct {
	addr, to string
	kafka    bool // whether addresses in answers are to lead here too

	mu       sync.Mutex
	now      weather
	changed  chan struct{} // closed when now changes
	listener net.Listener
	conns    map[net.Conn]bool
	busy     sync.WaitGroup
}

// newProxy makes a way to a broker, in fair weather.
func newProxy(t *testing.T, to string, kafka bool) *proxy {
	t.Helper()
	p := &proxy{addr: natstest.FreeAddr(t), to: to, kafka: kafka, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.set(t, weather{})
	t.Cleanup(func() {
		p.set(t, weather{shut: true})
		p.busy.Wait()
	})
	return p
}

// set changes the weather.
func (p *proxy) set(t *testing.T, w weather) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = w
	close(p.changed)
	p.changed = make(chan struct{})
	switch {
	case w.shut && p.listener != nil:
		_ = p.listener.Close()
		p.listener = nil
		for c := range p.conns {
			_ = c.Close()
		}
	case !w.shut && p.listener == nil:
		l, err := net.Listen("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		p.listener = l
		p.busy.Go(func() { p.serve(l) })
	}
}

// sky returns the weather, and what is closed when it changes.
func (p *proxy) sky() (weather, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now, p.changed
}

func (p *proxy) serve(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil || !p.enter(in, out) {
			_ = in.Close()
			continue
		}
		f := &flow{proxy: p, in: in, out: out, asked: map[uint32]int16{}}
		p.busy.Go(func() { f.run(in, out, f.requests) })
		p.busy.Go(func() { f.run(out, in, f.answers) })
	}
}

// enter takes note of connections, which set may cut.
func (p *proxy) enter(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = true
		if p.now.shut {
			_ = c.Close()
		}
	}
	return !p.now.shut
}

// flow is one connection through a proxy.
type flow struct {
	*proxy
	in, out net.Conn

	mu    sync.Mutex
	asked map[uint32]int16 // Kafka metadata requests: version by correlation ID
}

// parcel is what passes at once.
type parcel struct {
	bytes []byte
	due   time.Time
}

// run carries parcels one way until the connection ends.
func (f *flow) run(from, to net.Conn, read func(io.Reader) ([]byte, error)) {
	defer func() {
		_ = from.Close()
		_ = to.Close()
		f.proxy.mu.Lock()
		delete(f.conns, from)
		f.proxy.mu.Unlock()
	}()
	parcels := make(chan parcel, 256)
	f.busy.Go(func() {
		defer close(parcels)
		for {
			b, err := read(from)
			if err != nil {
				return
			}
			w, _ := f.sky()
			parcels <- parcel{b, time.Now().Add(w.latency)}
		}
	})
	sent := 0
	for parcel := range parcels {
		time.Sleep(time.Until(parcel.due))
		w, changed := f.sky()
		for ; w.hang; w, changed = f.sky() {
			<-changed
		}
		if w.rate > 0 {
			time.Sleep(time.Duration(len(parcel.bytes)) * time.Second / time.Duration(w.rate))
		}
		if _, err := to.Write(parcel.bytes); err != nil {
			break
		}
		if sent += len(parcel.bytes); from == f.in && w.cut > 0 && sent > w.cut {
			break
		}
	}
	_ = from.Close()
	for range parcels { // the reader must not wait for ever
	}
}

func (f *flow) requests(r io.Reader) ([]byte, error) {
	if !f.kafka {
		return piece(r)
	}
	b, err := frame(r)
	if err == nil && len(b) >= 12 && int16(binary.BigEndian.Uint16(b[4:])) == int16(kmsg.Metadata) {
		f.mu.Lock()
		f.asked[binary.BigEndian.Uint32(b[8:])] = int16(binary.BigEndian.Uint16(b[6:]))
		f.mu.Unlock()
	}
	return b, err
}

func (f *flow) answers(r io.Reader) ([]byte, error) {
	if !f.kafka {
		return piece(r)
	}
	b, err := frame(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	version, ok := f.asked[binary.BigEndian.Uint32(b[4:])]
	f.mu.Unlock()
	if !ok {
		return b, nil
	}
	return f.redirect(b, version)
}

// redirect makes a Kafka metadata answer lead to the proxy.
func (f *flow) redirect(b []byte, version int16) ([]byte, error) {
	answer := kmsg.NewPtrMetadataResponse()
	answer.SetVersion(version)
	if answer.IsFlexible() {
		return nil, errors.New("the header of flexible versions is not read here")
	}
	if err := answer.ReadFrom(b[8:]); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(f.addr)
	if err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	for i := range answer.Brokers {
		answer.Brokers[i].Host, answer.Brokers[i].Port = host, int32(number)
	}
	out := answer.AppendTo(b[:8:8])
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out, nil
}

// piece reads what there is.
func piece(r io.Reader) ([]byte, error) {
	b := make([]byte, 16<<10)
	n, err := r.Read(b)
	return b[:n], err
}

// frame reads one Kafka message behind its length.
func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	b := make([]byte, 4+binary.BigEndian.Uint32(head))
	copy(b, head)
	_, err := io.ReadFull(r, b[4:])
	return b, err
}
