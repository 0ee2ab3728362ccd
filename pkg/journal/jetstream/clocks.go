package jetstream

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// The dedupe window, the retention and the order of spilled events compare times of several
// processes. A process whose clock is wrong by more than maxClockSkew is not ready, owns no
// cursor and takes no lease.
const (
	maxClockSkew  = time.Hour
	clockInterval = 2 * time.Second   // between two announcements of a clock
	clockTTL      = 5 * clockInterval // how long a silent peer has a say
)

// clockAnnouncement tells the other processes the clock of a process. It is a core NATS
// message and not stored.
type clockAnnouncement struct {
	Name string `json:"name"`
	Now  int64  `json:"now"` // nanoseconds since 1970
}

// peerClock is the clock of a peer.
type peerClock struct {
	ahead time.Duration // of the clock of this process
	heard time.Time
}

// clocks are the clocks that this process knows. Journal.mu guards clocks.
type clocks struct {
	peers   map[string]peerClock
	cluster time.Duration // how far the clock of the stream's leader is ahead; 0 before the first poll
	skew    error         // why the clock of this process is wrong; nil if it is not known to be wrong
}

func far(ahead time.Duration) bool { return ahead.Abs() > maxClockSkew }

// judge returns why the clock of this process is wrong, or nil. The clock is wrong if most
// processes disagree with it. Of two halves, the half is right that agrees with the stream's
// leader.
func (c *clocks) judge() error {
	agree, disagree := 1, 0
	var ahead time.Duration
	for _, p := range c.peers {
		if far(p.ahead) {
			disagree, ahead = disagree+1, p.ahead
		} else {
			agree++
		}
	}
	if disagree < agree || disagree == agree && !far(c.cluster) {
		return nil
	}
	way := "behind"
	if ahead < 0 {
		way = "ahead of"
	}
	return fmt.Errorf("%w: the clock of this relay is %v %s the clocks of %d of %d other relays; this relay delivers nothing until the clock is right: run NTP",
		journal.ErrUnavailable, ahead.Abs().Round(time.Second), way, disagree, len(c.peers))
}

// clockSubject is the subject of announcements of clocks. The stream does not store it.
func (j *Journal) clockSubject() string { return "_postwire." + j.opts.Stream + ".clock" }

// compareClocks announces the clock of this process and compares it with the clocks of
// others, until ctx is done.
func (j *Journal) compareClocks(ctx context.Context) {
	tick := time.NewTicker(clockInterval)
	defer tick.Stop()
	for {
		j.announceClock()
		j.judgeClock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (j *Journal) announceClock() {
	b, err := json.Marshal(clockAnnouncement{j.opts.Name, j.opts.Clock().UnixNano()})
	if err == nil && j.conn.IsConnected() { // a client that reconnects would send the time late
		err = j.conn.Publish(j.clockSubject(), b)
	}
	if err != nil { // announced again
		j.log.Debug("announcing the clock", zap.Error(err))
	}
}

// onClock handles an announcement. A new peer learns the clock of this process at once, before
// it leads anything.
func (j *Journal) onClock(m *nats.Msg) {
	var a clockAnnouncement
	if err := json.Unmarshal(m.Data, &a); err != nil {
		j.log.Debug("the clock that another process announces cannot be read", zap.Error(err))
		return
	}
	if a.Name == j.opts.Name {
		return
	}
	ahead := time.Duration(a.Now - j.opts.Clock().UnixNano())
	j.mu.Lock()
	_, known := j.clocks.peers[a.Name]
	j.clocks.peers[a.Name] = peerClock{ahead, time.Now()}
	j.mu.Unlock()
	if !known {
		j.announceClock()
	}
	j.judgeClock()
}

// judgeClock forgets silent peers, and records whether the clock of this process is wrong.
func (j *Journal) judgeClock() {
	j.mu.Lock()
	for name, p := range j.clocks.peers {
		if time.Since(p.heard) > clockTTL {
			delete(j.clocks.peers, name)
		}
	}
	was, now := j.clocks.skew, j.clocks.judge()
	j.clocks.skew = now
	if (was == nil) != (now == nil) {
		j.notify()
	}
	j.mu.Unlock()
	switch {
	case was == nil && now != nil:
		j.log.Error("the clock of this relay is wrong", zap.Error(now))
	case was != nil && now == nil:
		j.log.Info("the clock of this relay agrees with the other relays again")
	}
}

// clockIsWrong reports whether the clock of this process is known to be wrong.
func (j *Journal) clockIsWrong() bool { return j.clockSkew() != nil }

// clockSkew returns why the clock of this process is wrong, or nil.
func (j *Journal) clockSkew() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.clocks.skew
}
