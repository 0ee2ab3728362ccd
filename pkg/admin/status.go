package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
)

// Status is the state of a relay.
type Status struct {
	Name    string             `json:"name" doc:"Name of the answering relay."`
	Version string             `json:"version"`
	Journal JournalStatus      `json:"journal"`
	Sinks   []relay.SinkStatus `json:"sinks"`

	UnconfiguredSinks []relay.UnconfiguredSink `json:"unconfigured_sinks" doc:"Removed or renamed sinks: sinks with a cursor in the journal that are not in the configuration."`
}

// JournalStatus is the state of the journal.
type JournalStatus struct {
	Engine       string      `json:"engine" enum:"local,jetstream"`
	Problem      string      `json:"problem,omitempty" doc:"Reason for refusing webhooks; absent while the journal accepts events."`
	Events       uint64      `json:"events" doc:"Number of stored events, delivered or not."`
	Oldest       journal.Seq `json:"oldest" doc:"Sequence of the oldest event."`
	Last         journal.Seq `json:"last" doc:"Sequence of the newest event."`
	Bytes        uint64      `json:"bytes" doc:"Size of the journal in bytes."`
	MaxBytes     uint64      `json:"max_bytes,omitempty" doc:"Maximum size of the journal in bytes; beyond, the relay refuses webhooks. Absent without a limit."`
	Spilled      uint64      `json:"spilled,omitempty" doc:"Number of events and requests in the spill of this relay, kept until the NATS cluster accepts events again."`
	SpilledSince *time.Time  `json:"spilled_since,omitempty" doc:"Acceptance time of the oldest event in the spill."`
}

func (a *API) status(api huma.API) {
	huma.Register(api, operation("status", http.MethodGet, "/status", "Show the state of the journal and of every sink, with the owner of every sink"),
		func(context.Context, *struct{}) (*struct{ Body Status }, error) {
			u := a.Journal.Usage()
			s := Status{
				Name: a.Name, Version: a.Version, Sinks: a.Relay.Status(), UnconfiguredSinks: a.Relay.Unconfigured(),
				Journal: JournalStatus{
					Engine: a.Engine, Events: u.Events, Oldest: a.Journal.Oldest(), Last: a.Journal.Last(),
					Bytes: u.Bytes, MaxBytes: u.MaxBytes, Spilled: u.Spilled,
				},
			}
			if !u.SpilledSince.IsZero() {
				s.Journal.SpilledSince = &u.SpilledSince
			}
			if err := a.Journal.Check(); err != nil {
				s.Journal.Problem = a.Scrub.Text(err.Error())
			}
			return &struct{ Body Status }{s}, nil
		})
}

// Status returns the state of the relay.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/status", nil, &s)
}
