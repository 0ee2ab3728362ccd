package relay

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// deliveryHistory is what this process knows of a sink besides what is stored: whether it
// is paused, what was delivered lately, and what went wrong. It outlives pumps:
// a sink whose settings change keeps it.
type deliveryHistory struct {
	pause        atomic.Pointer[activePause] // nil while it is not paused
	pausesLoaded <-chan struct{}             // closed when that is known
	sink         string
	stored       checkpointCache // of what is stored

	mu          sync.Mutex
	since       time.Time   // since when it knows anything
	startSeq    journal.Seq // where the cursor stood then
	acked       []ackRange  // a ring; the oldest is at oldest when it is full
	oldest      int
	errors      []DeliveryError // the newest last
	checkpoints checkpoints     // of runs, to be stored
}

// ackRange is events that a broker acknowledged in one attempt, one behind the other
// but for those that the sink was not to get.
type ackRange struct {
	from, to journal.Seq
	at       time.Time
	attempts int
}

const (
	// A run is 56 bytes, and as many as a whole batch of events: what is kept
	// is never more than half a megabyte a sink, and in a flood goes back two
	// million events.
	maxAckRanges    = 8192
	maxRecentErrors = 10
)

// DeliveryError is why attempts to deliver failed.
type DeliveryError struct {
	Error string    `json:"error" doc:"Error of the broker, or of the connection to the broker."`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int       `json:"count" doc:"Consecutive attempts that failed with this error."`
}

// add keeps in mind what a broker has acknowledged.
func (p *deliveryHistory) add(runs []ackRange) {
	if len(runs) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range runs {
		p.checkpoints.add(p.sink, r)
		if len(p.acked) < maxAckRanges {
			p.acked = append(p.acked, r)
			continue
		}
		p.acked[p.oldest] = r
		p.oldest = (p.oldest + 1) % maxAckRanges
	}
}

// deliveredAt says when the event at a place was delivered, and in how many attempts;
// or before which time, where that is all that is known; or nothing, where
// another process has done it.
func (p *deliveryHistory) deliveredAt(s journal.Seq) (at, before time.Time, attempts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.acked {
		r := p.acked[(p.oldest+len(p.acked)-1-i)%len(p.acked)]
		if r.from <= s && s <= r.to {
			return r.at, time.Time{}, r.attempts
		}
	}
	if s <= p.startSeq {
		return time.Time{}, p.since, 0
	}
	if len(p.acked) == maxAckRanges {
		if first := p.acked[p.oldest]; s < first.from {
			return time.Time{}, first.at, 0
		}
	}
	return time.Time{}, time.Time{}, 0
}

// recordError keeps in mind why an attempt failed.
func (p *deliveryHistory) recordError(err error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.errors); n > 0 && p.errors[n-1].Error == err.Error() {
		p.errors[n-1].Last = now
		p.errors[n-1].Count++
		return
	}
	if len(p.errors) == maxRecentErrors {
		p.errors = append(p.errors[:0], p.errors[1:]...)
	}
	p.errors = append(p.errors, DeliveryError{Error: err.Error(), First: now, Last: now, Count: 1})
}

// recentErrors returns what went wrong, the newest first.
func (p *deliveryHistory) recentErrors() []DeliveryError {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]DeliveryError, 0, len(p.errors))
	for i := range p.errors {
		all = append(all, p.errors[len(p.errors)-1-i])
	}
	return all
}

// histories are those of all sinks.
type histories struct {
	mu    sync.Mutex
	sinks map[string]*deliveryHistory
}

// of returns that of a sink, which first makes where there is none yet.
func (p *histories) of(sink string, first func() *deliveryHistory) *deliveryHistory {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sinks[sink] == nil {
		if p.sinks == nil {
			p.sinks = map[string]*deliveryHistory{}
		}
		p.sinks[sink] = first()
	}
	return p.sinks[sink]
}

func (p *histories) delete(sink string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sinks, sink)
}

func (p *histories) all() map[string]*deliveryHistory {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.sinks)
}
