package ingress

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postwire/postwire/internal/forwarded"
)

// reader is a writer whose request's body can be cut.
type reader struct {
	*httptest.ResponseRecorder
	cut int
}

func (r *reader) SetReadDeadline(time.Time) error {
	r.cut++
	return nil
}

// fakeConn is a connection that remembers whether it was closed.
type fakeConn struct {
	net.Conn
	closed bool
}

func (c *fakeConn) Close() error {
	c.closed = true
	return nil
}

// players are connections and requests of a pool under test.
type players struct {
	t *testing.T
	*pool
	source *quota
}

func newPlayers(t *testing.T, total int64, most int) *players {
	b := newQuotaPool(total, 1)
	return &players{t, newPool(b, most, 64<<10, false, NewMetrics(prometheus.NewRegistry())), b.quotaOf(0)}
}

// connection returns one that is not let in yet, of the address 192.0.2.n.
func (p *players) connection(n int) *connection {
	return &connection{Conn: &fakeConn{}, pool: p.pool, remote: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})}
}

// connect returns one that is let in.
func (p *players) connect(n int) *connection {
	p.t.Helper()
	c := p.connection(n)
	if ok, _ := p.enter(c, false); !ok {
		p.t.Fatal("there is no room")
	}
	return c
}

// ask begins a request on c that holds n bytes.
func (p *players) ask(c *connection, n int64) (*allocation, error) {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	return p.begin(c, &reader{ResponseRecorder: httptest.NewRecorder()}, r, c.remote, p.source, n)
}

func closed(c *connection) bool { return c.Conn.(*fakeConn).closed }

// TestWhoYields: the one that has waited for its sender the longest, strangers first,
// and never one that is verified or whose connection was just accepted.
func TestWhoYields(t *testing.T) {
	const total = 8 << 20 // half of it is the source's own, the rest is for whoever comes first
	synctest.Test(t, func(t *testing.T) {
		p := newPlayers(t, total, 100)
		hold := func(address int, n int64) *allocation {
			t.Helper()
			time.Sleep(time.Second)
			h, err := p.ask(p.connect(address), n)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		verified := hold(1, 1<<20)
		if !p.verify(verified, true) {
			t.Fatal("it had to yield")
		}
		proven := hold(1, 1<<20) // of an address that has proven itself
		var strangers []*allocation
		for address := range 5 {
			strangers = append(strangers, hold(10+address, 1<<20))
		}
		gone := func() (names []string) {
			for i, h := range append([]*allocation{verified, proven}, strangers...) {
				if p.isEvicted(h) {
					names = append(names, []string{"verified", "proven", "0", "1", "2", "3", "4"}[i])
				}
			}
			return names
		}
		for _, want := range [][]string{{"0"}, {"0", "1"}, {"0", "1", "2"}} {
			hold(50+len(want), 1<<20)
			if got := gone(); !slices.Equal(got, want) {
				t.Fatalf("gone are %v, want %v", got, want)
			}
		}
		if w := strangers[0].writer.(*reader); w.cut != 1 {
			t.Error("the request that had to yield reads on")
		}
		if err := p.grow(strangers[0], 1); err == nil {
			t.Error("one that had to yield takes more")
		}
		// One of whom everybody else is verified or too much for.
		if err := p.grow(verified, total); err == nil {
			t.Error("more than there is was taken")
		}
		if got := gone(); slices.Contains(got, "verified") {
			t.Error("a verified request had to yield")
		}
	})
}

// TestAnAddressHasAQuarter: what one address holds unproven is limited once more
// than half of everything is used, and not before.
func TestAnAddressHasAQuarter(t *testing.T) {
	const total = 64 << 20
	synctest.Test(t, func(t *testing.T) {
		p := newPlayers(t, total, 1000)
		ask := func(address int) *allocation {
			t.Helper()
			time.Sleep(time.Second)
			h, err := p.ask(p.connect(address), total/64)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		for range 31 {
			ask(1)
		}
		mine := p.addresses[forwarded.Network(netip.MustParseAddr("192.0.2.1"))]
		if mine.bytes < total*31/64 {
			t.Errorf("an address that is alone holds %d of %d", mine.bytes, total)
		}
		var others []*allocation
		for address := range 20 {
			others = append(others, ask(2+address))
		}
		for range 40 {
			ask(1)
		}
		if mine.bytes > total/2 {
			t.Errorf("an address holds %d of %d, and others hold a third", mine.bytes, total)
		}
		for address := range 15 {
			others = append(others, ask(30+address))
		}
		for range 40 {
			ask(1)
		}
		if mine.bytes > total/4+1<<20 || mine.bytes < total/5 {
			t.Errorf("an address holds %d of %d, and others hold more than a half", mine.bytes, total)
		}
		for i, h := range others {
			if p.isEvicted(h) {
				t.Errorf("request %d of another address had to yield", i)
			}
		}
	})
}

// TestConnectionsWait: at the limit the connection yields that has been silent the
// longest; one that was just accepted does not, and the new one waits.
func TestConnectionsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlayers(t, 64<<20, 8)
		var all []*connection
		for address := range 8 {
			all = append(all, p.connect(address))
		}
		late := p.connection(100)
		if ok, again := p.enter(late, false); ok || again <= 0 {
			t.Fatal("a connection that was just accepted had to yield")
		}
		time.Sleep(acceptedFor)
		if ok, _ := p.enter(late, false); !ok {
			t.Fatal("there is no room for it, later")
		}
		if !closed(all[0]) || closed(all[1]) {
			t.Error("not the oldest one had to yield")
		}
		// Who has proven itself stays longer; who is at work stays.
		busy, err := p.ask(all[1], 100)
		if err != nil {
			t.Fatal(err)
		}
		p.verify(busy, true)
		h, err := p.ask(all[2], 100)
		if err != nil {
			t.Fatal(err)
		}
		p.verify(h, true)
		p.end(h, false)
		for address := range 20 {
			time.Sleep(time.Second)
			p.connect(101 + address)
		}
		for i, c := range all[:8] {
			if want := i != 1 && i != 2; closed(c) != want {
				t.Errorf("connection %d: closed is %v", i, closed(c))
			}
		}
	})
}

