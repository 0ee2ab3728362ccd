package admin

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/journal"
)

// Kinds of entries in the dead-letter queue.
const (
	KindDeadLetter = "dead_letter" // an event that a sink refused permanently
	KindQuarantine = "quarantine"  // a request that its source could not convert
)

// Malformed is the reason of every quarantined request.
const Malformed = "malformed"

// DLQEntry is a dead letter or a quarantined request.
type DLQEntry struct {
	ID        string              `json:"id" doc:"ID of the entry: sequence@sink for a dead letter, a UUID for a quarantined request."`
	Kind      string              `json:"kind" enum:"dead_letter,quarantine"`
	Sink      string              `json:"sink,omitempty" doc:"Sink that refused the event."`
	Source    string              `json:"source,omitempty" doc:"Source that could not convert the request."`
	Reason    string              `json:"reason" doc:"Reason, from a closed set: too_large, no_destination, invalid, unauthorized, refused, expired, malformed."`
	Error     string              `json:"error" doc:"Error of the broker, or error of the conversion of the request."`
	CopyTo    string              `json:"copy_to,omitempty" doc:"Sink that gets a copy of the dead letter, from dead_letters.sink."`
	Attempts  int                 `json:"attempts" doc:"Number of delivery attempts; 1 for a quarantined request."`
	Count     uint64              `json:"count,omitempty" doc:"Number of arrivals of a quarantined request. Requests of one source with equal bodies are stored once."`
	First     time.Time           `json:"first" doc:"Time of the first delivery attempt, or of the first arrival of the request."`
	Last      time.Time           `json:"last" doc:"Time of the last delivery attempt, or of the last arrival of the request."`
	Seq       journal.Seq         `json:"seq,omitempty" doc:"Sequence of the event in the journal."`
	EventID   string              `json:"event_id,omitempty"`
	EventType string              `json:"event_type,omitempty"`
	Bytes     int                 `json:"bytes" doc:"Size in bytes of the event's data, or of the request's body."`
	Event     *CloudEvent         `json:"event,omitempty" doc:"The event; only in the answer for a single dead letter."`
	Request   *QuarantinedRequest `json:"request,omitempty" doc:"The request; only in the answer for a single quarantined request."`
}

// CloudEvent is an event in the JSON format of CloudEvents.
type CloudEvent struct{ json.RawMessage }

// Schema implements huma.SchemaProvider.
func (CloudEvent) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true, Description: "CloudEvents JSON event format."}
}

// QuarantinedRequest is a request as received, without secrets.
type QuarantinedRequest struct {
	Method     string      `json:"method,omitempty" doc:"HTTP method. Method, path, query and header are from the first request with this body."`
	Path       string      `json:"path,omitempty"`
	RawQuery   string      `json:"raw_query,omitempty" doc:"Query string, without the question mark."`
	Header     http.Header `json:"header"`
	Body       string      `json:"body,omitempty" doc:"The body, if the body is valid UTF-8."`
	BodyBase64 string      `json:"body_base64,omitempty" doc:"The body in base64, if the body is not valid UTF-8."`
}

// dlqFilter selects entries. Every set field must match.
type dlqFilter struct {
	Kind   string `query:"kind" json:"kind,omitempty" enum:"dead_letter,quarantine" doc:"Select only entries of this kind."`
	Sink   string `query:"sink" json:"sink,omitempty" doc:"Select only dead letters of this sink."`
	Source string `query:"source" json:"source,omitempty" doc:"Select only quarantined requests of this source."`
	Reason string `query:"reason" json:"reason,omitempty" doc:"Select only entries with this reason."`
	Since  When   `query:"since" json:"since,omitempty" doc:"Select only entries with a last attempt or arrival at this time or later: RFC 3339, or an age such as 2h."`
	Until  When   `query:"until" json:"until,omitempty" doc:"Select only entries with a last attempt or arrival before this time: RFC 3339, or an age such as 1h."`
	Limit  int    `query:"limit" json:"limit,omitempty" minimum:"1" maximum:"1000" default:"100" doc:"Maximum number of entries per page."`
	After  string `query:"after" json:"after,omitempty" doc:"Continue after this entry: the value of next from the previous page."`
}

// Resolve implements huma.Resolver.
func (f *dlqFilter) Resolve(ctx huma.Context) []error {
	return addSubject(ctx, named("kind", f.Kind), named("sink", f.Sink), named("source", f.Source))
}

