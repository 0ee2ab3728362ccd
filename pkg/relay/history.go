package relay

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// deliveryHistory is the state of a sink in this process: its pause, recent deliveries and
// recent errors. The history outlives the pump: a sink whose settings change keeps the
// history.
//
// | state | fields | changed by |
// |---|---|---|
// | pauses unknown | pausesLoaded is open, pause is nil | readDecisions closes pausesLoaded |
// | active | pause is nil | setPause |
// | paused | pause is set | setPause |
//
// The methods may be called concurrently.
type deliveryHistory struct {
	pause        atomic.Pointer[activePause] // nil without a pause
	pausesLoaded <-chan struct{}             // closed when the pauses are read from the journal
	sink         string
	stored       checkpointCache

	mu          sync.Mutex
	since       time.Time   // start of the history
	startSeq    journal.Seq // cursor at the start of the history
	acked       []ackRange  // a ring; once full, the oldest range is at oldest
	oldest      int
	errors      []DeliveryError // newest last
	checkpoints checkpoints     // checkpoints to be stored
}

// ackRange is a range of events that the broker acknowledged in one attempt. The range may
// contain events that the filter left out.
type ackRange struct {
	from, to journal.Seq
	at       time.Time
	attempts int
}

const (
	// A range has 56 bytes and covers up to one batch. The history of a sink takes at
	// most half a megabyte, and covers two million events at full batches.
	maxAckRanges    = 8192
	maxRecentErrors = 10
)

// DeliveryError is an error of consecutive attempts to deliver.
type DeliveryError struct {
	Error string    `json:"error" doc:"Error of the broker, or of the connection to the broker."`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int       `json:"count" doc:"Consecutive attempts that failed with this error."`
}

// add records acknowledged ranges.
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

// deliveredAt returns the delivery time of an event and its attempts. If only an upper
// bound is known, before is set. If another process delivered the event, all results are
// zero.
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

// recordError records the error of a failed attempt.
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

// recentErrors returns the recorded errors, newest first.
func (p *deliveryHistory) recentErrors() []DeliveryError {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]DeliveryError, 0, len(p.errors))
	for i := range p.errors {
		all = append(all, p.errors[len(p.errors)-1-i])
	}
	return all
}

// histories holds the history of each sink.
type histories struct {
	mu    sync.Mutex
	sinks map[string]*deliveryHistory
}

// of returns the history of a sink; first makes a missing one.
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
