package admin

import (
	"context"
	"net/http"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/relay"
)

func (a *API) sinks(api huma.API) {
	type input struct {
		Sink string `path:"sink" doc:"Name of the sink."`
	}
	type output struct{ Body relay.SinkStatus }
	now := func(sink string) (*output, error) {
		for _, s := range a.Relay.Status() {
			if s.Sink == sink {
				return &output{s}, nil
			}
		}
		return nil, failed(relay.ErrNoSink)
	}
	huma.Register(api, operation("pause-sink", http.MethodPost, "/sinks/{sink}/pause", "Let nothing more be sent to a sink, replays included, until it is resumed: also after a restart, and in every process that shares the journal", 404),
		func(ctx context.Context, in *input) (*output, error) {
			if _, err := a.Relay.PauseSink(ctx, in.Sink); err != nil {
				return nil, failed(err)
			}
			return now(in.Sink)
		})
	huma.Register(api, operation("resume-sink", http.MethodPost, "/sinks/{sink}/resume", "Let a sink be sent to again, from where it stands", 404),
		func(ctx context.Context, in *input) (*output, error) {
			if err := a.Relay.ResumeSink(ctx, in.Sink); err != nil {
				return nil, failed(err)
			}
			return now(in.Sink)
		})
}

type adoptInput struct {
	Sink string `path:"sink" doc:"Name of the sink that is no longer configured."`
	Body AdoptRequest
}

// AdoptRequest is the body of a request to adopt a sink.
type AdoptRequest struct {
	As   string `json:"as" minLength:"1" doc:"Name of the configured sink that gets the events."`
	Rate int    `json:"rate,omitempty" minimum:"1" default:"1000" doc:"Maximum number of events per second."`
}

// Resolve implements huma.Resolver.
func (r *AdoptRequest) Resolve(ctx huma.Context) []error { return note(ctx, named("as", r.As)) }

// DeletedSink is what the deletion of a sink discarded.
type DeletedSink struct {
	Sink      string `json:"sink"`
	Discarded uint64 `json:"discarded" doc:"Events that were pending for the sink and are not delivered to it."`
}

func (a *API) unconfigured(api huma.API) {
	huma.Register(api, operation("adopt-sink", http.MethodPost, "/sinks/{sink}/adopt", "Deliver the pending events of a sink that is no longer configured to another sink, and delete its cursor", 404, 409, 422),
		func(ctx context.Context, in *adoptInput) (*replayOutput, error) {
			re, err := a.Relay.AdoptSink(ctx, in.Sink, in.Body.As, in.Body.Rate)
			return &replayOutput{re}, failed(err)
		})
	huma.Register(api, operation("delete-sink", http.MethodDelete, "/sinks/{sink}", "Delete the cursor of a sink that is no longer configured; this discards the events that were pending for the sink", 404, 409, 422),
		func(ctx context.Context, in *struct {
			Sink string `path:"sink" doc:"Name of the sink that is no longer configured."`
		},
		) (*struct{ Body DeletedSink }, error) {
			n, err := a.Relay.DeleteSink(ctx, in.Sink)
			return &struct{ Body DeletedSink }{DeletedSink{in.Sink, n}}, failed(err)
		})
}

// AdoptSink delivers the pending events of a sink that is no longer configured to
// another sink.
func (c *Client) AdoptSink(ctx context.Context, sink string, request AdoptRequest) (re relay.Replay, err error) {
	return re, c.ask(ctx, http.MethodPost, "/sinks/"+url.PathEscape(sink)+"/adopt", request, &re)
}

// DeleteSink deletes the cursor of a sink that is no longer configured, and
// discards the events that were pending for the sink.
func (c *Client) DeleteSink(ctx context.Context, sink string) (d DeletedSink, err error) {
	return d, c.ask(ctx, http.MethodDelete, "/sinks/"+url.PathEscape(sink), nil, &d)
}

// SteerSink pauses or resumes a sink: what is "pause" or "resume".
func (c *Client) SteerSink(ctx context.Context, sink, what string) (s relay.SinkStatus, err error) {
	return s, c.ask(ctx, http.MethodPost, "/sinks/"+url.PathEscape(sink)+"/"+what, nil, &s)
}