type dlqID struct {
	ID string `path:"id" doc:"ID of the entry."`
}

type dlqShown struct {
	ID   string `path:"id" doc:"ID of the entry."`
	Data bool   `query:"data" default:"true" doc:"Include the event's data, or the request's query, header and body, which may be personal. Requires the role operator."`
}

// DLQPage is a page of entries.
type DLQPage struct {
	Entries []DLQEntry `json:"entries"`
	Next    string     `json:"next,omitempty" doc:"Value of the parameter after for the next page; absent on the last page."`
}

// DLQCount is the number of entries by reason.
type DLQCount struct {
	Total  int        `json:"total"`
	More   bool       `json:"more,omitempty" doc:"Whether more entries exist than were counted."`
	Groups []DLQGroup `json:"groups" doc:"Numbers by kind, sink or source, and reason; the largest first."`
	Until  time.Time  `json:"until" doc:"Value of the parameter until that selects the counted entries and excludes later entries."`
}

// DLQGroup is the number of entries with one kind, sink or source, and reason.
type DLQGroup struct {
	Kind   string `json:"kind" enum:"dead_letter,quarantine"`
	Sink   string `json:"sink,omitempty"`
	Source string `json:"source,omitempty"`
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// ActionResult is the result of a retry or a drop of one entry.
type ActionResult struct {
	ID     string   `json:"id"`
	Done   bool     `json:"done" doc:"Whether the entry was retried or dropped, and is removed from the dead-letter queue."`
	Events []string `json:"events,omitempty" doc:"CloudEvents IDs of the events that a retry appended to the journal, without duplicates."`
	Error  string   `json:"error,omitempty" doc:"Error of the retry or the drop; the entry stays in the dead-letter queue."`
}

// ActionPage is the result of retries or drops of a page of entries.
type ActionPage struct {
	Entries []ActionResult `json:"entries"`
	Next    string         `json:"next,omitempty" doc:"Value of the parameter after for the next page; absent on the last page."`
	Until   time.Time      `json:"until" doc:"Value of the parameter until for the next page, which excludes later entries."`
}

type actionOutput struct{ Body ActionResult }

func (a *API) dlq(api huma.API) {
	huma.Register(api, counted(operation("list-dlq", http.MethodGet, "/dlq", "List dead letters, by sink, and then quarantined requests", 422), kindList),
		func(ctx context.Context, in *dlqFilter) (*struct{ Body DLQPage }, error) {
			page, err := a.list(ctx, *in)
			return &struct{ Body DLQPage }{page}, err
		})
	huma.Register(api, ruled(operation("show-dlq", http.MethodGet, "/dlq/{id}", "Show one entry with the event or the request, which may contain personal data", 404), personal("data", true)),
		func(ctx context.Context, in *dlqShown) (*struct{ Body DLQEntry }, error) {
			e, err := a.show(ctx, in.ID, in.Data)
			return &struct{ Body DLQEntry }{e}, failed(err)
		})
	huma.Register(api, operation("retry-dlq", http.MethodPost, "/dlq/{id}/retry", "Redeliver one dead letter, or convert one quarantined request again", 404, 422),
		func(ctx context.Context, in *dlqID) (*actionOutput, error) {
			h, err := a.retry(ctx, in.ID)
			return &actionOutput{h}, failed(err)
		})
	huma.Register(api, operation("drop-dlq", http.MethodDelete, "/dlq/{id}", "Remove one entry permanently", 404),
		func(ctx context.Context, in *dlqID) (*actionOutput, error) {
			h, err := a.drop(ctx, in.ID)
			return &actionOutput{h}, failed(err)
		})
	huma.Register(api, counted(operation("count-dlq", http.MethodGet, "/dlq-count", "Count entries by reason, for a filter of a retry or a drop", 422), kindList),
		func(ctx context.Context, in *dlqFilter) (*struct{ Body DLQCount }, error) {
			count, err := a.count(ctx, *in)
			return &struct{ Body DLQCount }{count}, failed(err)
		})
	for _, action := range []struct {
		name, summary string
		do            func(context.Context, string) (ActionResult, error)
	}{
		{"retry", "Redeliver dead letters and convert quarantined requests again, for one page of entries that match a filter", a.retry},
		{"drop", "Remove one page of entries that match a filter permanently", a.drop},
	} {
		huma.Register(api, counted(operation(action.name+"-dlq-page", http.MethodPost, "/dlq-"+action.name, action.summary, 422), kindList),
			func(ctx context.Context, in *struct{ Body dlqFilter }) (*struct{ Body ActionPage }, error) {
				page, err := a.handle(ctx, in.Body, action.do)
				return &struct{ Body ActionPage }{page}, err
			})
	}
}

// deadLetterID returns the ID of the entry of a dead letter.
func deadLetterID(id journal.DeliveryID) string { return fmt.Sprintf("%d@%s", id.Seq, id.Sink) }

// parseDeadLetterID parses the ID of an entry; dead is false for a quarantined request.
func parseDeadLetterID(id string) (letter journal.DeliveryID, dead bool) {
	number, sink, ok := strings.Cut(id, "@")
	seq, err := strconv.ParseUint(number, 10, 64)
	return journal.DeliveryID{Sink: sink, Seq: journal.Seq(seq)}, ok && err == nil
}

func deadLetterEntry(d journal.Dead) DLQEntry {
	return DLQEntry{
		ID: deadLetterID(d.ID()), Kind: KindDeadLetter, Sink: d.Sink, Reason: d.Letter.Reason, Error: d.Letter.Err,
		Attempts: d.Letter.Attempts, CopyTo: d.Letter.CopyTo, First: d.Letter.First, Last: d.Letter.Last, Seq: d.Letter.Seq,
		EventID: d.Event.CloudEvent.ID(), EventType: d.Event.CloudEvent.Type(), Bytes: len(d.Event.CloudEvent.DataEncoded),
	}
}

func quarantineEntry(r journal.QuarantinedRequest) DLQEntry {
	return DLQEntry{
		ID: r.ID, Kind: KindQuarantine, Source: r.Source, Reason: Malformed, Error: r.Reason, Attempts: 1, Count: r.Count,
		First: r.Received, Last: r.LastReceived, Bytes: len(r.Body),
	}
}

// list returns a page of matching entries.
func (a *API) list(ctx context.Context, f dlqFilter) (DLQPage, error) {
	page := DLQPage{Entries: []DLQEntry{}}
	limit := f.Limit
	if limit == 0 {
		limit = 100
	}
	bytes := 0
	// add adds an entry, and reports whether the page is full.
	add := func(e DLQEntry) bool {
		if n := len(page.Entries); n == limit || bytes >= maxPageBytes {
			page.Next = page.Entries[n-1].ID
			return true
		}
		bytes += len(e.Error) + len(e.EventID) + len(e.EventType)
		page.Entries = append(page.Entries, e)
		return false
	}
	return page, failed(a.each(ctx, f, add))
}

// each calls stop for every matching entry, until stop returns true.
func (a *API) each(ctx context.Context, f dlqFilter, stop func(DLQEntry) bool) error {
	times, err := a.times(map[string]When{"since": f.Since, "until": f.Until})
	if err != nil {
		return err
	}
	visit := func(e DLQEntry) bool {
		if f.Sink != "" && e.Sink != f.Sink || f.Source != "" && e.Source != f.Source || f.Reason != "" && e.Reason != f.Reason ||
			e.Last.Before(times["since"]) || !times["until"].IsZero() && !e.Last.Before(times["until"]) {
			return false
		}
		return stop(e)
	}
	letter, dead := parseDeadLetterID(f.After)
	if f.Kind != KindQuarantine && f.Source == "" && (f.After == "" || dead) {
		for d, err := range a.Journal.DeadLetters(ctx, letter) {
			if err != nil {
				return err
			}
			if visit(deadLetterEntry(d)) {
				return nil
			}
		}
	}
	if f.Kind != KindDeadLetter && f.Sink == "" {
		after := f.After
		if dead {
			after = ""
		}
		for r, err := range a.Journal.Quarantined(ctx, after) {
			if err != nil {
				return err
			}
			if visit(quarantineEntry(r)) {
				return nil
			}
		}
	}
	return nil
}

// maxCounted limits the cost of a count.
const maxCounted = 100000

func (a *API) count(ctx context.Context, f dlqFilter) (DLQCount, error) {
	count := DLQCount{Groups: []DLQGroup{}, Until: a.Now()}
	groups := map[DLQGroup]int{}
	err := a.each(ctx, f, func(e DLQEntry) bool {
		if count.Total == maxCounted {
			count.More = true
			return true
		}
		count.Total++
		groups[DLQGroup{Kind: e.Kind, Sink: e.Sink, Source: e.Source, Reason: e.Reason}]++
		return false
	})
	for g, n := range groups {
		g.Count = n
		count.Groups = append(count.Groups, g)
	}
	slices.SortFunc(count.Groups, func(a, b DLQGroup) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Sink+a.Source, b.Sink+b.Source), cmp.Compare(a.Reason, b.Reason))
	})
	return count, err
}

