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

// EventView is an event as a tail sees it first.
type EventView struct {
	Seq        journal.Seq            `json:"seq" doc:"Position of the event in the journal."`
	Accepted   time.Time              `json:"accepted"`
	Source     string                 `json:"source,omitempty" doc:"Name of the source that took it in; absent where an older version did not write it down."`
	Event      CloudEvent             `json:"event" doc:"Without data, unless it was asked for."`
	Bytes      int                    `json:"bytes" doc:"Size of its data."`
	TargetSink string                 `json:"target_sink,omitempty" doc:"Sink to which a redelivered event goes; absent for other events."`
	OriginSeq  journal.Seq            `json:"origin_seq,omitempty" doc:"Sequence of the original event of a redelivered event."`
	Deliveries []relay.DeliveryStatus `json:"deliveries" doc:"Delivery status at each sink."`
}

func seenOf(r journal.Record, fates []relay.DeliveryStatus, data bool) (EventView, error) {
	text, err := attributes(r.Event, data)
	return EventView{
		Seq: r.Seq, Accepted: r.Accepted, Source: r.Event.SourceName, Event: CloudEvent{text}, Bytes: len(r.Event.CloudEvent.DataEncoded),
		TargetSink: r.TargetSink, OriginSeq: r.OriginSeq, Deliveries: fates,
	}, err
}

// StatusChanged is what became of an event at one sink after it was seen.
type StatusChanged struct {
	Seq journal.Seq `json:"seq"`
	ID  string      `json:"id" doc:"CloudEvents id."`
	relay.DeliveryStatus
	At    time.Time `json:"at" doc:"When that was seen."`
	After float64   `json:"after" doc:"Seconds since the event was accepted."`
}

// Dropped is how many events a tail with a most did not tell of.
type Dropped struct {
	Events uint64 `json:"events" doc:"Events not shown since the previous dropped message. If a tail in a cluster fell far behind, the number counts sequences, and some sequences have no event."`
}

// Heartbeat says that the tail still runs.
type Heartbeat struct {
	Last journal.Seq `json:"last" doc:"Sequence of the newest event in the journal."`
	Next journal.Seq `json:"next" doc:"Sequence at which the tail is. A tail that begins there, by the parameter seq, leaves nothing out and repeats nothing."`
}

// TailEnd is the last message of a tail.
type TailEnd struct {
	Next    journal.Seq `json:"next" doc:"Sequence at which the tail ended. A tail that begins there, by the parameter seq, leaves nothing out and repeats nothing."`
	Reason  EndReason   `json:"reason" enum:"connection_age,shutdown,revoked,session,failed" doc:"Why the tail ended: the connection reached admin.max_connection_age, the relay stops, the token was replaced or removed, the session is over, or the journal cannot be read."`
	Pending int         `json:"pending,omitempty" doc:"Events that the tail told of whose delivery was pending at some sink. A tail that begins at next does not tell what becomes of them."`
}

// EndReason is why a tail ended. The set is closed.
type EndReason string

// The reasons there are.
const (
	EndConnectionAge EndReason = "connection_age"
	EndShutdown      EndReason = "shutdown"
	EndRevoked       EndReason = "revoked"
	EndSession       EndReason = "session"
	EndFailed        EndReason = "failed"
)

// endReason is that of a tail with this context and error.
func endReason(ctx context.Context, err error) EndReason {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errShutdown):
		return EndShutdown
	case errors.Is(cause, errTokenGone):
		return EndRevoked
	case errors.Is(cause, errSessionOver), errors.Is(cause, errSignedOut), errors.Is(cause, errSessions):
		return EndSession
	case err != nil:
		return EndFailed
	}
	return EndConnectionAge
}

