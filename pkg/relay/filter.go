package relay

import (
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/filter"
)

// FilterCounts counts the results of a sink's filter since the relay started, or since a
// reload changed the settings of the sink.
type FilterCounts struct {
	Matched   uint64 `json:"matched" doc:"Events that the filter matched."`
	Filtered  uint64 `json:"filtered" doc:"Events that the filter did not match, events with an evaluation error included."`
	Errors    uint64 `json:"errors" doc:"Events for which the filter could not be evaluated. They are not delivered to the sink."`
	LastError string `json:"last_error,omitempty" doc:"Why the filter could not be evaluated, most recently."`
}

// NeverMatched reports whether a filter has seen events and matched none.
func (c FilterCounts) NeverMatched() bool { return c.Matched == 0 && c.Filtered > 0 }

// sinkFilter is the filter of a sink with its counts. The methods may be called
// concurrently.
type sinkFilter struct {
	filter.Filter

	log     *zap.Logger
	metrics *sinkMetrics

	matched, filtered, errors atomic.Uint64
	lastError                 atomic.Pointer[string] // nil before the first error
}

// deadLettersOnly is the filter of a sink that gets nothing but the dead letters of other sinks.
const deadLettersOnly = "false"

// selects reports whether the filter matches e, and counts the result. An evaluation error
// is no match. The filter deadLettersOnly counts nothing: it is no mistake that it never
// matches.
func (f *sinkFilter) selects(e event.Event) bool {
	if f.String() == deadLettersOnly {
		return false
	}
	matched, err := f.Matches(e)
	if err != nil {
		f.errors.Add(1)
		f.metrics.filterErrors.Inc()
		text := err.Error()
		if last := f.lastError.Swap(&text); last == nil || *last != text {
			f.log.Error("filter cannot be evaluated, the event is not delivered to this sink", zap.String("filter", f.String()), zap.Error(err),
				zap.String("event_id", e.CloudEvent.ID()), zap.String("event_type", e.CloudEvent.Type()))
		}
	}
	if matched {
		f.matched.Add(1)
		f.metrics.matched.Inc()
		return true
	}
	f.filtered.Add(1)
	f.metrics.filtered.Inc()
	return false
}

// counts returns the counts of the filter, or nil without a filter.
func (f *sinkFilter) counts() *FilterCounts {
	if f.String() == "" {
		return nil
	}
	c := &FilterCounts{Matched: f.matched.Load(), Filtered: f.filtered.Load(), Errors: f.errors.Load()}
	if last := f.lastError.Load(); last != nil {
		c.LastError = *last
	}
	return c
}
