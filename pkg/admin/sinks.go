package admin

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
)

func (a *API) sinks(api huma.API) {
	type input struct {
		Sink string `path:"sink" doc:"Name of the sink."`
	}
	type output struct{ Body relay.SinkStatus }
	status := func(sink string) (*output, error) {
		for _, s := range a.Relay.Status() {
			if s.Sink == sink {
				return &output{s}, nil
			}
		}
		return nil, failed(relay.ErrNoSink)
	}
	huma.Register(api, operation("pause-sink", http.MethodPost, "/sinks/{sink}/pause", "Pause delivery to a sink, replays included, until the sink is resumed; the pause survives a restart and applies to every relay of the journal", 404),
		func(ctx context.Context, in *input) (*output, error) {
			if _, err := a.Relay.PauseSink(ctx, in.Sink); err != nil {
				return nil, failed(err)
			}
			return status(in.Sink)
		})
	huma.Register(api, operation("resume-sink", http.MethodPost, "/sinks/{sink}/resume", "Resume delivery to a sink at its cursor; events beyond discard.after or discard.beyond of the sink are discarded", 404),
		func(ctx context.Context, in *input) (*output, error) {
			if err := a.Relay.ResumeSink(ctx, in.Sink); err != nil {
				return nil, failed(err)
			}
			return status(in.Sink)
		})
	huma.Register(api, operation("list-blocked", http.MethodGet, "/sinks/{sink}/blocked", "List the failed events of a sink that wait for their next attempt, and the destinations of the sink that fail; empty if another relay delivers to the sink", 404, 422),
		func(ctx context.Context, in *struct {
			Sink  string `path:"sink" doc:"Name of the sink."`
			Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of listed events."`
		},
		) (*struct{ Body relay.Blocked }, error) {
			b, err := a.Relay.Blocked(ctx, in.Sink, in.Limit)
			return &struct{ Body relay.Blocked }{b}, failed(err)
		})
	huma.Register(api, operation("resolve-blocked", http.MethodPost, "/sinks/{sink}/blocked/{seq}", "Retry a failed event of a sink at once, turn the event into a dead letter, or discard the event, which then is not delivered", 404, 409, 422),
		func(ctx context.Context, in *blockedInput) (*struct{ Body BlockedRequest }, error) {
			err := a.Relay.ResolveBlocked(ctx, in.Sink, journal.Seq(in.Seq), in.Body.Decision, in.Body.WholeKey)
			return &struct{ Body BlockedRequest }{in.Body}, failed(err)
		})
}

type blockedInput struct {
	Sink string `path:"sink" doc:"Name of the sink."`
	Seq  uint64 `path:"seq" minimum:"1" doc:"Sequence of the failed event."`
	Body BlockedRequest
}

// BlockedRequest is the body of a request to decide about a failed event.
type BlockedRequest struct {
	Decision relay.BlockedDecision `json:"decision" enum:"retry,dead-letter,discard" doc:"retry: try again at once. dead-letter: turn the event into a dead letter. discard: discard the event, which then is not delivered and does not become a dead letter."`
	WholeKey bool                  `json:"whole_key,omitempty" doc:"Decide also about the later events of its partition key that are stored now. Not for retry."`
}

// Blocked returns the failed events of a sink.
func (c *Client) Blocked(ctx context.Context, sink string, limit int) (b relay.Blocked, err error) {
	return b, c.call(ctx, http.MethodGet, "/sinks/"+url.PathEscape(sink)+"/blocked?limit="+strconv.Itoa(limit), nil, &b)
}

// ResolveBlocked decides about a failed event of a sink.
func (c *Client) ResolveBlocked(ctx context.Context, sink string, seq uint64, request BlockedRequest) error {
	return c.call(ctx, http.MethodPost, "/sinks/"+url.PathEscape(sink)+"/blocked/"+strconv.FormatUint(seq, 10), request, &request)
}

type adoptInput struct {
	Sink string `path:"sink" doc:"Name of the removed sink."`
	Body AdoptRequest
}

// AdoptRequest is the body of a request to adopt a sink.
type AdoptRequest struct {
	As   string `json:"as" minLength:"1" doc:"Name of the configured sink that gets the events."`
	Rate int    `json:"rate,omitempty" minimum:"1" default:"1000" doc:"Maximum number of events per second."`
}

// Resolve implements huma.Resolver.
func (r *AdoptRequest) Resolve(ctx huma.Context) []error { return addSubject(ctx, named("as", r.As)) }

// DeletedSink is the result of deleting a sink.
type DeletedSink struct {
	Sink      string `json:"sink"`
	Discarded uint64 `json:"discarded" doc:"Number of discarded events, which were pending for the sink."`
}

func (a *API) unconfigured(api huma.API) {
	huma.Register(api, operation("adopt-sink", http.MethodPost, "/sinks/{sink}/adopt", "Deliver the pending events of a removed sink to a configured sink, and delete the cursor of the removed sink", 404, 409, 422),
		func(ctx context.Context, in *adoptInput) (*replayOutput, error) {
			re, err := a.Relay.AdoptSink(ctx, in.Sink, in.Body.As, in.Body.Rate)
			return &replayOutput{re}, failed(err)
		})
	huma.Register(api, operation("delete-sink", http.MethodDelete, "/sinks/{sink}", "Delete the cursor of a removed sink, and discard the events that were pending for the sink", 404, 409, 422),
		func(ctx context.Context, in *struct {
			Sink string `path:"sink" doc:"Name of the removed sink."`
		},
		) (*struct{ Body DeletedSink }, error) {
			n, err := a.Relay.DeleteSink(ctx, in.Sink)
			return &struct{ Body DeletedSink }{DeletedSink{in.Sink, n}}, failed(err)
		})
}

// AdoptSink delivers the pending events of a removed sink to a configured sink.
func (c *Client) AdoptSink(ctx context.Context, sink string, request AdoptRequest) (re relay.Replay, err error) {
	return re, c.call(ctx, http.MethodPost, "/sinks/"+url.PathEscape(sink)+"/adopt", request, &re)
}

// DeleteSink deletes the cursor of a removed sink, and discards the events that were
// pending for the sink.
func (c *Client) DeleteSink(ctx context.Context, sink string) (d DeletedSink, err error) {
	return d, c.call(ctx, http.MethodDelete, "/sinks/"+url.PathEscape(sink), nil, &d)
}

// SteerSink pauses or resumes a sink: action is "pause" or "resume".
func (c *Client) SteerSink(ctx context.Context, sink, action string) (s relay.SinkStatus, err error) {
	return s, c.call(ctx, http.MethodPost, "/sinks/"+url.PathEscape(sink)+"/"+action, nil, &s)
}
