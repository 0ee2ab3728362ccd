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

// Kinds of what was set aside.
const (
	KindDeadLetter = "dead_letter" // a sink could not take it
	KindQuarantine = "quarantine"  // no source could understand it
)

// Malformed is the reason of what is in quarantine.
const Malformed = "malformed"

// DLQEntry is one thing that was set aside.
type DLQEntry struct {
	ID        string              `json:"id" doc:"Name of the entry: place@sink of a dead letter, a UUID of a quarantined request."`
	Kind      string              `json:"kind" enum:"dead_letter,quarantine"`
	Sink      string              `json:"sink,omitempty" doc:"The sink that could not take the event."`
	Source    string              `json:"source,omitempty" doc:"The source that could not understand the request."`
	Reason    string              `json:"reason" doc:"Why, as one of a closed set: too_large, no_destination, invalid, unauthorized, refused, expired, malformed."`
	Error     string              `json:"error" doc:"What the broker said, or what was wrong with the request."`
	Attempts  int                 `json:"attempts" doc:"Attempts to deliver the event, or 1 for a quarantined request."`
	Count     uint64              `json:"count,omitempty" doc:"How often a quarantined request was received: requests of its source with the same body are kept once."`
	First     time.Time           `json:"first" doc:"First attempt, or when the request was received first."`
	Last      time.Time           `json:"last" doc:"Last attempt, or when the request was received last."`
	Seq       journal.Seq         `json:"seq,omitempty" doc:"Place of the event in the journal."`
	EventID   string              `json:"event_id,omitempty"`
	EventType string              `json:"event_type,omitempty"`
	Bytes     int                 `json:"bytes" doc:"Size of the event's data, or of the request's body."`
	Event     *CloudEvent         `json:"event,omitempty" doc:"The event, where one entry is shown."`
	Request   *QuarantinedRequest `json:"request,omitempty" doc:"The request, where one entry is shown."`
}

// CloudEvent is an event in the JSON format of CloudEvents.
type CloudEvent struct{ json.RawMessage }

// Schema implements huma.SchemaProvider.
func (CloudEvent) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true, Description: "CloudEvents JSON event format."}
}

// QuarantinedRequest is a request as it came, less its secrets.
type QuarantinedRequest struct {
	Method     string      `json:"method,omitempty" doc:"Method, path, query and header are of the first request with this body."`
	Path       string      `json:"path,omitempty"`
	RawQuery   string      `json:"raw_query,omitempty" doc:"What is behind the question mark."`
	Header     http.Header `json:"header"`
	Body       string      `json:"body,omitempty" doc:"The body, where it is UTF-8."`
	BodyBase64 string      `json:"body_base64,omitempty" doc:"The body, where it is not."`
}

// dlqFilter says which entries are meant; all that is set must hold.
type dlqFilter struct {
	Kind   string `query:"kind" json:"kind,omitempty" enum:"dead_letter,quarantine" doc:"Only of this kind."`
	Sink   string `query:"sink" json:"sink,omitempty" doc:"Only dead letters of this sink."`
	Source string `query:"source" json:"source,omitempty" doc:"Only quarantined requests of this source."`
	Reason string `query:"reason" json:"reason,omitempty" doc:"Only with this reason."`
	Since  When   `query:"since" json:"since,omitempty" doc:"Only set aside, or received once more, from this time on: RFC 3339, or how long ago, such as 2h."`
	Until  When   `query:"until" json:"until,omitempty" doc:"Only set aside, and received for the last time, before this time."`
	Limit  int    `query:"limit" json:"limit,omitempty" minimum:"1" maximum:"1000" default:"100" doc:"Most entries at once."`
	After  string `query:"after" json:"after,omitempty" doc:"Go on behind this one: next of the page before."`
}

// Resolve implements huma.Resolver.
func (f *dlqFilter) Resolve(ctx huma.Context) []error {
	return note(ctx, named("kind", f.Kind), named("sink", f.Sink), named("source", f.Source))
}

type dlqID struct {
	ID string `path:"id" doc:"Name of the entry."`
}

type dlqShown struct {
	ID   string `path:"id" doc:"Name of the entry."`
	Data bool   `query:"data" default:"true" doc:"Show the event's data, or the request's query, header and body, which are personal: for operators."`
}

// DLQPage is a part of what was set aside.
type DLQPage struct {
	Entries []DLQEntry `json:"entries"`
	Next    string     `json:"next,omitempty" doc:"What to give as after for the next page; absent on the last one."`
}

