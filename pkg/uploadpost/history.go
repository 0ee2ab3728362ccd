package uploadpost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	historyPage = 100                 // allowed are 10, 20, 50 and 100
	historySpan = 60 * 24 * time.Hour // the longest allowed span is two months
	maxPages    = 10000
)

// Query selects a part of the history. From and To are needed; an empty field selects
// everything.
type Query struct {
	From, To time.Time // time of the upload; To is exclusive
	Platform string
	Profile  string
	Status   string // success or failed
}

// Upload is an entry of the history: one upload to one platform.
type Upload struct {
	Platform  string
	Success   bool
	PostIDs   []string // IDs of the platform; webhooks have them as publish_id or post_id
	URL       string
	Error     string
	MediaType string
	At        time.Time // upload_timestamp in UTC; zero if invalid
	RequestID string
	JobID     string
	Profile   string
}

// row is an entry as the service encodes it.
type row struct {
	Platform  string          `json:"platform"`
	Success   *bool           `json:"success"`
	PostID    postIDs         `json:"platform_post_id"`
	URL       string          `json:"post_url"`
	Error     string          `json:"error_message"`
	MediaType string          `json:"media_type"`
	At        json.RawMessage `json:"upload_timestamp"`
	RequestID string          `json:"request_id"`
	JobID     string          `json:"job_id"`
	Profile   string          `json:"profile_username"`
}

// postIDs are encoded as a string, a number, a list of strings or numbers, or null.
type postIDs []string

// UnmarshalJSON implements json.Unmarshaler.
func (p *postIDs) UnmarshalJSON(text []byte) error {
	var list []json.RawMessage
	if err := json.Unmarshal(text, &list); err != nil {
		list = []json.RawMessage{text}
	}
	*p = nil
	for _, item := range list {
		var s string
		if err := json.Unmarshal(item, &s); err != nil {
			var n json.Number
			if err := json.Unmarshal(item, &n); err != nil {
				continue // null, or not an ID
			}
			s = n.String()
		}
		if s != "" {
			*p = append(*p, s)
		}
	}
	return nil
}

var errNoList = errors.New("there is no list of uploads in it")

// page is one answer. Its list has several names.
type page struct {
	rows []row
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *page) UnmarshalJSON(text []byte) error {
	if text[0] == '[' {
		return json.Unmarshal(text, &p.rows)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return err
	}
	for _, name := range []string{"history", "uploads", "data", "items"} {
		inner, ok := object[name]
		if !ok || string(inner) == "null" {
			continue
		}
		return json.Unmarshal(inner, p) // a list, or an object with a list
	}
	return errNoList
}

// History yields the uploads of a time span, newest first, and reads each page on demand.
// An upload that is added meanwhile may be yielded twice. After an error older uploads are
// missing.
func (c *Client) History(ctx context.Context, q Query) iter.Seq2[Upload, error] {
	return func(yield func(Upload, error) bool) {
		for to := q.To; to.After(q.From); to = to.Add(-historySpan) {
			part := q
			part.To = to
			if from := to.Add(-historySpan); from.After(q.From) {
				part.From = from
			}
			if !c.span(ctx, part, yield) {
				return
			}
		}
	}
}

// span yields the uploads of one query, and reports whether to continue.
func (c *Client) span(ctx context.Context, q Query, yield func(Upload, error) bool) bool {
	values := url.Values{
		"limit": {strconv.Itoa(historyPage)},
		// Round to whole seconds around the span; the loop below filters.
		"start": {q.From.UTC().Format(time.RFC3339)}, "end": {q.To.Add(time.Second - 1).UTC().Format(time.RFC3339)},
	}
	for name, value := range map[string]string{"platform": q.Platform, "profile_username": q.Profile, "status": q.Status} {
		if value != "" {
			values.Set(name, value)
		}
	}
	var last []row
	for n := 1; n <= maxPages; n++ {
		values.Set("page", strconv.Itoa(n))
		var p page
		if err := c.call(ctx, freely, http.MethodGet, "/uploadposts/history", values, nil, &p); err != nil {
			yield(Upload{}, fmt.Errorf("reading the history: %w", err))
			return false
		}
		// A service without pages, or with wrapping pages, would never end.
		if slices.EqualFunc(last, p.rows, sameRow) && len(last) > 0 {
			return true
		}
		for _, r := range p.rows {
			u := r.upload()
			// The service filters by whole days at times.
			if !u.At.IsZero() && (u.At.Before(q.From) || !u.At.Before(q.To)) {
				continue
			}
			if !yield(u, nil) {
				return false
			}
		}
		if len(p.rows) < historyPage {
			return true
		}
		last = p.rows
	}
	yield(Upload{}, fmt.Errorf("reading the history: it has more than %d pages", maxPages))
	return false
}

func sameRow(a, b row) bool {
	return a.RequestID == b.RequestID && a.JobID == b.JobID && a.Platform == b.Platform && a.Profile == b.Profile &&
		slices.Equal(a.PostID, b.PostID) && string(a.At) == string(b.At)
}

func (r row) upload() Upload {
	success := r.Success != nil && *r.Success
	return Upload{
		Platform: r.Platform, Success: success, PostIDs: r.PostID, URL: r.URL, Error: r.Error, MediaType: r.MediaType,
		At: parseTime(r.At), RequestID: r.RequestID, JobID: r.JobID, Profile: r.Profile,
	}
}

// parseTime parses a time as text, with or without a zone (UTC), or as Unix seconds.
func parseTime(raw json.RawMessage) time.Time {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		var seconds float64
		if err := json.Unmarshal(raw, &seconds); err != nil || seconds <= 0 || seconds > 1e12 {
			return time.Time{}
		}
		return time.UnixMicro(int64(seconds * 1e6)).UTC()
	}
	text = strings.Replace(text, " ", "T", 1)
	for _, layout := range []string{"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05"} {
		if at, err := time.ParseInLocation(layout, text, time.UTC); err == nil {
			return at.UTC()
		}
	}
	return time.Time{}
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusNotFound
}
