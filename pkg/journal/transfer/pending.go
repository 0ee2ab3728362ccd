package transfer

import (
	"context"
	"slices"

	"github.com/postwire/postwire/pkg/journal/seqset"
)

// Pending returns those of the sinks that have an undelivered event in src, in the given
// order. A sink without a cursor in src has none, unless src has no cursor at all: then the
// relay of src ended before it knew its sinks.
func Pending(ctx context.Context, src Source, sinks []string) ([]string, error) {
	cursors := map[string]Cursor{}
	for c, err := range src.Cursors(ctx) {
		if err != nil {
			return nil, err
		}
		cursors[c.Name] = c
	}
	var pending []string
	for _, sink := range sinks {
		c, ok := cursors[sink]
		if !ok && len(cursors) > 0 {
			continue
		}
		c.Name = sink
		waits, err := c.waits(ctx, src)
		if err != nil {
			return nil, err
		}
		if waits {
			pending = append(pending, sink)
		}
	}
	return slices.Clip(pending), nil
}

// waits reports whether src has an event after the cursor that is not done.
func (c Cursor) waits(ctx context.Context, src Source) (bool, error) {
	done := seqset.Of(c.Committed, c.Done)
	for e, err := range src.Events(ctx, c.Committed+1) {
		if err != nil {
			return false, err
		}
		if !done.Has(e.Seq) && (e.TargetSink == "" || e.TargetSink == c.Name) {
			return true, nil
		}
	}
	return false, nil
}