type tailInput struct {
	Filter  string `query:"filter" doc:"CEL expression over the attributes that selects the events." example:"platform == \"instagram\""`
	Source  string `query:"source" doc:"Only events that the source of this name took in." example:"upload-post"`
	From    When   `query:"from" doc:"Begin with events accepted at this time: RFC 3339, or how long ago, such as 10m. Empty is from now on."`
	Seq     uint64 `query:"seq" doc:"Begin with the event at this sequence, whatever from says: next of the last message of another tail."`
	Data    bool   `query:"data" doc:"Show the events' data too, which is personal."`
	MaxRate int    `query:"max_rate" minimum:"0" maximum:"1000" doc:"Maximum number of events per second. Further events are counted in dropped messages and not shown. 0 shows every event."`
	Last    int    `header:"Last-Event-ID" doc:"Start after the event with this sequence. Overrides seq and from."`

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
	o.Middlewares = append(o.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		// A connection has no use after a tail: it ends for its age. And what a proxy
		// keeps back to send much at once is seen too late.
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
				err = w.begin(from) // the caller sees that it is connected
			}
			at := relay.TailResult{Next: from}
			if err == nil {
				end, stop := atExpiry(ctx)
				defer stop()
				at, err = a.Relay.Tail(ctx, relay.TailOptions{From: from, Filter: in.filter, Source: in.Source, MaxRate: in.MaxRate, End: end}, w)
			}
			reason := endReason(ctx, err)
			if !w.failed {
				_ = w.tell(int(at.Next)-1, TailEnd{at.Next, reason, at.Pending}) // the client has it, or is gone
			}
			a.Log.Debug("tail ended", zap.String("reason", string(reason)), zap.Error(err))
		})
}

// atExpiry returns a channel that is closed when the connection of a request reaches
// its greatest age.
func atExpiry(ctx context.Context) (end chan struct{}, stop func() bool) {
	end = make(chan struct{})
	at, ok := httpserver.Expiry(ctx)
	if !ok {
		return end, func() bool { return true }
	}
	return end, time.AfterFunc(time.Until(at), func() { close(end) }).Stop
}

// tailStart is where a tail begins: no further than at the next event, whatever the
// caller knows of another journal.
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

// reconnectAfter is how long a browser waits before it follows a tail further.
const reconnectAfter = time.Second

// watcher hands what a tail sees to a caller. The ID of a message is the sequence up
// to which the caller has seen everything, so that one that was cut off goes on
// behind it.
type watcher struct {
	api    *API
	send   sse.Sender
	data   bool
	failed bool // the caller is gone, or does not read
}

// tell sends a message. It fails where the caller does not read it in time.
func (w *watcher) tell(id int, data any) error { return w.write(sse.Message{ID: id, Data: data}) }

func (w *watcher) write(m sse.Message) error {
	err := w.send(m)
	w.failed = w.failed || err != nil
	return err
}

func (w *watcher) begin(from journal.Seq) error {
	return w.write(sse.Message{ID: int(from) - 1, Data: Heartbeat{w.api.Journal.Last(), from}, Retry: int(reconnectAfter.Milliseconds())})
}

// OnEvent implements relay.Watcher.
func (w *watcher) OnEvent(s relay.TailEvent) error {
	seen, err := seenOf(s.Record, s.Deliveries, w.data)
	if err != nil {
		return err
	}
	return w.tell(int(s.Record.Seq), seen)
}

// OnStatusChange implements relay.Watcher.
func (w *watcher) OnStatusChange(t relay.StatusChange) error {
	return w.tell(0, StatusChanged{
		Seq: t.Record.Seq, ID: t.Record.Event.CloudEvent.ID(), DeliveryStatus: t.Status, At: t.At.UTC(),
		After: t.At.Sub(t.Record.Accepted).Seconds(),
	})
}

// OnDropped implements relay.Watcher.
func (w *watcher) OnDropped(n uint64) error { return w.tell(0, Dropped{n}) }

// OnIdle implements relay.Watcher.
func (w *watcher) OnIdle(next journal.Seq) error {
	return w.tell(int(next)-1, Heartbeat{w.api.Journal.Last(), next})
}
