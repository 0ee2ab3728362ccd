// Package reconcile backfills uploads that are in Upload-Post's history and for which no
// webhook arrived. The service sends each webhook once; webhooks during an outage are never
// sent again.
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

// FromHistory is the value of the attribute event.Origin of backfilled events.
const FromHistory = "history"

// near is the maximum difference between the times of one upload in the history and in its
// webhook.
const near = 15 * time.Minute

// History is the needed part of the service's API.
type History interface {
	History(ctx context.Context, q uploadpost.Query) iter.Seq2[uploadpost.Upload, error]
}

// Journal is the needed part of the journal.
type Journal interface {
	journal.Appender
	journal.Log
	// AcquireLease is the method of journal.Journal.
	AcquireLease(ctx context.Context, name string, until time.Duration) (bool, error)
}

// Reconciler compares the history with the journal. The methods may be called concurrently.
type Reconciler struct {
	opts Options

	mu       sync.Mutex
	compared map[string]time.Time // compared uploads, by identity in the history
}

// Options of a Reconciler. All are needed.
type Options struct {
	Source  string        // name of the source, part of the identity keys
	Reads   source.Source // makes events of webhooks
	History History
	Journal Journal
	Now     func() time.Time
}

// New returns a Reconciler.
func New(o Options) *Reconciler {
	return &Reconciler{opts: o, compared: map[string]time.Time{}}
}

// Report is the result of a comparison.
type Report struct {
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Uploads    int       `json:"uploads" doc:"Uploads in the history in this time span."`
	Known      int       `json:"known" doc:"Uploads with a webhook, and uploads that an earlier comparison backfilled."`
	Recovered  int       `json:"recovered" doc:"Backfilled uploads; with dry_run, uploads to backfill."`
	Unreadable int       `json:"unreadable,omitempty" doc:"Uploads of the history that make no event, such as an upload without a platform. They are skipped."`
	Events     []string  `json:"events,omitempty" doc:"CloudEvents ids of the backfilled uploads, at most 1000."`
}

// maxEvents is the maximum number of event IDs in a report.
const maxEvents = 1000

// Compare backfills the uploads of a time span that are in the history and not in the
// journal. A dry run only reports them. Compare skips uploads that an earlier comparison of
// this Reconciler has compared.
func (r *Reconciler) Compare(ctx context.Context, from, to time.Time, dry bool) (Report, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := Report{From: from, To: to}
	var fresh []uploadpost.Upload
	for u, err := range r.opts.History.History(ctx, uploadpost.Query{From: from, To: to}) {
		if err != nil {
			return report, err
		}
		report.Uploads++
		if _, ok := r.compared[identity(u)]; ok {
			report.Known++
			continue
		}
		fresh = append(fresh, u)
	}
	// Oldest first, in the order of the uploads.
	slices.SortStableFunc(fresh, func(a, b uploadpost.Upload) int { return a.At.Compare(b.At) })
	if len(fresh) == 0 {
		return report, nil
	}
	known, err := r.readUploads(ctx, fresh[0].At.Add(-near))
	if err != nil {
		return report, err
	}
	for _, u := range fresh {
		id, err := r.enter(ctx, u, known, dry)
		_, odd := errors.AsType[*source.MalformedError](err)
		switch {
		case odd: // later uploads must not wait for a malformed one
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

// remember records a compared upload. The caller holds mu.
func (r *Reconciler) remember(u uploadpost.Upload) {
	r.compared[identity(u)] = r.opts.Now()
}

// prune drops the records of uploads before the span of later comparisons.
func (r *Reconciler) prune(before time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, at := range r.compared {
		if at.Before(before) {
			delete(r.compared, id)
		}
	}
}

// identity identifies an upload in the history.
func identity(u uploadpost.Upload) string {
	return fmt.Sprintf("%q %q %q %q %v", u.RequestID, u.JobID, u.Platform, u.Profile, u.At.UnixNano())
}

// enter backfills an upload and returns the ID of its event; empty for a known upload.
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
		return "", fmt.Errorf("backfilling an upload: %w", err)
	}
	if receipts[0].Duplicate {
		return "", nil
	}
	return e.CloudEvent.ID(), nil
}

// body returns a webhook with the fields of the history.
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

// event returns the event of the upload's webhook, as far as the history has its fields.
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
	// The history has one of the two IDs of a webhook, and does not say which.
	for _, id := range u.PostIDs {
		e.Keys = append(e.Keys, upload.SuccessKeys(r.opts.Source, u.Platform, id)...)
	}
	slices.Sort(e.Keys)
	e.Keys = slices.Compact(e.Keys)
	return e, nil
}

// index is the set of uploads in the journal.
type index struct {
	posts    map[[2]string]bool // platform and ID
	failures []failure
}

type failure struct {
	platform, profile, jobID, requestID string
	at                                  time.Time
	taken                               bool // matched with an upload of the history
}

// webhookFields has the fields of a stored webhook that identify its upload.
type webhookFields struct {
	JobID     string `json:"job_id"`
	RequestID string `json:"request_id"`
	Result    struct {
		PublishID string `json:"publish_id"`
		PostID    string `json:"post_id"`
	} `json:"result"`
}

// page is the number of records of one read.
const page = 1024

// readUploads reads the uploads in the journal since a time.
func (r *Reconciler) readUploads(ctx context.Context, since time.Time) (*index, error) {
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
	var t webhookFields
	_ = json.Unmarshal(e.CloudEvent.DataEncoded, &t) // a field of another type stays empty
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

// has reports whether the journal has an upload. A failed upload has no ID: it matches a
// failure with equal platform, profile, and job or request if both have one, at about the
// same time. Each failure matches one upload.
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

// Schedule is the interval of comparisons and their time span.
type Schedule struct {
	Interval, Lookback, Settle time.Duration
}

// Run compares every interval until ctx is done, and calls found with the backfilled
// uploads. The first comparison begins at the last stored event if that is before the
// lookback. Uploads younger than settle are skipped, because their webhook may still
// arrive. One of the processes that share a journal compares.
func (r *Reconciler) Run(ctx context.Context, s Schedule, found func(Report, error)) {
	since := r.lastAccepted(ctx)
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
		r.prune(now.Add(-2 * s.Lookback))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lastAccepted returns the acceptance time of the last event, or the zero time.
func (r *Reconciler) lastAccepted(ctx context.Context) time.Time {
	last := r.opts.Journal.Last()
	if last == 0 {
		return time.Time{}
	}
	records, err := r.opts.Journal.Read(ctx, last, 1)
	if err != nil || len(records) == 0 {
		return time.Time{} // use the lookback
	}
	return records[0].Accepted
}
