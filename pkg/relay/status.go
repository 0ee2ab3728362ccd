package relay

import (
	"time"

	"github.com/postwire/postwire/pkg/journal"
)

// SinkState is how a sink is doing. The set is closed.
type SinkState string

// The states there are.
const (
	SinkUp        SinkState = "up"        // the last attempt was taken
	SinkFailing   SinkState = "failing"   // the last attempt failed
	SinkProbed    SinkState = "probed"    // nothing arrives; it is probed with one event at a time
	SinkPaused    SinkState = "paused"    // an operator lets nothing be sent
	SinkElsewhere SinkState = "elsewhere" // another process delivers to it, and knows
	SinkNobody    SinkState = "nobody"    // no process delivers to it, or nothing was to be delivered yet
)

// SinkStatus is a sink as this process sees it.
type SinkStatus struct {
	Sink      string      `json:"sink"`
	Kind      string      `json:"kind" doc:"Type of the sink in the configuration."`
	State     SinkState   `json:"state" enum:"up,failing,probed,paused,elsewhere,nobody"`
	Holder    string      `json:"holder,omitempty" doc:"Process that delivers to the sink; of those that share a journal one does."`
	Since     *time.Time  `json:"since,omitempty" doc:"When it began to."`
	Here      bool        `json:"here" doc:"Whether that is the process that answers."`
	Behind    uint64      `json:"behind" doc:"Events in the journal that the sink has not been given."`
	Committed journal.Seq `json:"committed" doc:"Place of the newest event that is done with."`
	Oldest    *time.Time  `json:"oldest,omitempty" doc:"When the oldest event in hand was accepted; only of the process that delivers."`
	Paused    *time.Time  `json:"paused,omitempty" doc:"Since when it is paused."`
	Error     string      `json:"error,omitempty" doc:"Why the last attempt to deliver failed; absent where it did not fail."`
	Failing   *time.Time  `json:"failing_since,omitempty" doc:"When attempts to deliver began to fail; absent where the last one did not."`
	Filter    string      `json:"filter,omitempty" doc:"CEL expression of the configuration that selects the events of the sink."`

	FilterCounts *FilterCounts `json:"filter_counts,omitempty" doc:"What the filter matched; absent where the sink has no filter."`

	Troubles []Trouble `json:"troubles,omitempty" doc:"Why attempts to deliver failed, the newest first, as far as this process remembers."`
}

// Status returns how each sink is doing, in the order of the configuration.
func (r *Relay) Status() []SinkStatus {
	pumps := r.now()
	all := make([]SinkStatus, len(pumps))
	for i, p := range pumps {
		all[i] = p.status()
	}
	return all
}

func (p *Pump) status() SinkStatus {
	h := p.cursor.Holder()
	s := SinkStatus{Sink: p.name, Kind: p.kind, Filter: p.settings.Filter, FilterCounts: p.filter.counts(), Troubles: p.past.told(), State: SinkUp, Holder: h.Name, Here: h.Here, Behind: p.cursor.Behind(), Committed: p.cursor.Committed()}
	if !h.Since.IsZero() {
		s.Since = &h.Since
	}
	if pause := p.past.pause.Load(); pause != nil {
		s.Paused = &pause.Since
	}
	switch {
	case s.Paused != nil:
		s.State = SinkPaused
	case h.Here && p.open.Load():
		s.State = SinkProbed
	case h.Here && p.failing.Load():
		s.State = SinkFailing
	case h.Here:
	case h.Name == "" && h.Since.IsZero():
		s.State = SinkNobody
	default:
		s.State = SinkElsewhere
	}
	if since := p.failingSince.Load(); h.Here && p.failing.Load() && since != nil && len(s.Troubles) > 0 {
		s.Error, s.Failing = s.Troubles[0].Error, since
	}
	if head := p.metrics.head.Load(); head != 0 && h.Here {
		oldest := time.Unix(0, head).UTC()
		s.Oldest = &oldest
	}
	return s
}
