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

// SteerSink pauses or resumes a sink: what is "pause" or "resume".
func (c *Client) SteerSink(ctx context.Context, sink, what string) (s relay.SinkStatus, err error) {
	return s, c.ask(ctx, http.MethodPost, "/sinks/"+url.PathEscape(sink)+"/"+what, nil, &s)
}