// DLQCount is how much was set aside.
type DLQCount struct {
	Total  int        `json:"total"`
	More   bool       `json:"more,omitempty" doc:"There is more than was counted."`
	Groups []DLQGroup `json:"groups" doc:"By why, the largest first."`
	Until  time.Time  `json:"until" doc:"What to give as until to mean what was counted, and not what is set aside meanwhile."`
}

// DLQGroup is how much was set aside for one reason.
type DLQGroup struct {
	Kind   string `json:"kind" enum:"dead_letter,quarantine"`
	Sink   string `json:"sink,omitempty"`
	Source string `json:"source,omitempty"`
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// ActionResult says what became of one entry.
type ActionResult struct {
	ID     string   `json:"id"`
	Done   bool     `json:"done" doc:"Whether it is not set aside any more."`
	Events []string `json:"events,omitempty" doc:"CloudEvents ids of what was appended by a retry; duplicates are not."`
	Error  string   `json:"error,omitempty" doc:"Why it is still there."`
}

// ActionPage says what became of a page of entries.
type ActionPage struct {
	Entries []ActionResult `json:"entries"`
	Next    string         `json:"next,omitempty" doc:"What to give as after for the next page; absent on the last one."`
	Until   time.Time      `json:"until" doc:"What to give as until for the next page, so that what was set aside meanwhile is left out."`
}

type handledOutput struct{ Body ActionResult }

func (a *API) dlq(api huma.API) {
	huma.Register(api, counted(operation("list-dlq", http.MethodGet, "/dlq", "What was set aside: dead letters by sink, then quarantined requests", 422), kindList),
		func(ctx context.Context, in *dlqFilter) (*struct{ Body DLQPage }, error) {
			page, err := a.list(ctx, *in)
			return &struct{ Body DLQPage }{page}, err
		})
	huma.Register(api, ruled(operation("show-dlq", http.MethodGet, "/dlq/{id}", "One entry, with its event or request; this holds personal data", 404), personal("data", true)),
		func(ctx context.Context, in *dlqShown) (*struct{ Body DLQEntry }, error) {
			e, err := a.show(ctx, in.ID, in.Data)
			return &struct{ Body DLQEntry }{e}, failed(err)
		})
	huma.Register(api, operation("retry-dlq", http.MethodPost, "/dlq/{id}/retry", "Let one entry enter the normal way again", 404, 422),
		func(ctx context.Context, in *dlqID) (*handledOutput, error) {
			h, err := a.retry(ctx, in.ID)
			return &handledOutput{h}, failed(err)
		})
	huma.Register(api, operation("drop-dlq", http.MethodDelete, "/dlq/{id}", "Remove one entry for good", 404),
		func(ctx context.Context, in *dlqID) (*handledOutput, error) {
			h, err := a.drop(ctx, in.ID)
			return &handledOutput{h}, failed(err)
		})
	huma.Register(api, counted(operation("count-dlq", http.MethodGet, "/dlq-count", "How much was set aside, and why: what the same filter would retry or drop", 422), kindList),
		func(ctx context.Context, in *dlqFilter) (*struct{ Body DLQCount }, error) {
			count, err := a.count(ctx, *in)
			return &struct{ Body DLQCount }{count}, failed(err)
		})
	for word, do := range map[string]func(context.Context, string) (ActionResult, error){"retry": a.retry, "drop": a.drop} {
		huma.Register(api, counted(operation(word+"-dlq-page", http.MethodPost, "/dlq-"+word, "The same for a page of entries", 422), kindList),
			func(ctx context.Context, in *struct{ Body dlqFilter }) (*struct{ Body ActionPage }, error) {
				page, err := a.handle(ctx, in.Body, do)
				return &struct{ Body ActionPage }{page}, err
			})
	}
}

// asideName is the ID of a dead letter.
func asideName(id journal.DeliveryID) string { return fmt.Sprintf("%d@%s", id.Seq, id.Sink) }

// parseAside reads an ID; dead is false for that of a quarantined request.
func parseAside(id string) (letter journal.DeliveryID, dead bool) {
	number, sink, ok := strings.Cut(id, "@")
	seq, err := strconv.ParseUint(number, 10, 64)
	return journal.DeliveryID{Sink: sink, Seq: journal.Seq(seq)}, ok && err == nil
}

func ofDead(d journal.Dead) DLQEntry {
	return DLQEntry{
		ID: asideName(d.ID()), Kind: KindDeadLetter, Sink: d.Sink, Reason: d.Letter.Reason, Error: d.Letter.Err,
		Attempts: d.Letter.Attempts, First: d.Letter.First, Last: d.Letter.Last, Seq: d.Letter.Seq,
		EventID: d.Event.CloudEvent.ID(), EventType: d.Event.CloudEvent.Type(), Bytes: len(d.Event.CloudEvent.DataEncoded),
	}
}

func ofRejected(r journal.QuarantinedRequest) DLQEntry {
	return DLQEntry{
		ID: r.ID, Kind: KindQuarantine, Source: r.Source, Reason: Malformed, Error: r.Reason, Attempts: 1, Count: r.Count,
		First: r.Received, Last: r.LastReceived, Bytes: len(r.Body),
	}
}

// list returns a page of what the filter lets through.
func (a *API) list(ctx context.Context, f dlqFilter) (DLQPage, error) {
	page := DLQPage{Entries: []DLQEntry{}}
	limit := f.Limit
	if limit == 0 {
		limit = 100
	}
	bytes := 0
	// full takes an entry, if there is room.
	full := func(e DLQEntry) bool {
		if n := len(page.Entries); n == limit || bytes >= maxPageBytes {
			page.Next = page.Entries[n-1].ID
			return true
		}
		bytes += len(e.Error) + len(e.EventID) + len(e.EventType)
		page.Entries = append(page.Entries, e)
		return false
	}
	return page, failed(a.each(ctx, f, full))
}

// each goes through what the filter lets through, until stop says so.
func (a *API) each(ctx context.Context, f dlqFilter, stop func(DLQEntry) bool) error {
	times, err := a.times(map[string]When{"since": f.Since, "until": f.Until})
	if err != nil {
		return err
	}
	full := func(e DLQEntry) bool {
		if f.Sink != "" && e.Sink != f.Sink || f.Source != "" && e.Source != f.Source || f.Reason != "" && e.Reason != f.Reason ||
			e.Last.Before(times["since"]) || !times["until"].IsZero() && !e.Last.Before(times["until"]) {
			return false
		}
		return stop(e)
	}
	letter, dead := parseAside(f.After)
	if f.Kind != KindQuarantine && f.Source == "" && (f.After == "" || dead) {
		for d, err := range a.Journal.DeadLetters(ctx, letter) {
			if err != nil {
				return err
			}
			if full(ofDead(d)) {
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
			if full(ofRejected(r)) {
				return nil
			}
		}
	}
	return nil
}

// mostCounted bounds what a count costs.
const mostCounted = 100000

func (a *API) count(ctx context.Context, f dlqFilter) (DLQCount, error) {
	count := DLQCount{Groups: []DLQGroup{}, Until: a.Now()}
	groups := map[DLQGroup]int{}
	err := a.each(ctx, f, func(e DLQEntry) bool {
		if count.Total == mostCounted {
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
	if letter, dead := parseAside(id); dead {
		d, err := a.Journal.DeadLetter(ctx, letter)
		if err != nil {
			return DLQEntry{}, err
		}
		e := ofDead(d)
		text, err := attributes(d.Event, data)
		e.Event = &CloudEvent{text}
		return e, err
	}
	r, err := a.Journal.QuarantinedRequest(ctx, id)
	if err != nil {
		return DLQEntry{}, err
	}
	e := ofRejected(r)
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

// retry lets an entry enter the normal way: a dead letter to its sink, a
// quarantined request to all, if its source understands it today.
func (a *API) retry(ctx context.Context, id string) (ActionResult, error) {
	h := ActionResult{ID: id}
	if letter, dead := parseAside(id); dead {
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
	events, err := a.Understand(r)
	if err != nil {
		return h, huma.Error422UnprocessableEntity("it is still not understood: " + err.Error())
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
	if letter, dead := parseAside(id); dead {
		return h, a.Journal.Drop(ctx, letter)
	}
	_, err := a.Journal.Release(ctx, id)
	return h, err
}

// handle does something with each entry of a page.
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
			continue // somebody else has seen to it
		}
		if err != nil {
			h = ActionResult{ID: e.ID, Error: err.Error()}
		}
		done.Entries = append(done.Entries, h)
	}
	return done, nil
}
