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

// SearchResult is a page of search results, newest events first.
type SearchResult struct {
	Events  []EventView `json:"events"`
	Scanned int         `json:"scanned" doc:"Number of examined events."`
	Next    journal.Seq `json:"next,omitempty" doc:"Value of the parameter before to continue the search; absent at the end."`
	Reached *time.Time  `json:"reached,omitempty" doc:"Acceptance time of the oldest examined event."`
}

// searchInput selects events. Every set field must match.
type searchInput struct {
	ID        string `query:"id" doc:"Select events with this text in the CloudEvents ID." example:"17987654321098765"`
	PublishID string `query:"publish_id" doc:"Select events with this ID from the platform (attribute publishid)."`
	Profile   string `query:"profile" doc:"Select events with this value of the attribute profile."`
	Platform  string `query:"platform" doc:"Select events with this value of the attribute platform." example:"instagram"`
	Type      string `query:"type" doc:"Select events with this CloudEvents type, or with a type that ends in a dot and this text." example:"upload_completed"`
	Source    string `query:"source" doc:"Select events accepted by the source with this name." example:"upload-post"`
	Outcome   string `query:"outcome" doc:"Select events with this value of the attribute outcome: success, failure, or the status of an account event." example:"failure"`
	From      When   `query:"from" doc:"Select events accepted at this time or later: RFC 3339, or an age such as 2h."`
	To        When   `query:"to" doc:"Select events accepted before this time: RFC 3339, or an age such as 1h."`
	Filter    string `query:"filter" doc:"Select events by this CEL expression over attributes." example:"mediatype == \"video\""`
	Limit     int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"Maximum number of events per page."`
	Before    uint64 `query:"before" doc:"Select events before this sequence: the value of next from the previous page."`

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

// matches reports whether a record matches every set field.
func (in *searchInput) matches(r journal.Record) bool {
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
	// Limits of one search. A search that reaches a limit returns the position. Reads
	// of the journal block neither appends nor deliveries.
	maxScanned    = 20000
	maxSearchTime = 2 * time.Second
	searchPage    = 512
	// maxPageBytes limits the size of a page of a list or a search, approximately.
	maxPageBytes = 1 << 20
)

func (a *API) events(api huma.API) {
	huma.Register(api, counted(a.checkedFilter(api, operation("search-events", http.MethodGet, "/events", "Search stored events, newest first; one request examines a limited number of events", 422)), kindSearch),
		func(ctx context.Context, in *searchInput) (*struct{ Body SearchResult }, error) {
			found, err := a.search(ctx, in)
			return &struct{ Body SearchResult }{found}, failed(err)
		})
	huma.Register(api, ruled(operation("show-event", http.MethodGet, "/events/{seq}", "Show one event with the delivery status at every sink", 404, 422), personal("data", false)),
		func(ctx context.Context, in *struct {
			Seq  uint64 `path:"seq" doc:"Sequence of the event in the journal."`
			Data bool   `query:"data" doc:"Include the data of the event, which may be personal. Requires the role operator."`
		},
		) (*struct{ Body EventView }, error) {
			record, err := a.Relay.Record(ctx, journal.Seq(in.Seq))
			if err != nil {
				return nil, failed(err)
			}
			s, err := a.view(ctx, record, in.Data)
			return &struct{ Body EventView }{s}, failed(err)
		})
	huma.Register(api, operation("send-event", http.MethodPost, "/events/{seq}/send", "Deliver one event to one sink again, as a replay", 404, 422),
		func(ctx context.Context, in *struct {
			Seq  uint64 `path:"seq" doc:"Sequence of the event in the journal."`
			Body ResendRequest
		},
		) (*replayOutput, error) {
			if in.Seq == 0 {
				return nil, huma.Error404NotFound("there is no event with sequence 0")
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
func (s *ResendRequest) Resolve(ctx huma.Context) []error {
	return addSubject(ctx, named("sink", s.Sink))
}

// view returns an event with its delivery status at every sink.
func (a *API) view(ctx context.Context, record journal.Record, data bool) (EventView, error) {
	deliveries, err := a.Relay.Deliveries(ctx, record)
	if err != nil {
		return EventView{}, err
	}
	return newEventView(record, deliveries, data)
}

// search searches backward from the newest event. The journal reads forward only, so
// search reads one range of sequences after another, and widens the range if a range
// has few events, because sequences may have gaps.
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
		if found.Scanned >= maxScanned || time.Since(began) > maxSearchTime || bytes >= maxPageBytes {
			found.Next = high
			return found, nil
		}
		start := low
		if high-low > width {
			start = high - width
		}
		records, whole, err := a.readRange(ctx, start, high)
		if err != nil {
			return found, err
		}
		if !whole && width > 1 {
			width = max(1, width/8) // the range has more events than one read returns
			continue
		}
		if len(records) < searchPage/4 {
			width *= 2
		}
		for _, record := range slices.Backward(records) {
			found.Scanned++
			found.Reached = &record.Accepted
			if !in.matches(record) {
				continue
			}
			if len(found.Events) == in.Limit || bytes >= maxPageBytes {
				found.Next = record.Seq + 1
				return found, nil
			}
			s, err := a.view(ctx, record, false)
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

// readRange reads the records of a range of sequences; before is exclusive. whole is
// false if the range has more records than the journal returns in one read, by number
// or bytes.
func (a *API) readRange(ctx context.Context, from, before journal.Seq) (records []journal.Record, whole bool, err error) {
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

// Search searches stored events. The query has the parameters of the operation
// search-events.
func (c *Client) Search(ctx context.Context, query url.Values) (f SearchResult, err error) {
	return f, c.call(ctx, http.MethodGet, "/events?"+query.Encode(), nil, &f)
}

// Event returns one event by sequence, with or without its data.
func (c *Client) Event(ctx context.Context, seq journal.Seq, data bool) (s EventView, err error) {
	return s, c.call(ctx, http.MethodGet, "/events/"+strconv.FormatUint(uint64(seq), 10)+"?data="+strconv.FormatBool(data), nil, &s)
}

// Send delivers one event to one sink again, as a replay.
func (c *Client) Send(ctx context.Context, seq journal.Seq, sink string) (re relay.Replay, err error) {
	return re, c.call(ctx, http.MethodPost, "/events/"+strconv.FormatUint(uint64(seq), 10)+"/send", ResendRequest{sink}, &re)
}
