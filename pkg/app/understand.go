package app

import (
	"fmt"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/pkg/source"
)

// Understand returns the events that a source of the plan makes of a request,
// as the running relay would: it is not asked for proof, and nothing is stored.
// Errors are those of source.Source's Normalize.
func (p *Plan) Understand(s source.Configured, r *source.Request) ([]event.Event, error) {
	src, err := s.Open(p.sourceEnv(s))
	if err != nil {
		return nil, fmt.Errorf("opening the source: %w", err)
	}
	return p.checked(s, src, func(*schema.MismatchError) {}).Normalize(r)
}

// checked holds the events of a source against their schemas, as its block says.
func (p *Plan) checked(s source.Configured, src source.Source, tell func(*schema.MismatchError)) source.Source {
	return schema.Checked(src, p.Schemas, p.schemaBase(), s.Settings.Schema, tell)
}
