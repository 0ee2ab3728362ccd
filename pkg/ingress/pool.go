package ingress

import (
	"cmp"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/postwire/postwire/internal/forwarded"
)

// Memory of a connection or request besides its header and body: goroutines, buffers
// and protocol state, in bytes.
const (
	connectionBytes = 16 << 10
	tlsBytes        = 24 << 10 // added with TLS
	http2Bytes      = 32 << 10 // added with HTTP/2
	streamBytes     = 16 << 10 // each HTTP/2 request
	fieldBytes      = 96       // each header value, besides its text
	// headerFactor is the largest number of bytes of memory per byte of an incomplete
	// header: a field of four bytes takes a map entry, a slice and two strings.
	headerFactor = 32
)

// acceptedFor is the age up to which a connection counts as just accepted. The pool does
// not close a connection that was just accepted to make room for a new one.
const acceptedFor = 250 * time.Millisecond

// acceptedHeader is the header size up to which a connection that was just accepted is
// not evicted. Few senders write a larger header, and the large headers of a stranger
// would fill the pool within acceptedFor.
const acceptedHeader = 4 << 10

// class orders eviction: the pool evicts the lowest class first. An idle connection that has
// authenticated outlives strangers of its own address: the pool would otherwise close the
// connection while the next request of an honest sender is on its way.
type class int

const (
	stranger      class = iota // neither the connection nor its address has authenticated
	neighbor                   // another connection of the address has authenticated
	authenticated              // the connection itself has authenticated, or the peer is a trusted proxy
	classes
)

// pool limits the connections of the ingress, and the memory of connections, headers and
// bodies. Below half of a limit the pool restricts nobody. Above half, the unverified
// requests and stranger connections of one address get at most a quarter. At the limit
// the pool evicts the oldest allocation, strangers first: an honest sender sends a whole
// request at once, so the allocation of an honest sender is young.
//
// | allocation | state | ends with | on eviction |
// |---|---|---|---|
// | connection | waiting: no request is handled; with HTTP/2 also while requests are unverified or answered | begin, verify | the pool closes the connection |
// | connection | busy: a request (HTTP/1) or a verified request (HTTP/2) is handled | end | never evicted |
// | request | unverified: the body arrives, or the request waits for newer secrets | verify, end | the sender gets 503; with HTTP/1 the connection then ends |
// | request | verified: the event is stored; with HTTP/2 also answered: the sender reads the answer | end | never evicted |
//
// An ended allocation has no memory and cannot acquire memory. The methods may
// be called concurrently.
type pool struct {
	metrics        *Metrics
	maxConnections int   // connections
	header         int64 // largest header, in bytes
	connBytes      int64 // of each connection

	mu            sync.Mutex
	memory        *quotaPool
	unrouted      *quota // connections, and requests without a source
	open          int    // connections
	waiting       bool   // Accept waits for room
	freed         chan struct{}
	queues        [classes]queue // allocations that can be evicted
	addresses     map[netip.Prefix]*address
	authenticated [2]map[netip.Prefix]struct{} // authenticated addresses in two generations, the newer one first
}

// maxAuthenticated is the largest number of authenticated addresses in a generation.
const maxAuthenticated = 4096

// address is a remote address with its connections and unverified requests.
type address struct {
	prefix      netip.Prefix
	holdings    int   // references to the address
	connections int   // of class stranger
	bytes       int64 // sum over queue
	queue       queue // allocations that can be evicted
}

// allocation is the memory of one connection or one request. pool.mu guards its fields.
type allocation struct {
	quota    *quota
	address  *address // nil for the connection of a trusted proxy: the quarter does not apply
	conn     *connection
	writer   http.ResponseWriter // nil for a connection
	wake     chan struct{}       // closed on eviction while the request waits for newer secrets
	bytes    int64
	since    time.Time
	class    class
	queued   bool // can be evicted
	ended    bool
	verified bool // the request is verified

	links [2]links
}

func newPool(memory *quotaPool, maxConnections int, maxHeader int64, tls bool, m *Metrics) *pool {
	p := &pool{
		metrics: m, maxConnections: maxConnections, header: maxHeader + 4096, connBytes: connectionBytes, memory: memory, unrouted: memory.sharedQuota(),
		freed: make(chan struct{}, 1), addresses: map[netip.Prefix]*address{},
		authenticated: [2]map[netip.Prefix]struct{}{{}, {}},
	}
	if tls {
		p.connBytes += tlsBytes
	}
	m.memory.Store(memory)
	return p
}

