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
	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/source/uploadpost"
)

// secretOf returns the first secret of a source for which send makes samples; "" for a
// source with auth none.
func secretOf(path, name string) (string, error) {
	plan, err := app.Load(path)
	if err != nil {
		return "", err
	}
	for _, s := range plan.Sources {
		own, ok := s.Own.(uploadpost.Config)
		switch {
		case s.Name != name:
		case !ok:
			return "", fmt.Errorf("%w: --source: %s is of type %s, and the samples are of Upload-Post", errUsage, name, s.Kind)
		case own.Auth.None:
			return "", nil
		case own.Auth.Signature == nil || len(own.Auth.Signature.Secrets) == 0:
			return "", fmt.Errorf("%w: --source: %s has no secret for signatures in %s", errUsage, name, path)
		default:
			return own.Auth.Signature.Secrets[0].Reveal(), nil
		}
	}
	return "", fmt.Errorf("%w: --source: there is no source %s in %s", errUsage, name, path)
}

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
