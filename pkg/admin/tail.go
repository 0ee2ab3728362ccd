package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
)

// Seen is an event as a tail sees it first.
type Seen struct {
	Seq      journal.Seq  `json:"seq" doc:"Place in the journal."`
	Accepted time.Time    `json:"accepted"`
	Source   string       `json:"source,omitempty" doc:"Name of the source that took it in; absent where an older version did not write it down."`
	Event    CloudEvent   `json:"event" doc:"Without data, unless it was asked for."`
	Bytes    int          `json:"bytes" doc:"Size of its data."`
	Only     string       `json:"only,omitempty" doc:"The one sink that a retried event is for."`
	Of       journal.Seq  `json:"of,omitempty" doc:"Where a retried event was first."`
	Fates    []relay.Fate `json:"fates" doc:"What has become of it at each sink."`
}

func seenOf(r journal.Record, fates []relay.Fate, data bool) (Seen, error) {
	text, err := attributes(r.Event, data)
	return Seen{
		Seq: r.Seq, Accepted: r.Accepted, Source: r.Event.SourceName, Event: CloudEvent{text}, Bytes: len(r.Event.CloudEvent.DataEncoded),
		Only: r.Only, Of: r.Of, Fates: fates,
	}, err
}

// Became is what became of an event at one sink after it was seen.
type Became struct {
	Seq journal.Seq `json:"seq"`
	ID  string      `json:"id" doc:"CloudEvents id."`
	relay.Fate
	At    time.Time `json:"at" doc:"When that was seen."`
	After float64   `json:"after" doc:"Seconds since the event was accepted."`
}

// Missed is how many events a tail with a most did not tell of.
type Missed struct {
	Events uint64 `json:"events" doc:"Since that was said last. Where a tail fell far behind in a cluster, places of the journal, of which not each has an event."`
}

// Quiet says that the tail still runs.
type Quiet struct {
	Last journal.Seq `json:"last" doc:"Place of the newest event."`
}

type tailInput struct {
	Filter string `query:"filter" doc:"CEL expression over the attributes that selects the events." example:"platform == \"instagram\""`
	Source string `query:"source" doc:"Only events that the source of this name took in." example:"upload-post"`
	From   When   `query:"from" doc:"Begin with events accepted at this time: RFC 3339, or how long ago, such as 10m. Empty is from now on."`
	Data   bool   `query:"data" doc:"Show the events' data too, which is personal."`
	Most   int    `query:"most" minimum:"0" maximum:"1000" doc:"Most events a second; what comes beyond is counted only, and told as missed. 0 is all."`
	Last   int    `header:"Last-Event-ID" doc:"Begin behind the event at this place."`

	filter filter.Filter
}

// Resolve implements huma.Resolver: it checks what the schema cannot say.
func (in *tailInput) Resolve(huma.Context) []error {
	var errs []error
	var err error
	if in.filter, err = filter.Parse(in.Filter); err != nil {
		errs = append(errs, &huma.ErrorDetail{Message: err.Error(), Location: "query.filter"})
	}
	if _, err := in.From.Time(time.Time{}); err != nil {
		errs = append(errs, &huma.ErrorDetail{Message: err.Error(), Location: "query.from"})
	}
	return errs
}

// How many tails may be open at once, of all callers and of viewers: each reads the
// journal, and holds a connection.
const (
	maxTails       = 32
	maxViewerTails = 24
)

func (a *API) tail(api huma.API) {
	o := ruled(a.knownFilter(api, operation("tail-events", http.MethodGet, "/events/tail", "Follow events and what becomes of them at each sink", 422, 429)), personal("data", false))
	o = counted(o, kindTail)
	sse.Register(api, o,
		map[string]any{"event": Seen{}, "fate": Became{}, "missed": Missed{}, "quiet": Quiet{}},
		func(ctx context.Context, in *tailInput, send sse.Sender) {
			a.Metrics.tails.Inc()
			defer a.Metrics.tails.Dec()
			w := &watcher{api: a, send: send, data: in.Data}
			from, err := a.tailStart(ctx, in)
			if err == nil {
				err = w.Idle() // the caller sees that it is connected
			}
			if err == nil {
				err = a.Relay.Tail(ctx, relay.Tailing{From: from, Filter: in.filter, Source: in.Source, Most: in.Most}, w)
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrHandlerTimeout) {
				a.Log.Debug("a tail ended", zap.Error(err))
			}
		})
}

func (a *API) tailStart(ctx context.Context, in *tailInput) (journal.Seq, error) {
	switch t, err := in.From.Time(a.Now()); {
	case err != nil:
		return 0, err
	case in.Last > 0:
		return journal.Seq(in.Last) + 1, nil
	case !t.IsZero():
		return a.Journal.Since(ctx, t)
	}
	return a.Journal.Last() + 1, nil
}

// watcher hands what a tail sees to a caller. The ID of a message is the place
// of its event, so that a caller that was cut off goes on behind it.
type watcher struct {
	api  *API
	send sse.Sender
	data bool
}

// Sighted implements relay.Watcher.
func (w *watcher) Sighted(s relay.Sighting) error {
	seen, err := seenOf(s.Record, s.Fates, w.data)
	if err != nil {
		return err
	}
	return w.send(sse.Message{ID: int(s.Record.Seq), Data: seen})
}

// Turned implements relay.Watcher.
func (w *watcher) Turned(t relay.Turn) error {
	return w.send.Data(Became{
		Seq: t.Record.Seq, ID: t.Record.Event.CloudEvent.ID(), Fate: t.Fate, At: t.At.UTC(),
		After: t.At.Sub(t.Record.Accepted).Seconds(),
	})
}

// Missed implements relay.Watcher.
func (w *watcher) Missed(n uint64) error { return w.send.Data(Missed{n}) }

// Idle implements relay.Watcher.
func (w *watcher) Idle() error { return w.send.Data(Quiet{w.api.Journal.Last()}) }
