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

// laneCount is in how many lanes partition keys are divided. Events of one key
// are in one lane, and a lane keeps its order.
const laneCount = 256

// laneOf is the lane of an event; -1 is one that has no order to keep.
func laneOf(e event.Event) int {
	key, ok := e.Attribute(event.PartitionKey)
	if !ok {
		return -1
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // a hash takes everything
	return int(h.Sum32() % laneCount)
}

// lanes are the times at which events were accepted, in nanoseconds since 1970.
type lanes struct {
	times [laneCount][]int64
}

func (l *lanes) enter(lane int, at time.Time) {
	if lane >= 0 {
		l.times[lane] = append(l.times[lane], at.UnixNano())
	}
}

// leave takes out the oldest of a lane.
func (l *lanes) leave(lane int) {
	if lane >= 0 && len(l.times[lane]) > 0 {
		if l.times[lane] = l.times[lane][1:]; len(l.times[lane]) == 0 {
			l.times[lane] = nil
		}
	}
}

// takeBack takes out the newest of a lane.
func (l *lanes) takeBack(lane int) {
	if lane >= 0 && len(l.times[lane]) > 0 {
		l.times[lane] = l.times[lane][:len(l.times[lane])-1]
	}
}

// lows are the oldest of each lane that has any.
func (l *lanes) lows() map[int]int64 {
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
	Name string        `json:"name"`
	Lows map[int]int64 `json:"lows"` // when the oldest event of each lane was accepted
}

// announced is what another process has said.
type announced struct {
	lows  map[int]int64
	heard time.Time
}

const (
	announceEvery = 100 * time.Millisecond
	// deaf is how long after the start something may not have been heard that
	// another process keeps, and apart how long after a connection was made
	// again: the others make theirs again a moment later.
	deaf  = 3 * announceEvery
	apart = time.Second
	// gone is after how long without a word a process that has said that it
	// keeps something is taken to be gone.
	gone = 2 * time.Second
)

// announcements is the subject for them, which is not one of the stream's.
func (j *Journal) announcements() string { return "_postwire." + j.opts.Stream + ".spill" }

// announce tells the others what is here, and says once that there is nothing any
// more.
func (s *spill) announce() {
	s.mu.Lock()
	a := announcement{Name: s.j.opts.Name, Lows: s.here.lows()}
	say := s.said || len(a.Lows) > 0
	s.said = len(a.Lows) > 0
	s.mu.Unlock()
	if !say {
		return
	}
	b, err := json.Marshal(a)
	if err == nil {
		err = s.j.conn.Publish(s.j.announcements(), b)
	}
	if err != nil { // nobody hears us; it is said again
		s.j.log.Debug("announcing the spill", zap.Error(err))
		s.mu.Lock()
		s.said = true
		s.mu.Unlock()
	}
}

// sayNow asks for an announcement. It does not wait: a client that connects again
// holds up whoever uses it.
func (s *spill) sayNow() {
	select {
	case s.say <- struct{}{}:
	default: // it is asked for already
	}
}

// keepAnnouncing announces again and again, and forgets those who have gone.
func (s *spill) keepAnnouncing(ctx context.Context) {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	connected := s.j.conn.IsConnected()
	for {
		select {
		case <-tick.C:
		case <-s.say:
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
			s.blind = now.Add(apart)
		}
		for name, a := range s.there {
			if now.Sub(a.heard) > gone {
				delete(s.there, name)
			}
		}
		s.notify() // also for whoever waits for the end of being blind
		s.mu.Unlock()
	}
}

// listen waits a moment for what others announce: a cluster that was away is whole
// again a moment after it answers.
func (s *spill) listen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blind = time.Now().Add(apart)
}

// hear takes an announcement.
func (s *spill) hear(m *nats.Msg) {
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
	if len(a.Lows) == 0 {
		delete(s.there, a.Name)
	} else {
		s.there[a.Name] = announced{a.Lows, time.Now()}
	}
	s.notify()
}

// lowest is when the oldest event of a lane was accepted that another process
// keeps; 0 is that there is none. The caller holds mu.
func (s *spill) lowest(lane int) int64 {
	var lowest int64
	for _, a := range s.there {
		if low := a.lows[lane]; low != 0 && (lowest == 0 || low < lowest) {
			lowest = low
		}
	}
	return lowest
}
