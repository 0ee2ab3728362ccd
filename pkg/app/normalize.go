package app

import (
	"fmt"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/sinks"
)

// Normalize returns the events that a source of the plan makes of a request, as the
// running relay does, without authentication and without storing events. The errors are
// those of source.Source.Normalize.
func (p *Plan) Normalize(s source.Configured, r *source.Request) ([]event.Event, error) {
	src, err := s.Open(p.sourceEnv(s))
	if err != nil {
		return nil, fmt.Errorf("opening the source: %w", err)
	}
	events, err := p.checked(s, src, func(*schema.MismatchError) {}).Normalize(r)
	for i := range events {
		events[i].SourceName = s.Name // as the journal does
	}
	return events, err
}

// Routed is the routing of an event to one sink.
type Routed struct {
	Sink        string `json:"sink"`
	Match       bool   `json:"match"`                 // the filter matches
	Error       string `json:"error,omitempty"`       // why the filter could not be evaluated
	Noun        string `json:"noun,omitempty"`        // subject, topic or receiver
	Destination string `json:"destination,omitempty"` // name of the destination
}

// Route returns, for each sink of the plan, whether its filter matches an event, and the
// destination. Route sends nothing.
func (p *Plan) Route(e event.Event) []Routed {
	all := make([]Routed, len(p.Sinks))
	for i, s := range p.Sinks {
		all[i].Sink = s.Name
		selects, err := filter.Parse(s.Settings.Filter)
		if err == nil {
			all[i].Match, err = selects.Matches(e)
		}
		if err != nil {
			all[i].Error = err.Error()
		}
		if own, ok := s.Own.(sinks.Config); ok && all[i].Match {
			route := own.Route()
			all[i].Noun, all[i].Destination = route.Noun, route.Destination(e).Name
		}
	}
	return all
}

// checked checks the events of a source against their schemas, as configured.
func (p *Plan) checked(s source.Configured, src source.Source, onMismatch func(*schema.MismatchError)) source.Source {
	return schema.Checked(src, p.Schemas, p.schemaBase(), s.Settings.Schema, onMismatch)
}
