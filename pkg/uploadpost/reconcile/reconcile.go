// Package reconcile finds in Upload-Post's history what its webhooks have not
// told, and enters it as a webhook would have: the service sends each webhook
// once, and what falls into an outage is never sent again.
package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/source"
	upload "github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost"
)

// FromHistory is the value of the attribute event.Origin of events that were found.
const FromHistory = "history"

// near is how far the times of one upload may be apart in the history and in its
// webhook.
const near = 15 * time.Minute

// History is the part of the service's API that is needed.
type History interface {
	History(ctx context.Context, q uploadpost.Query) iter.Seq2[uploadpost.Upload, error]
}

// Journal is where webhooks are, and where what was missing goes.
type Journal interface {
	journal.Appender
	journal.Log
	// AcquireLease is as in journal.Journal.
	AcquireLease(ctx context.Context, name string, until time.Duration) (bool, error)
}

// Reconciler compares the history with the journal. Its methods may be called
// concurrently.
type Reconciler struct {
	opts Options

	mu      sync.Mutex
	history History
	seen    map[string]time.Time // uploads that were looked at, by their identity in the history
}

// Options of a Reconciler. All are needed.
type Options struct {
	Source  string        // its name; part of the identity keys
	Reads   source.Source // makes events of webhooks
	History History
	Journal Journal
	Now     func() time.Time
}

// New makes a reconciler.
func New(o Options) *Reconciler {
	return &Reconciler{opts: o, history: o.History, seen: map[string]time.Time{}}
}

// Use lets comparisons to come read another history: the same one, with another
// key.
func (r *Reconciler) Use(h History) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = h
}

// Report says what a comparison has found.
type Report struct {
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Uploads    int       `json:"uploads" doc:"Uploads in the history of that time."`
	Known      int       `json:"known" doc:"Uploads that a webhook has told of, or an earlier comparison."`
	Recovered  int       `json:"recovered" doc:"Uploads that were missing and have been entered, or would be."`
	Unreadable int       `json:"unreadable,omitempty" doc:"Uploads of the history that make no event, such as one without a platform; they are passed over."`
	Events     []string  `json:"events,omitempty" doc:"CloudEvents ids of the missing ones, at most 1000."`
}

// maxEvents is how many ids a report names.
const maxEvents = 1000

// Compare enters what the history has between two times and the journal has not.
// In a dry run it only says what that is. Uploads that a comparison of this
// Reconciler has seen are not looked at again.
func (r *Reconciler) Compare(ctx context.Context, from, to time.Time, dry bool) (Report, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := Report{From: from, To: to}
	var fresh []uploadpost.Upload
	for u, err := range r.history.History(ctx, uploadpost.Query{From: from, To: to}) {
		if err != nil {
			return report, err
		}
		report.Uploads++
		if _, ok := r.seen[identity(u)]; ok {
			report.Known++
			continue
		}
		fresh = append(fresh, u)
	}
	// The oldest first, as they took place.
	slices.SortStableFunc(fresh, func(a, b uploadpost.Upload) int { return a.At.Compare(b.At) })
	if len(fresh) == 0 {
		return report, nil
	}
	known, err := r.known(ctx, fresh[0].At.Add(-near))
	if err != nil {
		return report, err
	}
	for _, u := range fresh {
		id, err := r.enter(ctx, u, known, dry)
		_, odd := errors.AsType[*source.MalformedError](err)
		switch {
		case odd: // what stands behind it must not wait for it
			report.Unreadable++
		case err != nil:
			return report, err
		case id == "":
			report.Known++
		default:
			if report.Recovered++; len(report.Events) < maxEvents {
				report.Events = append(report.Events, id)
			}
		}
		if !dry {
			r.remember(u)
		}
	}
	return report, nil
}

// remember notes that an upload needs no second look. The lock is held.
func (r *Reconciler) remember(u uploadpost.Upload) {
	r.seen[identity(u)] = r.opts.Now()
}