// retain returns the entry of an address and counts one more reference to the entry.
func (p *pool) retain(prefix netip.Prefix) *address {
	a := p.addresses[prefix]
	if a == nil {
		a = &address{prefix: prefix, queue: queue{link: byAddress}}
		p.addresses[prefix] = a
	}
	a.holdings++
	return a
}

func (p *pool) unref(a *address) {
	if a == nil {
		return
	}
	if a.holdings--; a.holdings == 0 {
		delete(p.addresses, a.prefix)
	}
}

// enter admits a connection, if necessary by eviction of another allocation. Without room,
// enter returns false and the wait until the next attempt; freed can end the wait early.
func (p *pool) enter(c *connection, trusted bool) (entered bool, retryIn time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &c.own
	if h.quota == nil {
		h.quota, h.conn = p.unrouted, c
		prefix := forwarded.Network(c.remote)
		switch {
		case trusted:
			h.class = authenticated
		case p.isAuthenticated(prefix):
			h.class = neighbor
		}
		if !trusted {
			h.address = p.retain(prefix)
		}
	}
	now := time.Now()
	if !p.makeRoom(h, now) {
		p.waiting = true
		return false, acceptedFor
	}
	h.since = now // before acquire: the new connection is the youngest
	if err := p.acquire(h, p.connBytes); err != nil {
		p.waiting = true
		return false, acceptedFor
	}
	p.waiting = false
	p.open++
	p.metrics.connections.Inc()
	c.open = true
	c.heading.Store(true)
	if h.class == stranger {
		h.address.connections++
	}
	p.push(h, now)
	return true, 0
}

// makeRoom reports whether one more connection fits, after an eviction if necessary.
func (p *pool) makeRoom(h *allocation, now time.Time) bool {
	frees := func(h *allocation) bool { return h.conn.open && (h.writer == nil || !h.conn.http2) }
	// An address with a quarter of the connections gets a new one in place of its oldest.
	if a := h.address; h.class == stranger && p.open > p.maxConnections/2 && a.connections >= max(1, p.maxConnections/4) {
		if victim := a.queue.find(func(h *allocation) bool { return h.class == stranger && frees(h) }); victim != nil {
			p.evictConnection(victim)
		}
	}
	if p.open < p.maxConnections {
		return true
	}
	for class := range p.queues {
		if victim := p.queues[class].find(frees); victim != nil {
			if now.Sub(victim.since) < acceptedFor {
				return false
			}
			p.evictConnection(victim)
			return true
		}
	}
	return false
}

// leave removes a connection from the pool. Further calls do nothing.
func (p *pool) leave(c *connection) {
	if !c.open {
		if c.own.quota != nil && !c.own.ended { // never admitted
			p.unref(c.own.address)
			c.own.ended = true
		}
		return
	}
	c.open = false
	h := &c.own
	p.drop(h)
	if h.class == stranger {
		h.address.connections--
	}
	p.unref(h.address)
	p.open--
	p.metrics.connections.Dec()
	if p.waiting {
		select {
		case p.freed <- struct{}{}:
		default:
		}
	}
}

// push makes an allocation a candidate for eviction, as the youngest.
func (p *pool) push(h *allocation, now time.Time) {
	if h.queued || h.ended {
		return
	}
	h.queued, h.since = true, now
	p.queues[h.class].push(h)
	if h.address != nil {
		h.address.queue.push(h)
		h.address.bytes += h.bytes
	}
}

// pull ends the candidacy of an allocation for eviction.
func (p *pool) pull(h *allocation) {
	if !h.queued {
		return
	}
	h.queued = false
	p.queues[h.class].remove(h)
	if h.address != nil {
		h.address.queue.remove(h)
		h.address.bytes -= h.bytes
	}
}

