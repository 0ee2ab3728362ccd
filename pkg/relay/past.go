package relay

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// past is what this process knows of a sink besides what is stored: whether it
// is paused, what was delivered lately, and what went wrong. It outlives pumps:
// a sink whose settings change keeps it.
type past struct {
	pause atomic.Pointer[pausing] // nil while it is not paused
	noted <-chan struct{}         // closed when that is known
	sink  string
	known known // of what is stored

	mu       sync.Mutex
	since    time.Time   // since when it knows anything
	stood    journal.Seq // where the cursor stood then
	runs     []run       // a ring; the oldest is at oldest when it is full
	oldest   int
	troubles []DeliveryError // the newest last
	marks    marks           // of runs, to be stored
}

// run is events that a broker acknowledged in one attempt, one behind the other
// but for those that the sink was not to get.
type run struct {
	from, to journal.Seq
	at       time.Time
	attempts int
}

const (
	// A run is 56 bytes, and as many as a whole batch of events: what is kept
	// is never more than half a megabyte a sink, and in a flood goes back two
	// million events.
	mostRuns     = 8192
	mostTroubles = 10
)

// DeliveryError is why attempts to deliver failed.
type DeliveryError struct {
	Error string    `json:"error" doc:"Error of the broker, or of the connection to the broker."`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int       `json:"count" doc:"Consecutive attempts that failed with this error."`
}

// took keeps in mind what a broker has acknowledged.
func (p *past) took(runs []run) {
	if len(runs) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range runs {
		p.marks.add(p.sink, r)
		if len(p.runs) < mostRuns {
			p.runs = append(p.runs, r)
			continue
		}
		p.runs[p.oldest] = r
		p.oldest = (p.oldest + 1) % mostRuns
	}
}

// when says when the event at a place was delivered, and in how many attempts;
// or before which time, where that is all that is known; or nothing, where
// another process has done it.
func (p *past) when(s journal.Seq) (at, before time.Time, attempts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.runs {
		r := p.runs[(p.oldest+len(p.runs)-1-i)%len(p.runs)]
		if r.from <= s && s <= r.to {
			return r.at, time.Time{}, r.attempts
		}
	}
	if s <= p.stood {
		return time.Time{}, p.since, 0
	}
	if len(p.runs) == mostRuns {
		if first := p.runs[p.oldest]; s < first.from {
			return time.Time{}, first.at, 0
		}
	}
	return time.Time{}, time.Time{}, 0
}

// trouble keeps in mind why an attempt failed.
func (p *past) trouble(err error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.troubles); n > 0 && p.troubles[n-1].Error == err.Error() {
		p.troubles[n-1].Last = now
		p.troubles[n-1].Count++
		return
	}
	if len(p.troubles) == mostTroubles {
		p.troubles = append(p.troubles[:0], p.troubles[1:]...)
	}
	p.troubles = append(p.troubles, DeliveryError{Error: err.Error(), First: now, Last: now, Count: 1})
}

// told returns what went wrong, the newest first.
func (p *past) told() []DeliveryError {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]DeliveryError, 0, len(p.troubles))
	for i := range p.troubles {
		all = append(all, p.troubles[len(p.troubles)-1-i])
	}
	return all
}

// pasts are those of all sinks.
type pasts struct {
	mu    sync.Mutex
	sinks map[string]*past
}

// of returns that of a sink, which first makes where there is none yet.
func (p *pasts) of(sink string, first func() *past) *past {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sinks[sink] == nil {
		if p.sinks == nil {
			p.sinks = map[string]*past{}
		}
		p.sinks[sink] = first()
	}
	return p.sinks[sink]
}

func (p *pasts) forget(sink string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sinks, sink)
}

func (p *pasts) all() map[string]*past {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.sinks)
}