// TestAnIdleSenderOutlivesItsNeighbors: a connection that has authenticated and waits for
// its sender's next request stays, when others of its address hold more than a quarter of
// the memory, or all connections: they yield, although they are younger.
func TestAnIdleSenderOutlivesItsNeighbors(t *testing.T) {
	const total = 16 << 20
	for name, attack := range map[string]func(p *players){
		"requests": func(p *players) {
			for range 60 {
				time.Sleep(acceptedFor)
				if _, err := p.ask(p.connect(1), total/32); err != nil {
					p.t.Fatal(err)
				}
			}
		},
		"connections": func(p *players) {
			for range 60 {
				time.Sleep(acceptedFor)
				p.connect(1)
			}
		},
		"headers": func(p *players) {
			for range 60 {
				time.Sleep(acceptedFor)
				if err := p.arrive(p.connect(1), 60<<10); err != nil {
					p.t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlayers(t, total, 40)
				idle := p.connect(1)
				for range 2 { // the second request is of a sender that is known
					h, err := p.ask(idle, 100)
					if err != nil {
						t.Fatal(err)
					}
					p.verify(h, true)
					p.end(h, false)
				}
				attack(p)
				if closed(idle) {
					t.Fatal("the connection was closed")
				}
				h, err := p.ask(idle, total/32)
				if err != nil {
					t.Fatalf("its next request: %v", err)
				}
				attack(p)
				if p.isEvicted(h) {
					t.Error("its next request had to yield")
				}
			})
		})
	}
}

