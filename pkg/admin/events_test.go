package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/sinks"
)

func (w *world) search(t *testing.T, query url.Values) (ids []string, found SearchResult) {
	t.Helper()
	found, err := w.client.Search(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range found.Events {
		if bytes.Contains(s.Event.RawMessage, []byte("title")) {
			t.Errorf("personal data that nobody asked for: %s", s.Event.RawMessage)
		}
		var e struct{ ID string }
		if err := json.Unmarshal(s.Event.RawMessage, &e); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids, found
}

func TestSearch(t *testing.T) {
	w := newWorld(t, "")
	for i, platform := range []string{"instagram", "tiktok", "instagram"} {
		id := fmt.Sprint("upload/", i)
		e := journaltest.Event(id, event.NewKey([]string{"main", "main", "spare"}[i], id))
		e.CloudEvent.SetType("com.upload-post.upload_completed")
		for name, value := range map[string]string{event.Platform: platform, event.Profile: fmt.Sprint("p", i), event.PublishID: fmt.Sprint("id", i), event.Outcome: "success"} {
			e.CloudEvent.SetExtension(name, value)
		}
		if _, err := w.journal.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they arrive", func() bool { return len(w.broker.ids()) == 3 })
	for query, want := range map[string][]string{
		"":                                {"upload/2", "upload/1", "upload/0"},
		"id=load/1":                       {"upload/1"},
		"platform=instagram":              {"upload/2", "upload/0"},
		"platform=instagram&profile=p0":   {"upload/0"},
		"publish_id=id1":                  {"upload/1"},
		"type=upload_completed":           {"upload/2", "upload/1", "upload/0"},
		"type=completed":                  nil,
		"outcome=failure":                 nil,
		"source=main":                     {"upload/1", "upload/0"},
		"source=mai":                      nil,
		"source=spare&platform=tiktok":    nil,
		"from=1h":                         {"upload/2", "upload/1", "upload/0"},
		"to=1h":                           nil,
		"before=3":                        {"upload/1", "upload/0"},
		"filter=platform+%3D%3D+'tiktok'": {"upload/1"},
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got, found := w.search(t, values)
		if diff := cmp.Diff(want, got); diff != "" || found.Next != 0 {
			t.Errorf("%s: next %d (-want +got):\n%s", query, found.Next, diff)
		}
		if len(found.Events) == 3 && (found.Events[0].Source != "spare" || found.Events[1].Source != "main") {
			t.Errorf("%s: they came by %q and %q", query, found.Events[0].Source, found.Events[1].Source)
		}
		if len(found.Events) > 0 && (found.Events[0].Deliveries[0].State != relay.Delivered || found.Events[0].Deliveries[0].At == nil) {
			t.Errorf("%s: the fates are %+v", query, found.Events[0].Deliveries)
		}
	}
	_, err := w.client.Search(t.Context(), url.Values{"filter": {"("}})
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusUnprocessableEntity {
		t.Errorf("a filter that is none: %v", err)
	}
}

// Page by page a search finds all there is, each event once.
func TestSearchGoesOnWhereItEnded(t *testing.T) {
	w := newWorld(t, "")
	const many = 1300 // several pages of the journal
	var events []event.Event
	for i := range many {
		events = append(events, journaltest.Event(fmt.Sprintf("%04d", i)))
	}
	if _, err := w.journal.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	query := url.Values{"limit": {"199"}}
	var all []string
	for {
		ids, found := w.search(t, query)
		all = append(all, ids...)
		if found.Next == 0 {
			break
		}
		query.Set("before", fmt.Sprint(found.Next))
	}
	slices.Reverse(all)
	for i, id := range all {
		if id != fmt.Sprintf("%04d", i) {
			t.Fatalf("at %d is %s", i, id)
		}
	}
	if len(all) != many {
		t.Errorf("%d were found", len(all))
	}
}

// sparse is a journal in which few places have an event.
type sparse struct {
	journal.Journal
	places []journal.Seq
	reads  int
}

func (s *sparse) Last() journal.Seq   { return s.places[len(s.places)-1] }
func (s *sparse) Oldest() journal.Seq { return s.places[0] }

func (s *sparse) Read(_ context.Context, from journal.Seq, limit int) (records []journal.Record, err error) {
	s.reads++
	for _, place := range s.places {
		if place >= from && len(records) < limit {
			records = append(records, journal.Record{Seq: place, Event: journaltest.Event(fmt.Sprint(place))})
		}
	}
	return records, nil
}

func (s *sparse) Since(context.Context, time.Time) (journal.Seq, error) { return 0, nil }

func TestSearchWherePlacesAreEmpty(t *testing.T) {
	w := newWorld(t, "")
	s := &sparse{}
	for i := range 2000 {
		s.places = append(s.places, journal.Seq(10+i)) // dense, and then far away
	}
	for i := range 20 {
		s.places = append(s.places, journal.Seq(5_000_000*(i+1)))
	}
	a := *w.server.opts.API
	a.Journal = s
	in := &searchInput{Limit: 3000}
	found, err := a.search(t.Context(), in)
	if err != nil || found.Next != 0 {
		t.Fatal(found.Next, err)
	}
	var got []journal.Seq
	for _, e := range found.Events {
		got = append(got, e.Seq)
	}
	slices.Reverse(got)
	if diff := cmp.Diff(s.places, got); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	if s.reads > 400 {
		t.Errorf("it took %d reads", s.reads)
	}
}

// A search for what is not there ends all the same, and says where to go on.
func TestSearchIsBounded(t *testing.T) {
	w := newWorld(t, "")
	s := &sparse{}
	for i := range maxScanned + 5000 {
		s.places = append(s.places, journal.Seq(i+1))
	}
	a := *w.server.opts.API
	a.Journal = s
	in := &searchInput{Limit: 10, ID: "nowhere"}
	found, err := a.search(t.Context(), in)
	if err != nil || found.Next == 0 || found.Scanned > maxScanned+searchPage || found.Reached == nil {
		t.Fatalf("%+v, %v", found, err)
	}
	in.Before = uint64(found.Next)
	for found.Next != 0 { // a slow machine may take more than two
		if found, err = a.search(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		in.Before = uint64(found.Next)
	}
}

func TestOneEvent(t *testing.T) {
	w := newWorld(t, "")
	w.put(t, "a")
	eventually(t, "it arrives", func() bool { return len(w.broker.ids()) == 1 })
	s, err := w.client.Event(t.Context(), 1, false)
	if err != nil || s.Deliveries[0].State != relay.Delivered || bytes.Contains(s.Event.RawMessage, []byte("title")) || s.Bytes == 0 {
		t.Errorf("Event = %+v, %v", s, err)
	}
	if s, err = w.client.Event(t.Context(), 1, true); err != nil || !bytes.Contains(s.Event.RawMessage, []byte("title")) {
		t.Errorf("with its data: %s, %v", s.Event.RawMessage, err)
	}
	re, err := w.client.Send(t.Context(), 1, "out")
	if err != nil || re.Total != 1 || re.Seq != 1 {
		t.Fatalf("Send = %+v, %v", re, err)
	}
	eventually(t, "it arrives again", func() bool { return len(w.broker.ids()) == 2 })
	for want, do := range map[int]func() error{
		http.StatusNotFound:            func() error { _, err := w.client.Event(t.Context(), 9, false); return err },
		http.StatusUnprocessableEntity: func() error { _, err := w.client.Send(t.Context(), 1, ""); return err },
	} {
		if r, ok := errors.AsType[*RefusedError](do()); !ok || r.Status != want {
			t.Errorf("%+v, want status %d", r, want)
		}
	}
	for _, place := range []journal.Seq{0, 9} {
		_, err := w.client.Send(t.Context(), place, "out")
		if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusNotFound {
			t.Errorf("sending %d: %v", place, err)
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t, "")
	s, err := w.client.SteerSink(t.Context(), "out", "pause")
	if err != nil || s.State != relay.SinkPaused || s.Paused == nil {
		t.Fatalf("paused: %+v, %v", s, err)
	}
	w.put(t, "a")
	if s, err = w.client.SteerSink(t.Context(), "out", "resume"); err != nil || s.Paused != nil {
		t.Fatalf("resumed: %+v, %v", s, err)
	}
	eventually(t, "it arrives", func() bool { return len(w.broker.ids()) == 1 })
	_, err = w.client.SteerSink(t.Context(), "other", "pause")
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusNotFound {
		t.Errorf("a sink that is none: %v", err)
	}
}

func TestCountsByReason(t *testing.T) {
	w := newWorld(t, "")
	w.broker.accept(func(id string) error {
		if id == "3" {
			return sinks.Permanent(sinks.ReasonInvalid, errors.New("no"))
		}
		return sinks.Permanent(sinks.ReasonTooLarge, errors.New("too large"))
	})
	w.put(t, "1", "2", "3")
	if _, err := w.journal.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "in", Received: time.Now(), Reason: "no event"}); err != nil {
		t.Fatal(err)
	}
	var count DLQCount
	var err error
	eventually(t, "all are aside", func() bool {
		if count, err = w.client.Count(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		return count.Total == 4
	})
	want := []DLQGroup{
		{Kind: KindDeadLetter, Sink: "out", Reason: "too_large", Count: 2},
		{Kind: KindDeadLetter, Sink: "out", Reason: "invalid", Count: 1},
		{Kind: KindQuarantine, Source: "in", Reason: Malformed, Count: 1},
	}
	if diff := cmp.Diff(want, count.Groups); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	if count, err = w.client.Count(t.Context(), url.Values{"reason": {"invalid"}, "sink": {"out"}}); err != nil || count.Total != 1 {
		t.Errorf("of a reason: %+v, %v", count, err)
	}
	// What is counted is what is handled, and not what comes meanwhile.
	w.put(t, "4")
	eventually(t, "the new one is aside", func() bool { return len(w.list(t, url.Values{"kind": {KindDeadLetter}})) == 4 })
	done, err := w.client.Handle(t.Context(), "drop", map[string]any{"reason": "too_large", "until": count.Until.Format(time.RFC3339Nano)})
	if err != nil || len(done.Entries) != 2 {
		t.Errorf("dropped: %+v, %v", done, err)
	}
}

func TestConfigurationHidesAddresses(t *testing.T) {
	w := newWorld(t, "")
	c, err := w.client.Configuration(t.Context())
	if err != nil || c.YAML != "to: ***\n" || c.Last.Problem != "no ***" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestSources(t *testing.T) {
	w := newWorld(t, "")
	all, err := w.client.Sources(t.Context())
	if err != nil || len(all) != 1 || all[0].Source != "in" || all[0].Received == nil {
		t.Errorf("%+v, %v", all, err)
	}
	if r, err := w.client.Registration(t.Context(), "in"); err != nil || !r.PathMatches {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = w.client.Registration(t.Context(), "other")
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusNotFound {
		t.Errorf("a source that is none: %v", err)
	}
}

func TestHistory(t *testing.T) {
	registry := prometheus.NewRegistry()
	received := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postwire_received_total"}, []string{"source", "outcome"})
	behind := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postwire_sink_lag_events"}, []string{"sink"})
	registry.MustRegister(received, behind)
	now := time.Unix(1_700_000_000, 0)
	h := NewMetricsRing(registry, func() time.Time { return now })
	for i := range 5 {
		received.WithLabelValues("in", "accepted").Add(10)
		received.WithLabelValues("in", "unauthenticated").Add(5)
		behind.WithLabelValues("out").Set(float64(i))
		h.sample()
		now = now.Add(sampleInterval)
	}
	f := h.Series(120)
	if diff := cmp.Diff([]int64{1_700_000_005, 1_700_000_010, 1_700_000_015, 1_700_000_020}, f.Times); diff != "" {
		t.Errorf("times (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Points{3, 3, 3, 3}, f.Sources["in"].Received); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Points{1, 1, 1, 1}, f.Sources["in"].Refused); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Points{1, 2, 3, 4}, f.Sinks["out"].LagEvents); diff != "" {
		t.Errorf("behind (-want +got):\n%s", diff)
	}
	f = h.Series(2)
	if diff := cmp.Diff(Points{1, 4}, f.Sinks["out"].LagEvents); diff != "" {
		t.Errorf("behind in few points (-want +got):\n%s", diff)
	}
	received.Reset()
	behind.Reset()
	for range 2 * samples {
		h.sample()
		now = now.Add(sampleInterval)
	}
	if f = h.Series(120); len(f.Times) != 120 || len(h.all) != 0 {
		t.Errorf("two hours later there are %d points and %d figures", len(f.Times), len(h.all))
	}
	text, err := json.Marshal(Points{1, math.NaN(), 1.0 / 3})
	var back Points
	if err = errors.Join(err, json.Unmarshal(text, &back)); err != nil || string(text) != "[1,null,0.333]" {
		t.Errorf("%s, %v", text, err)
	}
	if diff := cmp.Diff(Points{1, math.NaN(), 0.333}, back, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

// The last hour is there without a scraper, as soon as the relay runs.
func TestFigures(t *testing.T) {
	w := newWorld(t, "")
	w.history.sample()
	w.history.sample()
	f, err := w.client.Stats(t.Context())
	if err != nil || len(f.Times) != 1 || len(f.Sinks["out"].LagEvents) != 1 {
		t.Errorf("%+v, %v", f, err)
	}
}
