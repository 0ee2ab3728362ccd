package schema

import (
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
)

// Checked is src whose events are held against the schemas that they name.
// Those of events without one of l are not held against anything. Base is
// schemas.base_url. Mode is one of source's: with Quarantine, Normalize returns a
// *source.MalformedError where an event does not fit, as for a body that cannot
// be read; with Warn the events pass. Either way tell is called, with what may
// be logged. It must not block.
func Checked(src source.Source, l *Library, base, mode string, tell func(*MismatchError)) source.Source {
	if mode != source.SchemaWarn && mode != source.SchemaQuarantine {
		return src
	}
	return &checked{src, l, base, mode == source.SchemaQuarantine, tell}
}

// checked implements source.Source.
type checked struct {
	source.Source
	library    *Library
	base       string
	quarantine bool
	tell       func(*MismatchError)
}

var _ source.Source = (*checked)(nil)

// Normalize implements source.Source.
func (c *checked) Normalize(r *source.Request) ([]event.Event, error) {
	events, err := c.Source.Normalize(r)
	if err != nil {
		return events, err
	}
	var refused error
	for _, e := range events {
		ce := e.CloudEvent
		n, ok := ParseDataSchema(ce.DataSchema(), c.base)
		if !ok {
			continue
		}
		err := c.library.Check(n, ce.DataContentType(), ce.DataEncoded)
		m, mismatch := err.(*MismatchError) //nolint:errorlint // it is not wrapped
		if !mismatch {
			continue
		}
		c.tell(m)
		if c.quarantine && refused == nil {
			refused = &source.MalformedError{Err: m}
		}
	}
	if refused != nil {
		return nil, refused
	}
	return events, nil
}
