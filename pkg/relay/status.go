package relay

import (
	"sync"
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// SinkState is the state of a sink. The set is closed.
type SinkState string

// States of a sink.
const (
	SinkUp         SinkState = "up"         // the last attempt succeeded
	SinkFailing    SinkState = "failing"    // the last attempt failed
	SinkPaused     SinkState = "paused"     // an operator paused the sink
	SinkRemote     SinkState = "remote"     // another relay delivers to the sink
	SinkUnassigned SinkState = "unassigned" // no relay delivers to the sink, or no event was pending yet
)

// BreakerState is the state of a sink's circuit breaker. The set is closed.
type BreakerState string

// The states of a circuit breaker.
const (
	BreakerClosed BreakerState = "closed" // full batches
	BreakerOpen   BreakerState = "open"   // no event arrives; probes of one event
)

// SinkStatus is the status of a sink, as this process knows it.
type SinkStatus struct {
	Sink                string       `json:"sink"`
	Kind                string       `json:"kind" doc:"Type of the sink in the configuration."`
	State               SinkState    `json:"state" enum:"up,failing,paused,remote,unassigned" doc:"up: the last attempt succeeded. failing: the last attempt failed, see error and breaker. paused: an operator paused the sink. remote: another relay delivers to the sink. unassigned: no relay delivers to the sink, or no event was pending yet."`
	Breaker             BreakerState `json:"breaker,omitempty" enum:"closed,open" doc:"State of the circuit breaker; only the owner knows it. closed: the relay sends full batches. open: no event arrives, and the relay probes the sink with one event at a time."`
	Owner               string       `json:"owner,omitempty" doc:"Relay that delivers to the sink. Of the relays that share a journal one relay does."`
	Since               *time.Time   `json:"since,omitempty" doc:"Time at which the owner took the sink over."`
	Local               bool         `json:"local" doc:"Whether the relay that answers is the owner."`
	LagEvents           uint64       `json:"lag_events" doc:"Events in the journal that are not done for the sink: not delivered, filtered, dead-lettered or discarded."`
	Committed           journal.Seq  `json:"committed" doc:"Sequence of the sink's cursor: each event up to this sequence is delivered, filtered, dead-lettered or discarded."`
	Oldest              *time.Time   `json:"oldest,omitempty" doc:"Acceptance time of the oldest event that is being delivered; only the owner knows it."`
	BlockedKeys         int          `json:"blocked_keys,omitempty" doc:"Partition keys whose first event failed and waits for its next attempt, with the later events of the key. An event without a partition key is a key of its own. Only the owner knows the number."`
	BlockedDestinations int          `json:"blocked_destinations,omitempty" doc:"Destinations, such as topic partitions or subjects, that fail, and whose events wait. The relay probes each with one event at a time."`
	DeferredEvents      uint64       `json:"deferred_events,omitempty" doc:"Events behind a failed event, or beyond the share of their partition key, that are read again later."`
	ReadLimit           string       `json:"read_limit,omitempty" enum:"max_pending,max_pending_bytes,max_deferred_keys,sink_down" doc:"Why the relay has stopped to read ahead for the sink: a limit, or the sink is down; absent if the relay reads ahead."`

	Paused  *time.Time `json:"paused,omitempty" doc:"Time at which the sink was paused."`
	Error   string     `json:"error,omitempty" doc:"Error of the last attempt to deliver; absent if the last attempt succeeded."`
	Failing *time.Time `json:"failing_since,omitempty" doc:"Time since which every attempt to deliver failed; absent if the last attempt succeeded."`
	Filter  string     `json:"filter,omitempty" doc:"CEL expression of the configuration that selects the events of the sink."`

	FilterCounts *FilterCounts `json:"filter_counts,omitempty" doc:"Counts of the filter; absent if the sink has no filter."`

	RecentErrors []DeliveryError `json:"recent_errors,omitempty" doc:"Errors of failed attempts, newest first, as far as this process remembers."`
}

// Status returns the status of each sink, in the order of the configuration.
func (r *Relay) Status() []SinkStatus {
	pumps := r.pumpSnapshot()
	all := make([]SinkStatus, len(pumps))
	for i, p := range pumps {
		all[i] = p.status()
	}
	return all
}

// shown is the part of the status that the goroutine of Pump.Run publishes.
type shown struct {
	mu                    sync.Mutex
	blocked, destinations int
	deferred              uint64
	limit                 string
}

func (s *shown) set(of *schedule, limit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked, s.destinations, s.deferred, s.limit = of.blocked, len(of.destinations), of.deferredCount, limit
}

func (s *shown) into(status *SinkStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status.BlockedKeys, status.BlockedDestinations, status.DeferredEvents, status.ReadLimit = s.blocked, s.destinations, s.deferred, s.limit
}

func (p *Pump) status() SinkStatus {
	h := p.cursor.Owner()
	s := SinkStatus{Sink: p.name, Kind: p.kind, Filter: p.settings.Filter, FilterCounts: p.filter.counts(), RecentErrors: p.history.recentErrors(), State: SinkUp, Owner: h.Name, Local: h.Local, LagEvents: p.cursor.Lag(), Committed: p.cursor.Committed()}
	if !h.Since.IsZero() {
		s.Since = &h.Since
	}
	if pause := p.history.pause.Load(); pause != nil {
		s.Paused = &pause.Since
	}
	switch {
	case s.Paused != nil:
		s.State = SinkPaused
	case h.Local && p.health.failing.Load():
		s.State = SinkFailing
	case h.Local:
	case h.Name == "" && h.Since.IsZero():
		s.State = SinkUnassigned
	default:
		s.State = SinkRemote
	}
	if h.Local {
		s.Breaker = BreakerClosed
		if p.health.open.Load() {
			s.Breaker = BreakerOpen
		}
	}
	if since := p.health.since.Load(); h.Local && p.health.failing.Load() && since != nil && len(s.RecentErrors) > 0 {
		s.Error, s.Failing = s.RecentErrors[0].Error, since
	}
	if h.Local {
		p.shown.into(&s)
	}
	if head := p.metrics.head.Load(); head != 0 && h.Local {
		oldest := time.Unix(0, head).UTC()
		s.Oldest = &oldest
	}
	return s
}
