package jetstream

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
)

// shardCount is the number of shards of partition keys. The events of one key are in one
// shard, and a shard keeps its order.
const shardCount = 256

// shardOf returns the shard of an event; -1 for an event without a partition key.
func shardOf(e event.Event) int {
	key, ok := e.Attribute(event.PartitionKey)
	if !ok {
		return -1
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // a hash never fails
	return int(h.Sum32() % shardCount)
}

// shards are the acceptance times of the events in each shard, in nanoseconds since 1970.
type shards struct {
	times [shardCount][]int64
}

func (l *shards) push(shard int, at time.Time) {
	if shard >= 0 {
		l.times[shard] = append(l.times[shard], at.UnixNano())
	}
}

// popOldest removes the oldest time of a shard.
func (l *shards) popOldest(shard int) {
	if shard >= 0 && len(l.times[shard]) > 0 {
		if l.times[shard] = l.times[shard][1:]; len(l.times[shard]) == 0 {
			l.times[shard] = nil
		}
	}
}

// remove removes a time of a shard, if the shard has the time.
func (l *shards) remove(shard int, at time.Time) {
	if shard < 0 {
		return
	}
	if i := slices.Index(l.times[shard], at.UnixNano()); i >= 0 {
		l.times[shard] = slices.Delete(l.times[shard], i, i+1)
	}
}

// lowWatermarks returns the oldest time of each shard that is not empty.
func (l *shards) lowWatermarks() map[int]int64 {
	lows := map[int]int64{}
	for n, times := range l.times {
		if len(times) > 0 {
			lows[n] = times[0]
		}
	}
	return lows
}

// announcement tells other processes about the spill of a process. Announcements are core
// NATS messages and not stored, so that a cluster without a leader also carries them.
type announcement struct {
	Name          string        `json:"name"`
	LowWatermarks map[int]int64 `json:"lows"` // oldest acceptance time of each shard
}

// peerSpill is the last announcement of another process.
type peerSpill struct {
	lowWatermarks map[int]int64
	at            time.Time
}

const (
	announceInterval = 100 * time.Millisecond
	// startGrace is how long after the start an announcement of a peer may be missing, and
	// reconnectGrace how long after a reconnect, because peers reconnect a moment later.
	startGrace     = 3 * announceInterval
	reconnectGrace = time.Second
	// peerTTL is how long a peer with a spill may be silent before the peer counts as gone. A
	// peer that leaves a server that hangs is silent for leaveAfter and a reconnect.
	peerTTL = 4 * leaveAfter
	// announceTimeout limits how long the answer to a sender waits for the announcement of its
	// event.
	announceTimeout = 100 * time.Millisecond
)

// announcements returns the subject of announcements. The stream does not store the
// subject.
func (j *Journal) announcements() string { return "_postwire." + j.opts.Stream + ".spill" }

// announced announces the spill, and waits until the server has the announcement: after the
// answer to a sender, other processes may get the next event of the partition key.
func (s *spill) announced(ctx context.Context) {
	if !s.j.conn.IsConnected() {
		return
	}
	s.announce()
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	if err := s.j.conn.FlushWithContext(ctx); err != nil {
		s.j.log.Debug("announcing the spill", zap.Error(err))
	}
}

// announce announces the spill of this process, and announces once that the spill has
// become empty.
func (s *spill) announce() {
	s.announceMu.Lock() // so that an older announcement does not follow a newer one
	defer s.announceMu.Unlock()
	s.mu.Lock()
	a := announcement{Name: s.j.opts.Name, LowWatermarks: s.local.lowWatermarks()}
	send := s.announcedNonEmpty || len(a.LowWatermarks) > 0
	s.announcedNonEmpty = len(a.LowWatermarks) > 0
	s.mu.Unlock()
	if !send {
		return
	}
	b, err := json.Marshal(a)
	if err == nil {
		err = s.j.conn.Publish(s.j.announcements(), b)
	}
	if err != nil { // announced again later
		s.j.log.Debug("announcing the spill", zap.Error(err))
		s.mu.Lock()
		s.announcedNonEmpty = true
		s.mu.Unlock()
	}
}

// requestAnnouncement requests an announcement without waiting: a client that reconnects
// blocks its callers.
func (s *spill) requestAnnouncement() {
	select {
	case s.announceC <- struct{}{}:
	default: // already requested
	}
}

// keepAnnouncing announces every announceInterval, and forgets peers after peerTTL.
func (s *spill) keepAnnouncing(ctx context.Context) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.announceC:
		case <-ctx.Done():
			return
		}
		s.announce()
		// Before the lock: a client that reconnects blocks its callers.
		reconnects := s.j.conn.Stats().Reconnects
		now := time.Now()
		s.mu.Lock()
		s.setReconnects(reconnects)
		for name, a := range s.peers {
			if now.Sub(a.at) > peerTTL {
				delete(s.peers, name)
			}
		}
		s.notify() // also wakes waiters for peersUnknownUntil
		s.mu.Unlock()
	}
}

// setReconnects compares the number of reconnects with the known one: after a reconnect,
// announcements of peers may be missing. The caller holds mu.
func (s *spill) setReconnects(n uint64) {
	if n != s.reconnects {
		s.reconnects = n
		s.peersUnknownUntil = time.Now().Add(reconnectGrace)
	}
}

// extendGrace waits for announcements of peers: after the cluster answers again, peers
// reconnect a moment later.
func (s *spill) extendGrace() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peersUnknownUntil = time.Now().Add(reconnectGrace)
}

// onAnnouncement handles an announcement.
func (s *spill) onAnnouncement(m *nats.Msg) {
	var a announcement
	if err := json.Unmarshal(m.Data, &a); err != nil {
		s.j.log.Debug("what another process announces cannot be read", zap.Error(err))
		return
	}
	if a.Name == s.j.opts.Name {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(a.LowWatermarks) == 0 {
		delete(s.peers, a.Name)
	} else {
		s.peers[a.Name] = peerSpill{a.LowWatermarks, time.Now()}
	}
	s.notify()
}

// lowWatermark returns the oldest acceptance time of a shard in the spills of peers; 0 is
// none. The caller holds mu.
func (s *spill) lowWatermark(shard int) int64 {
	var lowest int64
	for _, a := range s.peers {
		if low := a.lowWatermarks[shard]; low != 0 && (lowest == 0 || low < lowest) {
			lowest = low
		}
	}
	return lowest
}