func (a *API) show(ctx context.Context, id string, data bool) (DLQEntry, error) {
	if letter, dead := parseDeadLetterID(id); dead {
		d, err := a.Journal.DeadLetter(ctx, letter)
		if err != nil {
			return DLQEntry{}, err
		}
		e := deadLetterEntry(d)
		text, err := attributes(d.Event, data)
		e.Event = &CloudEvent{text}
		return e, err
	}
	r, err := a.Journal.QuarantinedRequest(ctx, id)
	if err != nil {
		return DLQEntry{}, err
	}
	e := quarantineEntry(r)
	if !data {
		e.Request = &QuarantinedRequest{Method: r.Method, Path: r.Path, Header: http.Header{}}
		return e, nil
	}
	e.Request = &QuarantinedRequest{Method: r.Method, Path: r.Path, RawQuery: r.RawQuery, Header: r.Header, Body: string(r.Body)}
	if !utf8.Valid(r.Body) {
		e.Request.Body, e.Request.BodyBase64 = "", base64.StdEncoding.EncodeToString(r.Body)
	}
	return e, nil
}

// retry redelivers a dead letter to its sink, or converts a quarantined request again
// and appends the events for every sink.
func (a *API) retry(ctx context.Context, id string) (ActionResult, error) {
	h := ActionResult{ID: id}
	if letter, dead := parseDeadLetterID(id); dead {
		if err := a.Relay.Has(letter.Sink); err != nil {
			return h, err
		}
		d, err := a.Journal.DeadLetter(ctx, letter)
		if err != nil {
			return h, err
		}
		if _, err := a.Journal.Redeliver(ctx, letter); err != nil {
			return h, err
		}
		h.Done, h.Events = true, []string{d.Event.CloudEvent.ID()}
		return h, nil
	}
	r, err := a.Journal.QuarantinedRequest(ctx, id)
	if err != nil {
		return h, err
	}
	events, err := a.Renormalize(r)
	if err != nil {
		return h, huma.Error422UnprocessableEntity("the source cannot convert the request: " + err.Error())
	}
	receipts, err := a.Journal.Release(ctx, id, events...)
	if err != nil {
		return h, err
	}
	h.Done = true
	for _, receipt := range receipts {
		if !receipt.Duplicate {
			h.Events = append(h.Events, receipt.ID)
		}
	}
	return h, nil
}

