package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	upload "github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// history is a history that a test writes.
type history struct {
	uploads []uploadpost.Upload
	err     error
	asked   []uploadpost.Query
}

func (h *history) History(_ context.Context, q uploadpost.Query) iter.Seq2[uploadpost.Upload, error] {
	h.asked = append(h.asked, q)
	return func(yield func(uploadpost.Upload, error) bool) {
		for _, u := range slices.Backward(h.uploads) {
			if !u.At.Before(q.From) && u.At.Before(q.To) && !yield(u, nil) {
				return
			}
		}
		if h.err != nil {
			yield(uploadpost.Upload{}, h.err)
		}
	}
}

type world struct {
	history *history
	journal *local.Journal
	source  source.Source
	now     time.Time
	*Reconciler
}

func start(t *testing.T) *world {
	t.Helper()
	w := &world{history: &history{}, now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	var err error
	w.journal, err = local.Open(local.Options{Dir: "data", FS: vfs.NewMem(), Window: time.Hour, Retention: 240 * time.Hour, Clock: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.journal.Close() })
	if w.source, err = upload.New(upload.Config{Timezone: "UTC", Auth: auth.Auth{None: true}}, source.Env{Name: "up"}); err != nil {
		t.Fatal(err)
	}
	w.fresh()
	return w
}

// fresh makes a reconciler that remembers nothing, as after a restart.
func (w *world) fresh() {
	w.Reconciler = New(Options{Source: "up", Reads: w.source, History: w.history, Journal: w.journal, Now: func() time.Time { return w.now }})
}

// webhook stores a webhook and reports whether it was new.
func (w *world) webhook(t *testing.T, platform, publishID, postID, failed string, at time.Time) bool {
	t.Helper()
	result := map[string]any{"success": failed == "", "error": nil}
	for name, value := range map[string]string{"publish_id": publishID, "post_id": postID, "error": failed} {
		if value != "" {
			result[name] = value
		}
	}
	body, err := json.Marshal(map[string]any{
		"event": "upload_completed", "user_email": "a@b.c", "profile_username": "p", "platform": platform, "title": "t",
		"result": result, "created_at": at.Format("2006-01-02T15:04:05.000000"),
	})
	if err != nil {
		t.Fatal(err)
	}
	events, err := w.source.Normalize(&source.Request{Header: http.Header{}, Body: body, Received: w.now})
	if err != nil {
		t.Fatal(err)
	}
	receipts, err := w.journal.Append(t.Context(), events...)
	if err != nil {
		t.Fatal(err)
	}
	return !receipts[0].Duplicate
}

// upload notes an upload in the history.
func (w *world) upload(platform, profile string, at time.Time, failed string, ids ...string) {
	w.history.uploads = append(w.history.uploads, uploadpost.Upload{
		Platform: platform, Profile: profile, Success: failed == "", PostIDs: ids, Error: failed, MediaType: "video", At: at,
		RequestID: fmt.Sprint("r", len(w.history.uploads)), JobID: fmt.Sprint("j", len(w.history.uploads)), URL: "https://x/1",
	})
}

func (w *world) compare(t *testing.T, dry bool) (uploads, known, recovered int) {
	t.Helper()
	report, err := w.Compare(t.Context(), w.now.Add(-100*time.Hour), w.now, dry)
	if err != nil {
		t.Fatal(err)
	}
	return report.Uploads, report.Known, report.Recovered
}

func (w *world) stored(t *testing.T) []journal.Record {
	t.Helper()
	records, err := w.journal.Read(t.Context(), 1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// TestCompare: what came is known by either of its ids, or for failures by what
// they are; what did not come is entered, once.
func TestCompare(t *testing.T) {
	w := start(t)
	ago := func(d time.Duration) time.Time { return w.now.Add(-d) }
	// Long ago: the window has forgotten it, the journal has not.
	now := w.now
	w.now = ago(50 * time.Hour)
	w.webhook(t, "instagram", "old", "old", "", w.now)
	w.upload("instagram", "p", w.now, "", "old")
	w.now = now
	w.webhook(t, "tiktok", "v_pub~1", "1", "", ago(time.Hour))
	w.upload("tiktok", "p", ago(time.Hour), "", "1")
	w.webhook(t, "tiktok", "v_pub~2", "2", "", ago(time.Hour))
	w.upload("tiktok", "p", ago(time.Hour), "", "other", "v_pub~2")
	w.webhook(t, "x", "", "", "went wrong", ago(30*time.Minute))
	w.upload("x", "p", ago(29*time.Minute), "went wrong")
	// Missing: one that succeeded, the second failure of two, one of another profile.
	w.upload("youtube", "p", ago(20*time.Minute), "", "new")
	w.upload("x", "p", ago(28*time.Minute), "went wrong again")
	w.upload("x", "q", ago(29*time.Minute), "went wrong")

	if uploads, known, missing := w.compare(t, true); uploads != 7 || known != 4 || missing != 3 || len(w.stored(t)) != 4 {
		t.Errorf("a dry run: %d uploads, %d known, %d missing, %d stored", uploads, known, missing, len(w.stored(t)))
	}
	if uploads, known, recovered := w.compare(t, false); uploads != 7 || known != 4 || recovered != 3 {
		t.Errorf("%d uploads, %d known, %d recovered", uploads, known, recovered)
	}
	for range 2 {
		if uploads, known, recovered := w.compare(t, false); uploads != 7 || known != 7 || recovered != 0 {
			t.Errorf("again: %d uploads, %d known, %d recovered", uploads, known, recovered)
		}
		w.fresh()
	}
	// And when the window has passed, too.
	w.now = w.now.Add(3 * time.Hour)
	w.fresh()
	if _, known, recovered := w.compare(t, false); known != 7 || recovered != 0 {
		t.Errorf("outside the window: %d known, %d recovered", known, recovered)
	}
	records := w.stored(t)
	if len(records) != 7 {
		t.Fatalf("%d events are stored", len(records))
	}
	e := records[6].Event.CloudEvent
	if e.ID() != "upload_completed/youtube/new/success" || e.Extensions()[event.Origin] != FromHistory || e.Type() != "com.upload-post.upload_completed" {
		t.Errorf("recovered: %v", e)
	}
	const want = `{"event":"upload_completed","profile_username":"p","platform":"youtube","media_type":"video","job_id":"j4","request_id":"r4","result":{"success":true,"url":"https://x/1","post_id":"new"},"created_at":"2026-05-01T11:40:00.000000Z"}`
	if diff := cmp.Diff(want, string(e.Data())); diff != "" {
		t.Errorf("its data (-want +got):\n%s", diff)
	}
}

// TestHistoryFirst: a webhook that comes after all is a duplicate, whichever of
// its ids the history had.
func TestHistoryFirst(t *testing.T) {
	for _, id := range []string{"v_pub~1", "1"} {
		w := start(t)
		w.upload("tiktok", "p", w.now.Add(-time.Minute), "", id)
		if _, _, recovered := w.compare(t, false); recovered != 1 {
			t.Fatalf("%d recovered", recovered)
		}
		if w.webhook(t, "tiktok", "v_pub~1", "1", "", w.now) {
			t.Errorf("with id %s in the history the webhook is new", id)
		}
	}
}

// TestCompareGoesOn: what the service fails at is made up for the next time.
func TestCompareGoesOn(t *testing.T) {
	w := start(t)
	w.upload("x", "p", w.now.Add(-time.Minute), "", "1")
	w.history.err = errors.New("away")
	if _, err := w.Compare(t.Context(), w.now.Add(-time.Hour), w.now, false); err == nil || !strings.Contains(err.Error(), "away") {
		t.Errorf("Compare = %v", err)
	}
	if n := len(w.stored(t)); n != 0 {
		t.Errorf("%d are stored of half a history", n)
	}
	w.history.err = nil
	if _, _, recovered := w.compare(t, false); recovered != 1 {
		t.Errorf("%d recovered", recovered)
	}
}

// TestRunReachesBack: the first comparison goes back to the last event, however
// long ago that was, and the next ones no further than the lookback.
func TestRunReachesBack(t *testing.T) {
	w := start(t)
	w.webhook(t, "x", "1", "1", "", w.now)
	last := w.now
	w.now = w.now.Add(72 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan Report)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, Schedule{Interval: time.Millisecond, Lookback: 48 * time.Hour, Settle: 10 * time.Minute}, func(r Report, err error) {
			if err != nil {
				t.Error(err)
			}
			select {
			case reports <- r:
			case <-ctx.Done():
			}
		})
	}()
	first, second := <-reports, <-reports
	cancel()
	<-done
	if !first.From.Before(last) || !first.To.Equal(w.now.Add(-10*time.Minute)) {
		t.Errorf("the first: %+v", first)
	}
	if !second.From.Equal(w.now.Add(-48 * time.Hour)) {
		t.Errorf("the second: %+v", second)
	}
}

// An upload of the history that makes no event holds up none behind it.
func TestOddUploads(t *testing.T) {
	w := start(t)
	w.upload(" ", "p", w.now.Add(-2*time.Hour), "", "1")
	w.upload("instagram", "p", w.now.Add(-time.Hour), "", "2")
	report, err := w.Compare(t.Context(), w.now.Add(-100*time.Hour), w.now, false)
	if err != nil || report.Unreadable != 1 || report.Recovered != 1 {
		t.Errorf("%+v, %v", report, err)
	}
}

// follower is a journal that another process leads.
type follower struct{ Journal }

func (follower) AcquireLease(context.Context, string, time.Duration) (bool, error) { return false, nil }

// Of the processes that share a journal one compares.
func TestOnlyTheLeaderCompares(t *testing.T) {
	w := start(t)
	w.upload("instagram", "p", w.now.Add(-time.Hour), "", "2")
	w.Reconciler = New(Options{Source: "up", Reads: w.source, History: w.history, Journal: follower{w.journal}, Now: func() time.Time { return w.now }})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.Run(ctx, Schedule{Interval: time.Millisecond, Lookback: 48 * time.Hour}, func(r Report, err error) { t.Errorf("compared: %+v, %v", r, err) })
}
