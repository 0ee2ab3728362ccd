package schema

import (
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
)

// Checked returns src with a check of its events against the schemas that their dataschema
// names. Events without a schema of l pass. Base is schemas.base_url. With mode
// source.Quarantine, Normalize returns a *source.MalformedError for an event that does not
// match; with source.Warn the event passes. Both modes call onMismatch, with text that may be
// logged; onMismatch must not block.
func Checked(src source.Source, l *Library, base, mode string, onMismatch func(*MismatchError)) source.Source {
	if mode != source.SchemaWarn && mode != source.SchemaQuarantine {
		return src
	}
	return &checked{src, l, base, mode == source.SchemaQuarantine, onMismatch}
}

// checked implements source.Source.
type checked struct {
	source.Source
	library    *Library
	base       string
	quarantine bool
	onMismatch func(*MismatchError)
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
		m, mismatch := err.(*MismatchError) //nolint:errorlint // never wrapped
		if !mismatch {
			continue
		}
		c.onMismatch(m)
		if c.quarantine && refused == nil {
			refused = &source.MalformedError{Err: m}
		}
	}
	if refused != nil {
		return nil, refused
	}
	return events, nil
}
