package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	// metadataAge is the maximum age of the cluster metadata.
	metadataAge = 30 * time.Second
	// loadInterval is the minimum time between two loads of the metadata after
	// failures.
	loadInterval = time.Second
	// hedge is the wait for a broker's metadata before the next broker is asked.
	hedge = 250 * time.Millisecond
	// silence is how long requests to a broker may stay without an answer before
	// further requests fail at once.
	silence = 2 * time.Second
)

// session is a snapshot of the cluster metadata, with the connections to the
// brokers in the snapshot. A session never changes: new metadata makes a new
// session.
type session struct {
	client    *kafka.Client
	transport *kafka.Transport
	end       context.CancelFunc // closes all connections
	cluster   string             // ID of the cluster
	brokers   []string           // addresses of all brokers
	topics    map[string]partitions

	broken atomic.Bool // a connection broke, so that idle connections may be dead

	requests int  // in flight; guarded by Sink.mu
	retired  bool // closed after the last request; guarded by Sink.mu
}

// partitions are the partitions of a topic, none for a missing topic.
type partitions struct {
	all     []int          // all partitions, including partitions without a leader, so that a key does not move
	led     []int          // partitions with a leader
	leaders map[int]string // addresses of the leaders, by partition
	err     error          // from the lookup of the topic
}

func (s *session) close() {
	s.end()
	s.transport.CloseIdleConnections()
}

// equal reports whether another session has equal metadata.
func (s *session) equal(other *session) bool {
	return slices.Equal(s.brokers, other.brokers) && reflect.DeepEqual(s.topics, other.topics)
}

// leader returns the address of a partition's leader, or "".
func (s *session) leader(to target) string { return s.topics[to.topic].leaders[to.partition] }

// connect loads the metadata from the first broker that answers. A broker that
// hangs delays connect by hedge.
func (s *Sink) connect(ctx context.Context, addrs []string) (*session, error) {
	type result struct {
		*session
		err error
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var topics []string // nil for all
	if s.route.Template.Static() {
		topics = s.producer.topicsInDoubt()
		if own := s.route.Template.String(); !slices.Contains(topics, own) {
			topics = append(topics, own)
		}
	}
	addrs = slices.Clone(addrs)
	rand.Shuffle(len(addrs), func(i, k int) { addrs[i], addrs[k] = addrs[k], addrs[i] }) //nolint:gosec // spreads load
	results, running := make(chan result, len(addrs)), 0
	next := time.NewTimer(0)
	defer next.Stop()
	var first error
	for len(addrs)+running > 0 {
		select {
		case <-next.C:
			if len(addrs) == 0 {
				continue
			}
			addr := addrs[0]
			addrs = addrs[1:]
			running++
			s.loads.Go(func() {
				ses, err := s.load(ctx, addr, topics)
				results <- result{ses, err}
			})
			next.Reset(hedge)
		case r := <-results:
			running--
			if r.err == nil {
				s.loads.Go(func() {
					for range running { // the other brokers
						if late := <-results; late.err == nil {
							late.close()
						}
					}
				})
				return r.session, nil
			}
			if first == nil {
				first = r.err
			}
			next.Reset(0)
		}
	}
	return nil, first
}

// load makes a session with the metadata of a broker about topics.
func (s *Sink) load(ctx context.Context, addr string, topics []string) (*session, error) { //nolint:contextcheck // a session outlives ctx
	life, end := context.WithCancel(s.life)
	ses := &session{end: end, topics: map[string]partitions{}}
	d := *s.dialer
	d.life = life
	ses.transport = &kafka.Transport{
		ClientID: clientID, MetadataTopics: topics, DialTimeout: dialTimeout, Context: life,
		MetadataTTL: 365 * 24 * time.Hour, // the transport's own refresh is not needed
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := d.Dial(ctx, network, addr)
			if err != nil {
				return nil, &dialError{err}
			}
			return &sessionConn{conn, context.AfterFunc(life, func() { _ = conn.Close() })}, nil
		},
	}
	ses.client = &kafka.Client{Addr: kafka.TCP(addr), Timeout: requestTimeout, Transport: ses.transport}
	m, err := ses.client.Metadata(ctx, &kafka.MetadataRequest{})
	if err != nil {
		ses.close()
		return nil, fmt.Errorf("asking %s for metadata: %w", addr, err)
	}
	ses.cluster = m.ClusterID
	for _, b := range m.Brokers {
		ses.brokers = append(ses.brokers, address(b))
	}
	slices.Sort(ses.brokers)
	for _, t := range m.Topics {
		ses.topics[t.Name] = read(t)
	}
	return ses, nil
}