// acquire adds n bytes to an allocation, and evicts other allocations if memory is short. acquire
// returns errExhausted if no other allocation can be evicted, or if h itself was evicted.
func (p *pool) acquire(h *allocation, n int64) error {
	for {
		if h.ended {
			return errExhausted
		}
		var victim *allocation
		switch limited := h.queued && h.address != nil; {
		case limited && p.memory.scarce() && h.address.bytes+n > p.memory.total/4:
			frees := func(o *allocation) bool { return o.bytes > 0 && p.mayEvict(o, h) }
			victim = cmp.Or(
				h.address.queue.find(func(o *allocation) bool { return o.class < authenticated && frees(o) }),
				h.address.queue.find(frees),
				h.address.queue.first, // may be h
			)
		case h.quota.acquire(n) == nil:
			h.bytes += n
			if limited {
				h.address.bytes += n
			}
			return nil
		default:
			frees := func(o *allocation) bool { return p.mayEvict(o, h) && o.freesFor(h) }
			for class := range p.queues {
				if victim = p.queues[class].find(frees); victim != nil {
					break
				}
			}
		}
		if victim == nil || victim == h {
			return errExhausted
		}
		p.evict(victim)
	}
}

// mayEvict reports whether the pool may evict victim to make room for h: neither the
// connection of h, nor a connection that was just accepted and holds little.
func (p *pool) mayEvict(victim, h *allocation) bool {
	if victim == h || victim.writer == nil && victim.conn == h.conn {
		return false
	}
	return victim.writer != nil || victim.bytes > p.connBytes+acceptedHeader*headerFactor || time.Since(victim.since) >= acceptedFor
}

// freesFor reports whether the eviction of h frees bytes of the quota of other, or of the
// half that all sources share.
func (h *allocation) freesFor(other *allocation) bool {
	frees := func(o *allocation) bool {
		return o.bytes > 0 && (o.quota == other.quota || o.quota.usesShared())
	}
	return frees(h) || h.endsConnection() && frees(&h.conn.own)
}

// endsConnection reports whether the eviction of a request also ends its connection.
func (h *allocation) endsConnection() bool { return h.writer != nil && !h.conn.http2 }

// release returns n bytes of an allocation.
func (p *pool) release(h *allocation, n int64) {
	n = min(n, h.bytes)
	h.quota.release(n)
	h.bytes -= n
	if h.queued && h.address != nil {
		h.address.bytes -= n
	}
}

// drop ends an allocation: the allocation returns all of its bytes and takes none from now on.
func (p *pool) drop(h *allocation) {
	p.pull(h)
	p.release(h, h.bytes)
	h.ended = true
}

// evict evicts an allocation. The bytes of the allocation count as free at once, although its
// handler or its connection ends a moment later.
func (p *pool) evict(h *allocation) {
	if h.writer == nil {
		p.evictConnection(h)
		return
	}
	p.drop(h)
	if h.endsConnection() {
		p.release(&h.conn.own, h.conn.own.bytes)
	}
	p.metrics.evictedRequests.Inc()
	if h.wake != nil {
		close(h.wake)
		return
	}
	// From now on the handler's reads of the body fail.
	_ = http.NewResponseController(h.writer).SetReadDeadline(time.Unix(1, 0))
}

// evictConnection closes the connection of an allocation.
func (p *pool) evictConnection(h *allocation) {
	if h.writer != nil {
		p.drop(h)
	}
	p.leave(h.conn)
	p.metrics.evicted.Inc()
	_ = h.conn.Conn.Close() // net/http notices
}

// arrive records n bytes that were read from a connection. While a header arrives, the
// connection takes the largest memory that the parsed header can need.
func (p *pool) arrive(c *connection, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.heading.Load() {
		return nil
	}
	c.headerBytes += int64(n)
	want := min(c.headerBytes, p.header) * headerFactor
	if want <= c.headerMemory {
		return nil
	}
	if err := p.acquire(&c.own, want-c.headerMemory); err != nil {
		return err
	}
	c.headerMemory = want
	return nil
}