// TestOneAddressDoesNotTakeAllConnections: beyond a quarter it takes the place of its
// own, when more than half are open.
func TestOneAddressDoesNotTakeAllConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlayers(t, 64<<20, 40)
		var others []*connection
		for address := range 15 {
			others = append(others, p.connect(100+address))
		}
		for range 200 {
			time.Sleep(time.Millisecond)
			p.connect(1)
		}
		if n := p.addresses[forwarded.Network(netip.MustParseAddr("192.0.2.1"))].connections; n != 10 {
			t.Errorf("one address has %d of 40 connections", n)
		}
		for i, c := range others {
			if closed(c) {
				t.Errorf("connection %d of another address was closed", i)
			}
		}
		p.connect(2)
	})
}

// TestHeadersAreCounted: a header that does not end takes memory as it arrives.
func TestHeadersAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlayers(t, 64<<20, 1000)
		var all []*connection
		for i := range 100 {
			time.Sleep(time.Second)
			c := p.connect(i)
			all = append(all, c)
			for range 15 {
				if err := p.arrive(c, 4096); err != nil {
					t.Fatal(err)
				}
			}
		}
		if used := p.memory.inUse(); used > 32<<20 || used < 28<<20 {
			t.Errorf("%d bytes are taken of a half of 32 MiB", used)
		}
		last := all[len(all)-1]
		h, err := p.ask(last, 100)
		if err != nil {
			t.Fatal(err)
		}
		if last.own.bytes != connectionBytes || h.bytes != 100 {
			t.Errorf("with its header read, the connection holds %d bytes and the request %d", last.own.bytes, h.bytes)
		}
		if !closed(all[0]) {
			t.Error("the oldest one did not yield")
		}
	})
}

// TestLargeHeadersOfYoungConnections: strangers whose connections were just accepted, and
// whose headers are large, do not keep others out; of one address they have at most a
// quarter.
func TestLargeHeadersOfYoungConnections(t *testing.T) {
	const total = 64 << 20
	for name, addresses := range map[string]int{"of one address": 1, "of many addresses": 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlayers(t, total, 1000)
				for i := range 200 {
					_ = p.arrive(p.connect(1+i%addresses), 60<<10) // it may have to yield
					c := p.connect(100)
					if err := p.arrive(c, 1<<10); err != nil {
						t.Fatalf("after %d large headers there is no room for a small one: %v", i, err)
					}
					h, err := p.ask(c, 1<<10)
					if err != nil {
						t.Fatalf("after %d large headers there is no room for a request: %v", i, err)
					}
					p.end(h, true)
					_ = c.Close()
					p.audit(t)
				}
				if mine := p.addresses[forwarded.Network(netip.MustParseAddr("192.0.2.1"))]; mine != nil && mine.bytes > total/4+2<<20 { // one header more, with which the limit begins
					t.Errorf("an address holds %d of %d", mine.bytes, total)
				}
			})
		})
	}
}

// TestConnectionsOfStalledRequests: connections fill the memory, and each of them handles
// a request whose body does not arrive. A new connection gets the place of the oldest.
func TestConnectionsOfStalledRequests(t *testing.T) {
	for name, tt := range map[string]struct {
		addresses int
		header    int64 // bytes of a request
	}{
		"of one address": {1, 100}, "of many addresses": {200, 100},
		"without a header, of one address": {1, 0}, "without a header, of many addresses": {200, 0}, // chunked
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlayers(t, 8<<20, 10000)
				var all []*allocation
				for i := range 600 { // the shared half has room for 256 connections
					time.Sleep(time.Millisecond)
					h, err := p.ask(p.connect(1+i%tt.addresses), tt.header)
					if err != nil {
						t.Fatalf("request %d: %v", i, err)
					}
					all = append(all, h)
					p.audit(t)
				}
				for i, h := range all {
					if want := i < 600-256; p.isEvicted(h) != want {
						t.Fatalf("request %d: evicted is %v", i, !want)
					}
				}
				for _, h := range all {
					evicted := p.isEvicted(h)
					p.end(h, evicted)
					if evicted {
						_ = h.conn.Close()
					}
					p.audit(t)
				}
			})
		})
	}
}