func read(t kafka.Topic) partitions {
	p := partitions{leaders: map[int]string{}}
	if t.Error != nil && !errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
		p.err = fmt.Errorf("looking up topic %s: %w", t.Name, t.Error)
	}
	for _, each := range t.Partitions {
		p.all = append(p.all, each.ID)
		if each.Leader.Host != "" && each.Error == nil {
			p.led = append(p.led, each.ID)
			p.leaders[each.ID] = address(each.Leader)
		}
	}
	slices.Sort(p.all)
	slices.Sort(p.led)
	return p
}

func address(b kafka.Broker) string { return net.JoinHostPort(b.Host, fmt.Sprint(b.Port)) }

// dialError marks an error before a connection was established.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// sessionConn is a connection that is closed with its session. The client keeps
// a connection that waits for a response until the request's timeout, even
// without a waiting caller.
type sessionConn struct {
	net.Conn
	stop func() bool
}

func (c *sessionConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// acquire returns the current session for a request. The caller releases the
// session.
func (s *Sink) acquire() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session.requests++
	return s.session
}

func (s *Sink) release(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses.requests--
	s.closeUnused(ses)
}

// use makes ses the session of all later requests. Requests in flight go on.
func (s *Sink) use(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.session
	s.session = ses
	if old != nil {
		old.retired = true
		s.closeUnused(old)
	}
}

// closeUnused closes a retired session after the last request. The caller holds
// the lock.
func (s *Sink) closeUnused(ses *session) {
	if ses.retired && ses.requests == 0 {
		ses.close()
	}
}

// leader counts the requests in flight to a broker.
type leader struct {
	requests int
	answered time.Time // of the last answer; without an answer, of the first request in flight
}

// begin registers a request to a broker. While the broker does not answer the
// requests in flight for more than silence, begin fails: waiting requests would
// use up inFlight, which the partitions of other brokers need.
func (s *Sink) begin(addr string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.leaders[addr]
	if b == nil {
		b = &leader{answered: time.Now()}
		s.leaders[addr] = b
	}
	if waited := time.Since(b.answered); b.requests > 0 && waited > silence {
		return fmt.Errorf("%w: broker %s has not answered for %v", errNotSent, addr, waited.Round(time.Second))
	}
	b.requests++
	return nil
}

func (s *Sink) finish(addr string, answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.leaders[addr]
	if b.requests--; b.requests == 0 {
		delete(s.leaders, addr)
	}
	if answered {
		b.answered = time.Now()
	}
}

// topic returns the partitions of a topic in the current metadata.
func (s *Sink) topic(name string) partitions {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session.topics[name]
}

// refresher loads the metadata when the metadata is old, after failures at most
// once in loadInterval, and at once for a caller of refresh, until Close. The
// current session stays if the metadata is equal and no connection broke: the
// reconnects would delay all partitions.
func (s *Sink) refresher() {
	wait := time.NewTimer(metadataAge)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-s.stale:
		case <-s.urgent:
		case <-s.life.Done():
			return
		}
		s.mu.Lock()
		s.started++
		current := s.session
		s.mu.Unlock()
		ses, err := s.connect(s.life, slices.Compact(slices.Sorted(slices.Values(slices.Concat(s.config.Brokers, current.brokers)))))
		switch {
		case err != nil:
		case current.equal(ses) && !current.broken.Load():
			ses.close()
		default:
			s.use(ses)
		}
		s.mu.Lock()
		s.unreachable, s.ended = err, s.started
		close(s.loaded)
		s.loaded = make(chan struct{})
		s.mu.Unlock()
		select {
		case <-time.After(loadInterval):
		case <-s.urgent:
			poke(s.urgent) // for the next round
		case <-s.life.Done():
			return
		}
		wait.Reset(metadataAge)
	}
}

// poke wakes the receiver of a channel with capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // already woken
	}
}

// refresh waits for a load of the metadata that starts after the call, and
// returns the error if no broker answers. The load starts at once through
// urgent, and at most loadInterval later through stale.
func (s *Sink) refresh(ctx context.Context, through chan struct{}) error {
	s.mu.Lock()
	next := s.started + 1
	s.mu.Unlock()
	poke(through)
	for {
		s.mu.Lock()
		ended, err, loaded := s.ended, s.unreachable, s.loaded
		s.mu.Unlock()
		if ended >= next {
			return err
		}
		select {
		case <-loaded:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.life.Done():
			return net.ErrClosed
		}
	}
}
