package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
)

// waitDelivered waits until every sink has the event, and no sink is failing: an event that
// is a duplicate may have been delivered long ago.
func waitDelivered(ctx context.Context, c *admin.Client, id string, wait time.Duration, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		why, err := undelivered(ctx, c, id)
		if err == nil && len(why) == 0 {
			_, err := fmt.Fprintf(out, "event %s is delivered to every sink\n", id)
			return err
		}
		if permanent, ok := errors.AsType[*refusedError](err); ok {
			return permanent
		}
		if sleep.For(ctx, 200*time.Millisecond) != nil {
			if err != nil {
				return fmt.Errorf("asking the relay about the event %s: %w", id, err)
			}
			return fmt.Errorf("the event %s is not delivered after %v: %s", id, wait, strings.Join(why, "; "))
		}
	}
}

// refusedError is the error of an event that a sink does not get.
type refusedError struct{ id, status string }

func (e *refusedError) Error() string {
	return fmt.Sprintf("the event %s is not delivered: %s", e.id, e.status)
}

// undelivered returns the reasons for which an event is not delivered yet.
func undelivered(ctx context.Context, c *admin.Client, id string) (why []string, err error) {
	found, err := c.Search(ctx, url.Values{"id": {id}, "limit": {"200"}})
	if err != nil {
		return nil, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	seen := false
	for _, e := range found.Events {
		var attributes struct{ ID string }
		if err := json.Unmarshal(e.Event.RawMessage, &attributes); err != nil {
			return nil, err
		}
		if attributes.ID != id || e.TargetSink != "" || seen {
			continue
		}
		seen = true // the newest
		for _, d := range e.Deliveries {
			switch d.State {
			case relay.Delivered, relay.Filtered, relay.Skipped, relay.Redelivered:
			case relay.Pending:
				why = append(why, statusText(d))
			default:
				return nil, &refusedError{id, statusText(d)}
			}
		}
	}
	if !seen {
		why = append(why, "the journal does not have the event")
	}
	for _, s := range status.Sinks {
		switch {
		case s.State == relay.SinkFailing:
			why = append(why, fmt.Sprintf("sink %s is failing: %s", oneLine(s.Sink), oneLine(s.Error)))
		case s.Paused != nil:
			why = append(why, fmt.Sprintf("sink %s is paused", oneLine(s.Sink)))
		}
	}
	return why, nil
}