// forget lets go of uploads that no comparison will come to again.
func (r *Reconciler) forget(before time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, at := range r.seen {
		if at.Before(before) {
			delete(r.seen, id)
		}
	}
}

// identity tells an upload of the history from another.
func identity(u uploadpost.Upload) string {
	return fmt.Sprintf("%q %q %q %q %v", u.RequestID, u.JobID, u.Platform, u.Profile, u.At.UnixNano())
}

// enter enters an upload that is missing, and returns the id of its event; it
// is empty where the upload is known.
func (r *Reconciler) enter(ctx context.Context, u uploadpost.Upload, known *index, dry bool) (string, error) {
	if known.has(u) {
		return "", nil
	}
	e, err := r.event(u)
	if err != nil {
		return "", err
	}
	if dry {
		return e.CloudEvent.ID(), nil
	}
	receipts, err := r.opts.Journal.Append(ctx, e)
	if err != nil {
		return "", fmt.Errorf("entering an upload of the history: %w", err)
	}
	if receipts[0].Duplicate {
		return "", nil
	}
	return e.CloudEvent.ID(), nil
}

// body is a webhook with the fields that the history knows.
type body struct {
	Event     string `json:"event"`
	Profile   string `json:"profile_username,omitempty"`
	Platform  string `json:"platform"`
	MediaType string `json:"media_type,omitempty"`
	JobID     string `json:"job_id,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	Result    result `json:"result"`
	CreatedAt string `json:"created_at,omitempty"`
}

type result struct {
	Success bool   `json:"success"`
	URL     string `json:"url,omitempty"`
	PostID  string `json:"post_id,omitempty"`
	Error   string `json:"error,omitempty"`
}

const uploadCompleted = "upload_completed"

// event makes the event that the upload's webhook would have made, as far as the
// history knows it.
func (r *Reconciler) event(u uploadpost.Upload) (event.Event, error) {
	b := body{
		Event: uploadCompleted, Profile: u.Profile, Platform: u.Platform, MediaType: u.MediaType, JobID: u.JobID, RequestID: u.RequestID,
		Result: result{Success: u.Success, URL: u.URL, Error: u.Error},
	}
	if len(u.PostIDs) > 0 {
		b.Result.PostID = u.PostIDs[0]
	}
	if !u.At.IsZero() {
		b.CreatedAt = u.At.Format("2006-01-02T15:04:05.000000Z07:00")
	}
	text, err := json.Marshal(b)
	if err != nil {
		return event.Event{}, fmt.Errorf("making an event of an upload: %w", err)
	}
	events, err := r.opts.Reads.Normalize(&source.Request{Header: http.Header{}, Body: text, Received: r.opts.Now().UTC()})
	if err != nil {
		return event.Event{}, fmt.Errorf("making an event of an upload: %w", err)
	}
	e := events[0]
	e.CloudEvent.SetExtension(event.Origin, FromHistory)
	// The history does not tell which of the two ids of a webhook it has.
	for _, id := range u.PostIDs {
		e.Keys = append(e.Keys, upload.SuccessKeys(r.opts.Source, u.Platform, id)...)
	}
	slices.Sort(e.Keys)
	e.Keys = slices.Compact(e.Keys)
	return e, nil
}

// index is the uploads that the journal knows of.
type index struct {
	posts    map[[2]string]bool // platform and id
	failures []failure
}

type failure struct {
	platform, profile, jobID, requestID string
	at                                  time.Time
	taken                               bool // by an upload of the history
}

// told is what a stored webhook tells of its upload.
type told struct {
	JobID     string `json:"job_id"`
	RequestID string `json:"request_id"`
	Result    struct {
		PublishID string `json:"publish_id"`
		PostID    string `json:"post_id"`
	} `json:"result"`
}

// page is how many records are read at once.
const page = 1024

// known reads what the journal knows since a time.
func (r *Reconciler) known(ctx context.Context, since time.Time) (*index, error) {
	x := &index{posts: map[[2]string]bool{}}
	next, err := r.opts.Journal.Since(ctx, since)
	if err != nil {
		return nil, err
	}
	for {
		records, err := r.opts.Journal.Read(ctx, next, page)
		if err != nil {
			return nil, err
		}
		if len(records) == 0 {
			return x, nil
		}
		for _, record := range records {
			x.add(record)
		}
		next = records[len(records)-1].Seq + 1
	}
}

func (x *index) add(record journal.Record) {
	e := record.Event
	if e.CloudEvent.Type() != upload.TypeOf(uploadCompleted) {
		return
	}
	var t told
	_ = json.Unmarshal(e.CloudEvent.DataEncoded, &t) // what is of another type is not there
	platform, _ := e.Attribute(event.Platform)
	if outcome, _ := e.Attribute(event.Outcome); outcome == "success" {
		for _, id := range []string{t.Result.PublishID, t.Result.PostID} {
			if id != "" {
				x.posts[[2]string{platform, id}] = true
			}
		}
		return
	}
	profile, _ := e.Attribute(event.Profile)
	at := e.CloudEvent.Time()
	if at.IsZero() {
		at = record.Accepted
	}
	x.failures = append(x.failures, failure{platform: platform, profile: profile, jobID: t.JobID, requestID: t.RequestID, at: at})
}

// has reports whether an upload is known. A failure has no ID: it is one that
// agrees in platform, profile, and job or request where both tell one, at about
// the same time, and each is one upload's only.
func (x *index) has(u uploadpost.Upload) bool {
	if u.Success {
		return slices.ContainsFunc(u.PostIDs, func(id string) bool { return x.posts[[2]string{u.Platform, id}] })
	}
	best, least := -1, near+1
	for i, f := range x.failures {
		if f.taken || f.platform != u.Platform || f.profile != u.Profile || differ(f.jobID, u.JobID) || differ(f.requestID, u.RequestID) {
			continue
		}
		if apart := f.at.Sub(u.At).Abs(); apart < least {
			best, least = i, apart
		}
	}
	if best < 0 {
		return false
	}
	x.failures[best].taken = true
	return true
}

func differ(a, b string) bool { return a != "" && b != "" && a != b }

// Schedule is when to compare, and how far back.
type Schedule struct {
	Interval, Lookback, Settle time.Duration
}

// Run compares every interval until ctx is done, and tells found of what was
// recovered. The first time it goes back to the last event that was stored, if
// that is longer ago than the lookback. What is younger than settle may still
// come by itself. Of the processes that share a journal one compares.
func (r *Reconciler) Run(ctx context.Context, s Schedule, found func(Report, error)) {
	since := r.lastSeen(ctx)
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	for {
		leads, err := r.opts.Journal.AcquireLease(ctx, "reconcile/"+r.opts.Source, 2*s.Interval)
		if !leads && err == nil {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				return
			}
		}
		now := r.opts.Now()
		from := now.Add(-s.Lookback)
		if !since.IsZero() && since.Before(from) {
			from = since.Add(-near)
		}
		var report Report
		if err == nil {
			report, err = r.Compare(ctx, from, now.Add(-s.Settle), false)
		}
		if ctx.Err() != nil {
			return
		}
		found(report, err)
		if err == nil {
			since = time.Time{}
		}
		r.forget(now.Add(-2 * s.Lookback))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lastSeen is when the last event was stored, zero if there is none.
func (r *Reconciler) lastSeen(ctx context.Context) time.Time {
	last := r.opts.Journal.Last()
	if last == 0 {
		return time.Time{}
	}
	records, err := r.opts.Journal.Read(ctx, last, 1)
	if err != nil || len(records) == 0 {
		return time.Time{} // the lookback is what is left
	}
	return records[0].Accepted
}