// TestPool plays at random, and holds the books to what is there.
func TestPool(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { play(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func play(t *testing.T, rng *rand.Rand) {
	p := newPlayers(t, 4<<20, 30)
	type asked struct {
		h        *allocation
		http     int
		answered bool
	}
	var conns []*connection
	requests := map[*connection][]asked{}
	pick := func() *connection {
		if len(conns) == 0 {
			return nil
		}
		return conns[rng.IntN(len(conns))]
	}
	for range 3000 {
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		c := pick()
		switch n := rng.IntN(10); {
		case n == 0 || c == nil:
			c := p.connection(rng.IntN(5))
			if ok, _ := p.enter(c, rng.IntN(4) == 0); ok {
				conns = append(conns, c)
			} else {
				_ = c.Close()
			}
		case n == 1 && len(requests[c]) == 0:
			_ = c.Close()
			conns = slices.DeleteFunc(conns, func(o *connection) bool { return o == c })
		case n < 5 && (c.http2 || len(requests[c]) == 0):
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			if c.http2 || c.request.writer == nil && c.requests == 0 && rng.IntN(3) == 0 {
				r.ProtoMajor = 2
			}
			h, _ := p.begin(c, &reader{ResponseRecorder: httptest.NewRecorder()}, r, netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(6))}), p.source, rng.Int64N(100<<10))
			requests[c] = append(requests[c], asked{h: h, http: r.ProtoMajor})
		case n == 5:
			_ = p.arrive(c, rng.IntN(5000))
		case len(requests[c]) > 0:
			i := rng.IntN(len(requests[c]))
			r := &requests[c][i]
			h := r.h
			what := rng.IntN(5)
			if r.answered {
				what = 4
			}
			switch what {
			case 0:
				_ = p.grow(h, rng.Int64N(300<<10))
			case 1:
				if !h.verified {
					p.verify(h, rng.IntN(2) == 0)
				}
			case 2:
				p.shrink(h, rng.Int64N(1+h.bytes))
			case 3:
				if r.answered = r.http == 2; r.answered {
					p.answered(h)
					if h.queued || h.bytes > streamBytes {
						t.Fatalf("%+v is answered", h)
					}
				}
			default:
				p.end(h, rng.IntN(3) == 0)
				requests[c] = slices.Delete(requests[c], i, i+1)
			}
		}
		p.audit(t)
	}
	for c, all := range requests {
		for _, r := range all {
			p.end(r.h, false)
		}
		_ = c.Close()
	}
	for _, c := range conns {
		_ = c.Close()
	}
	p.audit(t)
	if p.memory.inUse() != 0 || p.open != 0 || len(p.addresses) != 0 {
		t.Errorf("at the end %d bytes, %d connections, %d addresses are in the books", p.memory.inUse(), p.open, len(p.addresses))
	}
}

// audit holds the sums of the pool to its holdings.
func (p *players) audit(t *testing.T) {
	t.Helper()
	queued, bytes := 0, map[*address]int64{}
	for class := range classes {
		var before *allocation
		for h := p.queues[class].first; h != nil; before, h = h, h.links[byClass].behind {
			switch {
			case !h.queued || h.ended || h.verified || h.class != class:
				t.Fatalf("%+v can yield", h)
			case before != nil && h.since.Before(before.since):
				t.Fatal("the queue is not in order")
			}
			queued++
			if h.address != nil {
				bytes[h.address] += h.bytes
			}
		}
	}
	inAddresses := 0
	for _, a := range p.addresses {
		if a.bytes != bytes[a] {
			t.Fatalf("an address counts %d bytes of %d", a.bytes, bytes[a])
		}
		for h := a.queue.first; h != nil; h = h.links[byAddress].behind {
			inAddresses++
		}
		if a.connections < 0 || a.holdings < 1 {
			t.Fatalf("an address counts %+v", a)
		}
	}
	if p.open > p.maxConnections || p.memory.inUse() > p.memory.total || inAddresses > queued {
		t.Fatalf("%d connections, %d bytes, %d of %d holdings", p.open, p.memory.inUse(), inAddresses, queued)
	}
}