// begin starts the handling of request r from address remote, answered through w. The
// quota is that of the source, nil for a request without a source. The returned allocation
// has n bytes unless err is set. The caller calls end in either case.
func (p *pool) begin(c *connection, w http.ResponseWriter, r *http.Request, remote netip.Addr, to *quota, n int64) (h *allocation, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to == nil {
		to = p.unrouted
	}
	own := &c.own
	if own.quota == nil { // not from a listener
		own.quota, own.conn = p.unrouted, c
	}
	c.heading.Store(false)
	p.release(own, c.headerMemory)
	c.headerBytes, c.headerMemory = 0, 0
	if r.ProtoMajor < 2 {
		h = &c.request
		p.pull(own)
	} else {
		h = new(allocation)
		n += streamBytes
	}
	prefix := forwarded.Network(remote)
	*h = allocation{quota: to, conn: c, writer: w}
	switch {
	case own.class == authenticated && own.address != nil: // not of a trusted proxy, whose connection many senders share
		h.class = authenticated
	case p.isAuthenticated(prefix):
		h.class = neighbor
	}
	h.address = p.retain(prefix)
	c.requests++
	p.push(h, time.Now())
	if r.ProtoMajor == 2 && !c.http2 {
		c.http2 = true
		if err := p.acquire(own, http2Bytes); err != nil {
			return h, err
		}
	}
	return h, p.acquire(h, n)
}

// grow adds n bytes to a request.
func (p *pool) grow(h *allocation, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acquire(h, n)
}

// shrink returns n bytes of a request.
func (p *pool) shrink(h *allocation, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release(h, n)
}

// wait returns a channel that the pool closes when it evicts a waiting request.
func (p *pool) wait(h *allocation) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.wake == nil {
		h.wake = make(chan struct{})
		if h.ended {
			close(h.wake)
		}
	}
	return h.wake
}

// verify marks a request as verified; proof says whether the sender authenticated. verify
// returns false if the pool has evicted the request.
func (p *pool) verify(h *allocation, proof bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.ended {
		return false
	}
	p.pull(h)
	h.verified = true
	c := h.conn
	c.verified++
	p.pull(&c.own)
	if !proof {
		return true
	}
	p.rememberSender(h.address.prefix)
	if own := &c.own; c.open {
		if own.class == stranger {
			own.address.connections--
		}
		own.class = authenticated
	}
	return true
}

// isEvicted reports whether the pool has evicted a request in progress.
func (p *pool) isEvicted(h *allocation) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return h.ended
}

// cut closes the connection of a request, and so ends all requests of the connection.
func (p *pool) cut(h *allocation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.conn.open {
		p.evictConnection(h)
	}
}

// answered marks an HTTP/2 request whose answer is written but not yet sent. The request
// keeps the bytes of its stream, and its connection can be evicted.
func (p *pool) answered(h *allocation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pull(h)
	p.release(h, h.bytes-min(h.bytes, streamBytes))
	p.unverify(h)
	p.rest(h.conn)
}

// unverify removes a request from the verified requests of its connection.
func (p *pool) unverify(h *allocation) {
	if h.verified {
		h.verified = false
		h.conn.verified--
	}
}

// rest makes a connection without verified requests a candidate for eviction.
func (p *pool) rest(c *connection) {
	if c.open && c.verified == 0 && (c.http2 || c.requests == 0) {
		p.pull(&c.own)
		p.push(&c.own, time.Now())
	}
}

// end returns the bytes of a request. The connection then waits for the next request,
// unless last is set.
func (p *pool) end(h *allocation, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(h)
	h.writer = nil
	p.unref(h.address)
	c := h.conn
	c.requests--
	p.unverify(h)
	if !c.open {
		return
	}
	c.heading.Store(!c.http2 && !last)
	p.rest(c)
}

// rememberSender remembers an authenticated address. Beyond maxAuthenticated addresses the older
// generation is dropped.
func (p *pool) rememberSender(prefix netip.Prefix) {
	if _, ok := p.authenticated[0][prefix]; ok {
		return
	}
	if len(p.authenticated[0]) >= maxAuthenticated {
		p.authenticated[1], p.authenticated[0] = p.authenticated[0], make(map[netip.Prefix]struct{})
	}
	p.authenticated[0][prefix] = struct{}{}
}

func (p *pool) isAuthenticated(prefix netip.Prefix) bool {
	for _, generation := range p.authenticated {
		if _, ok := generation[prefix]; ok {
			return true
		}
	}
	return false
}

// headerSize estimates the memory of a header in bytes, and counts its values.
func headerSize(h http.Header) (bytes int64, values int) {
	for name, all := range h {
		bytes += int64(len(name))
		for _, value := range all {
			bytes += int64(len(value)) + fieldBytes
			values++
		}
	}
	return bytes, values
}
