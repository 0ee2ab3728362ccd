package jetstream

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
)

// shardCount is in how many lanes partition keys are divided. Events of one key
// are in one lane, and a lane keeps its order.
const shardCount = 256

// shardOf is the lane of an event; -1 is one that has no order to keep.
func shardOf(e event.Event) int {
	key, ok := e.Attribute(event.PartitionKey)
	if !ok {
		return -1
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // a hash takes everything
	return int(h.Sum32() % shardCount)
}

// shards are the times at which events were accepted, in nanoseconds since 1970.
type shards struct {
	times [shardCount][]int64
}

func (l *shards) push(shard int, at time.Time) {
	if shard >= 0 {
		l.times[shard] = append(l.times[shard], at.UnixNano())
	}
}

// popOldest takes out the oldest of a lane.
func (l *shards) popOldest(shard int) {
	if shard >= 0 && len(l.times[shard]) > 0 {
		if l.times[shard] = l.times[shard][1:]; len(l.times[shard]) == 0 {
			l.times[shard] = nil
		}
	}
}

// popNewest takes out the newest of a lane.
func (l *shards) popNewest(shard int) {
	if shard >= 0 && len(l.times[shard]) > 0 {
		l.times[shard] = l.times[shard][:len(l.times[shard])-1]
	}
}

// lowWatermarks are the oldest of each lane that has any.
func (l *shards) lowWatermarks() map[int]int64 {
	lows := map[int]int64{}
	for n, times := range l.times {
		if len(times) > 0 {
			lows[n] = times[0]
		}
	}
	return lows
}

// announcement is what a process says of its spill to the others. It goes over
// the servers as it is said, and is not stored: a cluster without a leader, which
// stores nothing, still carries it.
type announcement struct {
	Name          string        `json:"name"`
	LowWatermarks map[int]int64 `json:"lows"` // when the oldest event of each lane was accepted
}

// peerSpill is what another process has said.
type peerSpill struct {
	lowWatermarks map[int]int64
	at            time.Time
}

const (
	announceInterval = 100 * time.Millisecond
	// startGrace is how long after the start something may not have been heard that
	// another process keeps, and apart how long after a connection was made
	// again: the others make theirs again a moment later.
	startGrace     = 3 * announceInterval
	reconnectGrace = time.Second
	// peerTTL is after how long without a word a process that has said that it
	// keeps something is taken to be gone.
	peerTTL = 2 * time.Second
)

// announcements is the subject for them, which is not one of the stream's.
func (j *Journal) announcements() string { return "_postwire." + j.opts.Stream + ".spill" }

// announce tells the others what is here, and says once that there is nothing any
// more.
func (s *spill) announce() {
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
	if err != nil { // nobody hears us; it is said again
		s.j.log.Debug("announcing the spill", zap.Error(err))
		s.mu.Lock()
		s.announcedNonEmpty = true
		s.mu.Unlock()
	}
}

// requestAnnouncement asks for an announcement. It does not wait: a client that connects again
// holds up whoever uses it.
func (s *spill) requestAnnouncement() {
	select {
	case s.announceC <- struct{}{}:
	default: // it is asked for already
	}
}

// keepAnnouncing announces again and again, and forgets those who have gone.
func (s *spill) keepAnnouncing(ctx context.Context) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	connected := s.j.conn.IsConnected()
	for {
		select {
		case <-tick.C:
		case <-s.announceC:
		case <-ctx.Done():
			return
		}
		s.announce()
		// Asked before the lock is taken: a client that connects again holds up
		// whoever asks it.
		was := connected
		connected = s.j.conn.IsConnected()
		now := time.Now()
		s.mu.Lock()
		if connected && !was {
			s.peersUnknownUntil = now.Add(reconnectGrace)
		}
		for name, a := range s.peers {
			if now.Sub(a.at) > peerTTL {
				delete(s.peers, name)
			}
		}
		s.notify() // also for whoever waits for the end of being blind
		s.mu.Unlock()
	}
}

// extendGrace waits a moment for what others announce: a cluster that was away is whole
// again a moment after it answers.
func (s *spill) extendGrace() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peersUnknownUntil = time.Now().Add(reconnectGrace)
}

// onAnnouncement takes an announcement.
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

// lowWatermark is when the oldest event of a lane was accepted that another process
// keeps; 0 is that there is none. The caller holds mu.
func (s *spill) lowWatermark(shard int) int64 {
	var lowest int64
	for _, a := range s.peers {
		if low := a.lowWatermarks[shard]; low != 0 && (lowest == 0 || low < lowest) {
			lowest = low
		}
	}
	return lowest
}
