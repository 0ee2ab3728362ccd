package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
)

// Status is how a relay is doing.
type Status struct {
	Name    string             `json:"name" doc:"Name of the process that answers."`
	Version string             `json:"version"`
	Journal JournalStatus      `json:"journal"`
	Sinks   []relay.SinkStatus `json:"sinks"`

	UnconfiguredSinks []relay.UnconfiguredSink `json:"unconfigured_sinks" doc:"Sinks that the journal has a cursor of and the configuration does not: removed or renamed sinks."`
}

// JournalStatus is how the journal is doing.
type JournalStatus struct {
	Engine       string      `json:"engine" enum:"local,jetstream"`
	Problem      string      `json:"problem,omitempty" doc:"Why no webhooks are taken; absent where they are."`
	Events       uint64      `json:"events" doc:"Events that are stored, delivered or not."`
	Oldest       journal.Seq `json:"oldest" doc:"Place of the oldest event."`
	Last         journal.Seq `json:"last" doc:"Place of the newest event."`
	Bytes        uint64      `json:"bytes" doc:"Room that the journal takes."`
	MaxBytes     uint64      `json:"max_bytes,omitempty" doc:"At which webhooks are refused; absent is no limit."`
	Spilled      uint64      `json:"spilled,omitempty" doc:"Events and requests that this process keeps until the cluster takes them."`
	SpilledSince *time.Time  `json:"spilled_since,omitempty" doc:"When the oldest of them was accepted."`
}

func (a *API) status(api huma.API) {
	huma.Register(api, operation("status", http.MethodGet, "/status", "How the journal and each sink are doing, and which process delivers to which sink"),
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

// Status asks how the relay is doing.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, http.MethodGet, "/status", nil, &s)
}