func (a *API) drop(ctx context.Context, id string) (ActionResult, error) {
	h := ActionResult{ID: id, Done: true}
	if letter, dead := parseDeadLetterID(id); dead {
		return h, a.Journal.Drop(ctx, letter)
	}
	_, err := a.Journal.Release(ctx, id)
	return h, err
}

// handle calls do for every entry of a page.
func (a *API) handle(ctx context.Context, f dlqFilter, do func(context.Context, string) (ActionResult, error)) (ActionPage, error) {
	done := ActionPage{Entries: []ActionResult{}, Until: a.Now()}
	if f.Until != "" {
		until, err := f.Until.Time(a.Now())
		if err != nil {
			return done, huma.Error422UnprocessableEntity("until: " + err.Error())
		}
		done.Until = until
	}
	f.Until = When(done.Until.Format(time.RFC3339Nano))
	page, err := a.list(ctx, f)
	if err != nil {
		return done, err
	}
	done.Next = page.Next
	for _, e := range page.Entries {
		h, err := do(ctx, e.ID)
		if errors.Is(err, journal.ErrNotFound) {
			continue // another operator has retried or dropped the entry
		}
		if err != nil {
			h = ActionResult{ID: e.ID, Error: err.Error()}
		}
		done.Entries = append(done.Entries, h)
	}
	return done, nil
}
