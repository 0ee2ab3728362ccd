package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/httpserver"
	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
)

// EventView is an event with its delivery status.
type EventView struct {
	Seq          journal.Seq            `json:"seq" doc:"Position of the event in the journal."`
	Accepted     time.Time              `json:"accepted"`
	Source       string                 `json:"source,omitempty" doc:"Name of the source that accepted the event; absent for an event of an older version."`
	Event        CloudEvent             `json:"event" doc:"The event, without data unless the request has data=true."`
	Bytes        int                    `json:"bytes" doc:"Size of the event's data in bytes."`
	TargetSink   string                 `json:"target_sink,omitempty" doc:"Only sink of a redelivered event, or of a dead letter that dead_letters.sink delivers; absent for other events."`
	OriginSeq    journal.Seq            `json:"origin_seq,omitempty" doc:"Sequence of the original event of an event with target_sink."`
	DeadLetterOf string                 `json:"dead_letter_of,omitempty" doc:"Sink that refused the event, for a dead letter that dead_letters.sink delivers; absent for other events."`
	Deliveries   []relay.DeliveryStatus `json:"deliveries" doc:"Delivery status at each sink."`
}

func newEventView(r journal.Record, deliveries []relay.DeliveryStatus, data bool) (EventView, error) {
	text, err := attributes(r.Event, data)
	return EventView{
		Seq: r.Seq, Accepted: r.Accepted, Source: r.Event.SourceName, Event: CloudEvent{text}, Bytes: len(r.Event.CloudEvent.DataEncoded),
		TargetSink: r.TargetSink, OriginSeq: r.OriginSeq, DeadLetterOf: r.DeadLetterOf, Deliveries: deliveries,
	}, err
}

// StatusChanged is a change of the delivery status of an event at one sink.
type StatusChanged struct {
	Seq journal.Seq `json:"seq"`
	ID  string      `json:"id" doc:"CloudEvents ID of the event."`
	relay.DeliveryStatus
	At    time.Time `json:"at" doc:"Time at which the relay observed the change."`
	After float64   `json:"after" doc:"Seconds from the acceptance of the event to the change."`
}

// Dropped is the number of events that a tail with max_rate did not send.
type Dropped struct {
	Events uint64 `json:"events" doc:"Events not shown since the previous dropped message."`
}

// Heartbeat is a message of an idle tail.
type Heartbeat struct {
	Last journal.Seq `json:"last" doc:"Sequence of the newest event in the journal."`
	Next journal.Seq `json:"next" doc:"Next sequence of the tail. A tail with this value of the parameter seq continues without a missed or repeated event."`
}

// TailEnd is the last message of a tail.
type TailEnd struct {
	Next    journal.Seq `json:"next" doc:"Sequence at which the tail ended. A tail with this value of the parameter seq continues without a missed or repeated event."`
	Reason  EndReason   `json:"reason" enum:"connection_age,shutdown,revoked,session,failed" doc:"Reason of the end. connection_age: the connection reached admin.max_connection_age. shutdown: the relay stops. revoked: the token was removed. session: the session ended. failed: reading the journal failed."`
	Pending int         `json:"pending,omitempty" doc:"Number of sent events with a pending delivery. A tail that continues at next sends no further status of these events."`
}

// EndReason is the reason of the end of a tail. The set is closed.
type EndReason string

// Reasons of the end of a tail.
const (
	EndConnectionAge EndReason = "connection_age"
	EndShutdown      EndReason = "shutdown"
	EndRevoked       EndReason = "revoked"
	EndSession       EndReason = "session"
	EndFailed        EndReason = "failed"
)

// endReason returns the reason for the context and the error of a tail.
func endReason(ctx context.Context, err error) EndReason {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errShutdown):
		return EndShutdown
	case errors.Is(cause, errTokenRevoked):
		return EndRevoked
	case errors.Is(cause, errSessionOver), errors.Is(cause, errSignedOut), errors.Is(cause, errSessions):
		return EndSession
	case err != nil:
		return EndFailed
	}
	return EndConnectionAge
}

type tailInput struct {
	Filter  string `query:"filter" doc:"CEL expression over attributes that selects events." example:"platform == \"instagram\""`
	Source  string `query:"source" doc:"Select events accepted by the source with this name." example:"upload-post"`
	From    When   `query:"from" doc:"Start with events accepted at this time or later: RFC 3339, or an age such as 10m. Empty starts with new events."`
	Seq     uint64 `query:"seq" doc:"Start at this sequence: the value of next from the last message of a previous tail. Overrides from."`
	Data    bool   `query:"data" doc:"Include the data of events, which may be personal. Requires the role operator."`
	MaxRate int    `query:"max_rate" minimum:"0" maximum:"1000" doc:"Maximum number of events per second. Further events are counted in dropped messages and not shown. 0 shows every event."`
	Last    int    `header:"Last-Event-ID" doc:"Start after the event with this sequence. Overrides seq and from."`

	filter filter.Filter
}

