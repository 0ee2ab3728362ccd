package admin

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/relay"
)

// SearchResult is a page of a search, the newest events first.
type SearchResult struct {
	Events  []EventView `json:"events"`
	Scanned int         `json:"scanned" doc:"Events that were looked at."`
	Next    journal.Seq `json:"next,omitempty" doc:"What to give as before to go on; absent where there is nothing more."`
	Reached *time.Time  `json:"reached,omitempty" doc:"When the oldest event that was looked at had been accepted."`
}

// searchInput says which events are meant; all that is set must hold.
type searchInput struct {
	ID        string `query:"id" doc:"Part of the CloudEvents id." example:"17987654321098765"`
	PublishID string `query:"publish_id" doc:"ID that the platform assigned."`
	Profile   string `query:"profile"`
	Platform  string `query:"platform" example:"instagram"`
	Type      string `query:"type" doc:"CloudEvents type, or its end behind a dot." example:"upload_completed"`
	Source    string `query:"source" doc:"Name of the source that took it in." example:"upload-post"`
	Outcome   string `query:"outcome" doc:"success or failure; of account events their status." example:"failure"`
	From      When   `query:"from" doc:"Accepted from this time on: RFC 3339, or how long ago, such as 2h."`
	To        When   `query:"to" doc:"Accepted before this time."`
	Filter    string `query:"filter" doc:"CEL expression over the attributes that must hold, too." example:"mediatype == \"video\""`
	Limit     int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"Most events at once."`
	Before    uint64 `query:"before" doc:"Only events before this place: next of the page before."`

	filter filter.Filter
}

// Resolve implements huma.Resolver.
func (in *searchInput) Resolve(huma.Context) []error {
	var err error
	if in.filter, err = filter.Parse(in.Filter); err != nil {
		return []error{&huma.ErrorDetail{Message: err.Error(), Location: "query.filter"}}
	}
	return nil
}

// takes reports whether an event is one of those that are meant.
func (in *searchInput) takes(r journal.Record) bool {
	e := r.Event
	if in.Source != "" && e.SourceName != in.Source {
		return false
	}
	if in.ID != "" && !strings.Contains(e.CloudEvent.ID(), in.ID) {
		return false
	}
	if is := e.CloudEvent.Type(); in.Type != "" && is != in.Type && !strings.HasSuffix(is, "."+in.Type) {
		return false
	}
	for name, want := range map[string]string{event.PublishID: in.PublishID, event.Profile: in.Profile, event.Platform: in.Platform, event.Outcome: in.Outcome} {
		if want == "" {
			continue
		}
		if is, _ := e.Attribute(name); is != want {
			return false
		}
	}
	ok, _ := in.filter.Matches(e)
	return ok
}

const (
	// A search looks at so many events and takes so long at most; then it says
	// how far it came. The journal is read as a tail reads it, which holds
	// nobody up.
	mostScanned = 20000
	searchFor   = 2 * time.Second
	searchPage  = 512
	// A page of a list or a search is not much longer than this, whatever its limit.
	maxPageBytes = 1 << 20
)

func (a *API) events(api huma.API) {
	huma.Register(api, counted(a.knownFilter(api, operation("search-events", http.MethodGet, "/events", "Look for events, the newest first; it looks at so many at once, and says where to go on", 422)), kindSearch),
		func(ctx context.Context, in *searchInput) (*struct{ Body SearchResult }, error) {
			found, err := a.search(ctx, in)
			return &struct{ Body SearchResult }{found}, failed(err)
		})
	huma.Register(api, ruled(operation("show-event", http.MethodGet, "/events/{seq}", "One event, and what has become of it at each sink", 404, 422), personal("data", false)),
		func(ctx context.Context, in *struct {
			Seq  uint64 `path:"seq" doc:"Place of the event in the journal."`
			Data bool   `query:"data" doc:"Show the event's data too, which is personal: for operators."`
		},
		) (*struct{ Body EventView }, error) {
			record, err := a.Relay.Record(ctx, journal.Seq(in.Seq))
			if err != nil {
				return nil, failed(err)
			}
			s, err := a.seen(ctx, record, in.Data)
			return &struct{ Body EventView }{s}, failed(err)
		})
	huma.Register(api, operation("send-event", http.MethodPost, "/events/{seq}/send", "Send one event to one sink again, as a replay of its own", 404, 422),
		func(ctx context.Context, in *struct {
			Seq  uint64 `path:"seq" doc:"Place of the event in the journal."`
			Body ResendRequest
		},
		) (*replayOutput, error) {
			if in.Seq == 0 {
				return nil, huma.Error404NotFound("there is no event at place 0")
			}
			re, err := a.Relay.StartReplay(ctx, relay.ReplaySpec{Sink: in.Body.Sink, Seq: journal.Seq(in.Seq), Rate: 1, Keys: map[string]string{}})
			return &replayOutput{re}, failed(err)
		})
}

// ResendRequest is the body of a request to send one event again.
type ResendRequest struct {
	Sink string `json:"sink" minLength:"1" doc:"Name of the sink."`
}

// Resolve implements huma.Resolver.
func (s *ResendRequest) Resolve(ctx huma.Context) []error { return note(ctx, named("sink", s.Sink)) }

// seen is an event with its fates.
func (a *API) seen(ctx context.Context, record journal.Record, data bool) (EventView, error) {
	fates, err := a.Relay.Deliveries(ctx, record)
	if err != nil {
		return EventView{}, err
	}
	return seenOf(record, fates, data)
}

// search goes back from the newest event on. The journal reads forward only, so
// that it takes one stretch of places after another: a wider one where there
// are few events, for between two there may be many places that no event has.
func (a *API) search(ctx context.Context, in *searchInput) (SearchResult, error) {
	found := SearchResult{Events: []EventView{}}
	times, err := a.times(map[string]When{"from": in.From, "to": in.To})
	if err != nil {
		return found, err
	}
	low, high := a.Journal.Oldest(), a.Journal.Last()+1
	if in.Before > 0 {
		high = min(high, journal.Seq(in.Before))
	}
	if from := times["from"]; !from.IsZero() {
		s, err := a.Journal.Since(ctx, from)
		if err != nil {
			return found, err
		}
		low = max(low, s)
	}
	if to := times["to"]; !to.IsZero() {
		s, err := a.Journal.Since(ctx, to)
		if err != nil {
			return found, err
		}
		high = min(high, s)
	}
	began, width, bytes := time.Now(), journal.Seq(searchPage), 0
	for high > low {
		if found.Scanned >= mostScanned || time.Since(began) > searchFor || bytes >= maxPageBytes {
			found.Next = high
			return found, nil
		}
		start := low
		if high-low > width {
			start = high - width
		}
		records, whole, err := a.stretch(ctx, start, high)
		if err != nil {
			return found, err
		}
		if !whole && width > 1 {
			width = max(1, width/8) // it holds more than is read at once: closer
			continue
		}
		if len(records) < searchPage/4 {
			width *= 2
		}
		for _, record := range slices.Backward(records) {
			found.Scanned++
			found.Reached = &record.Accepted
			if !in.takes(record) {
				continue
			}
			if len(found.Events) == in.Limit || bytes >= maxPageBytes {
				found.Next = record.Seq + 1
				return found, nil
			}
			s, err := a.seen(ctx, record, false)
			if err != nil {
				return found, err
			}
			bytes += len(s.Event.RawMessage)
			found.Events = append(found.Events, s)
		}
		high = start
	}
	return found, nil
}

// stretch reads the records from a place on that are before another one. It reports
// false where there are more of them than the journal reads at once, in number or in
// bytes.
func (a *API) stretch(ctx context.Context, from, before journal.Seq) (records []journal.Record, whole bool, err error) {
	if records, err = a.Journal.Read(ctx, from, searchPage); err != nil || len(records) == 0 {
		return nil, true, err
	}
	next := records[len(records)-1].Seq + 1
	if next >= before {
		return slices.DeleteFunc(records, func(r journal.Record) bool { return r.Seq >= before }), true, nil
	}
	rest, err := a.Journal.Read(ctx, next, 1)
	return records, len(rest) == 0 || rest[0].Seq >= before, err
}

// Search looks for events. The query holds the parameters of the operation
// search-events.
func (c *Client) Search(ctx context.Context, query url.Values) (f SearchResult, err error) {
	return f, c.ask(ctx, http.MethodGet, "/events?"+query.Encode(), nil, &f)
}

// Event returns one, with its data where that is asked for.
func (c *Client) Event(ctx context.Context, place journal.Seq, data bool) (s EventView, err error) {
	return s, c.ask(ctx, http.MethodGet, "/events/"+strconv.FormatUint(uint64(place), 10)+"?data="+strconv.FormatBool(data), nil, &s)
}

// Send sends one event to one sink again.
func (c *Client) Send(ctx context.Context, place journal.Seq, sink string) (re relay.Replay, err error) {
	return re, c.ask(ctx, http.MethodPost, "/events/"+strconv.FormatUint(uint64(place), 10)+"/send", ResendRequest{sink}, &re)
}