// Resolve implements huma.Resolver: it checks filter and time.
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

// Limits of open tails, for all callers and for viewers. Every tail reads the journal
// and uses a connection.
const (
	maxTails       = 32
	maxViewerTails = 24
)

func (a *API) tail(api huma.API) {
	o := ruled(a.checkedFilter(api, operation("tail-events", http.MethodGet, "/events/tail", "Follow events and delivery status, as server-sent events", 422, 429)), personal("data", false))
	o = counted(o, kindTail)
	o.Middlewares = append(o.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		// A tail may end because of the age of its connection, so the connection is not
		// reused. A proxy must not buffer messages.
		ctx.SetHeader("Connection", "close")
		ctx.SetHeader("X-Accel-Buffering", "no")
		next(ctx)
	})
	sse.Register(api, o,
		map[string]any{"event": EventView{}, "status": StatusChanged{}, "dropped": Dropped{}, "heartbeat": Heartbeat{}, "end": TailEnd{}},
		func(ctx context.Context, in *tailInput, send sse.Sender) {
			a.Metrics.tails.Inc()
			defer a.Metrics.tails.Dec()
			w := &watcher{api: a, send: send, data: in.Data}
			from, err := a.tailStart(ctx, in)
			if err == nil {
				err = w.begin(from) // tells the caller that the tail is connected
			}
			at := relay.TailResult{Next: from}
			if err == nil {
				end, stop := atExpiry(ctx)
				defer stop()
				at, err = a.Relay.Tail(ctx, relay.TailOptions{From: from, Filter: in.filter, Source: in.Source, MaxRate: in.MaxRate, End: end}, w)
			}
			reason := endReason(ctx, err)
			if !w.failed {
				_ = w.message(int(at.Next)-1, TailEnd{at.Next, reason, at.Pending}) // an error means a disconnected client
			}
			a.Log.Debug("tail ended", zap.String("reason", string(reason)), zap.Error(err))
		})
}

// atExpiry returns a channel that is closed when the connection of a request reaches
// the maximum age.
func atExpiry(ctx context.Context) (end chan struct{}, stop func() bool) {
	end = make(chan struct{})
	at, ok := httpserver.Expiry(ctx)
	if !ok {
		return end, func() bool { return true }
	}
	return end, time.AfterFunc(time.Until(at), func() { close(end) }).Stop
}

// tailStart returns the first sequence of a tail: at most the next sequence of the
// journal, because the caller's sequence may be from a different journal.
func (a *API) tailStart(ctx context.Context, in *tailInput) (journal.Seq, error) {
	next := a.Journal.Last() + 1
	switch t, err := in.From.Time(a.Now()); {
	case err != nil:
		return next, err
	case in.Last > 0:
		return min(next, journal.Seq(in.Last)+1), nil
	case in.Seq > 0:
		return min(next, journal.Seq(in.Seq)), nil
	case !t.IsZero():
		return a.Journal.Since(ctx, t)
	}
	return next, nil
}

// reconnectAfter is the time until a browser reconnects a tail.
const reconnectAfter = time.Second

// watcher sends the messages of a tail to a caller. The ID of a message is the last
// sequence that the caller has seen, so that a browser continues after this sequence.
type watcher struct {
	api    *API
	send   sse.Sender
	data   bool
	failed bool // the caller has disconnected, or does not read
}

// message sends a message. An error means that the caller does not read in time.
func (w *watcher) message(id int, data any) error { return w.write(sse.Message{ID: id, Data: data}) }

func (w *watcher) write(m sse.Message) error {
	err := w.send(m)
	w.failed = w.failed || err != nil
	return err
}

func (w *watcher) begin(from journal.Seq) error {
	return w.write(sse.Message{ID: int(from) - 1, Data: Heartbeat{w.api.Journal.Last(), from}, Retry: int(reconnectAfter.Milliseconds())})
}

// OnEvent implements relay.TailHandler.
func (w *watcher) OnEvent(s relay.TailEvent) error {
	view, err := newEventView(s.Record, s.Deliveries, w.data)
	if err != nil {
		return err
	}
	return w.message(int(s.Record.Seq), view)
}

// OnStatusChange implements relay.TailHandler.
func (w *watcher) OnStatusChange(t relay.StatusChange) error {
	return w.message(0, StatusChanged{
		Seq: t.Record.Seq, ID: t.Record.Event.CloudEvent.ID(), DeliveryStatus: t.Status, At: t.At.UTC(),
		After: t.At.Sub(t.Record.Accepted).Seconds(),
	})
}

// OnDropped implements relay.TailHandler.
func (w *watcher) OnDropped(n uint64) error { return w.message(0, Dropped{n}) }

// OnIdle implements relay.TailHandler.
func (w *watcher) OnIdle(next journal.Seq) error {
	return w.message(int(next)-1, Heartbeat{w.api.Journal.Last(), next})
}
