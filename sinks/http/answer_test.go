package http

import (
	"cmp"
	"fmt"
	nethttp "net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// What each status means: a dead letter for what the event is, and otherwise
// another attempt. docs/dead-letters.md has the same table.
func TestAnswers(t *testing.T) {
	all := []int{600, 999}
	for status := 200; status < 600; status++ {
		all = append(all, status)
	}
	dead := map[int]string{400: "invalid", 409: "refused", 413: "too_large", 422: "invalid"}
	for _, status := range all {
		for _, mode := range []string{sinks.Binary, batched} {
			s := &Sink{config: Config{ContentMode: mode}, log: zap.NewNop()}
			err := s.judge(&nethttp.Response{StatusCode: status})
			want := cmp.Or(dead[status], "again")
			switch {
			case status < 300:
				want = ""
			case status == 415 && mode == sinks.Binary:
				want = "invalid"
			}
			if got := sinktest.Outcomes(err, 1)[0]; got != want {
				t.Errorf("%d in mode %s: %q, want %q", status, mode, got, want)
			}
			if err != nil && !strings.Contains(err.Error(), fmt.Sprint(status)) {
				t.Errorf("%d: the error is %v", status, err)
			}
		}
	}
}

// Statuses for which an event waits are told with what the operator can correct,
// and hold back the rest of the key.
func TestWhatTheOperatorCanCorrect(t *testing.T) {
	for status, advice := range map[int]string{
		401: "credentials", 403: "credentials", 407: "proxy", 404: "check url", 405: "check url", 431: "headers", 308: "set url",
	} {
		r := start(t, func(nethttp.ResponseWriter, request) int { return status })
		err := deliver(t, r.open(t, "max_in_flight: 1"), numbered(9, "one"))
		for i, each := range sinktest.Outcomes(err, 9) {
			if each != "again" {
				t.Errorf("%d: event %d became %q", status, i, each)
			}
		}
		if err == nil || !strings.Contains(err.Error(), advice) {
			t.Errorf("%d: the error is %v, want advice on %q", status, err, advice)
		}
		if n := len(r.all()); n != 1 {
			t.Errorf("%d: %d requests were made", status, n)
		}
	}
}

// With retry.dead_letter_on a status is the receiver's verdict on an event.
func TestDeadLetterOn(t *testing.T) {
	r := start(t, func(_ nethttp.ResponseWriter, q request) int {
		if q.header.Get("Ce-Id") == "1" {
			return 404
		}
		return 200
	})
	s, err := tryOpen(t, "url: "+r.URL, sinks.Env{DeadLetterOn: []int{404, 503}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]string{"", "refused", ""}, sinktest.Outcomes(deliver(t, s, numbered(3)), 3)); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := start(t, nil)
	r := start(t, func(w nethttp.ResponseWriter, _ request) int {
		w.Header().Set("Location", elsewhere.URL)
		return nethttp.StatusPermanentRedirect
	})
	err := deliver(t, r.open(t, ""), numbered(40))
	if _, refused := sinks.IsPermanent(err); err == nil || refused || !strings.Contains(err.Error(), "set url to the new address") {
		t.Errorf("got %v", err)
	}
	if n := len(elsewhere.all()); n != 0 {
		t.Errorf("%d requests followed", n)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "3600": time.Hour, "3601": time.Hour, "99999999999999999999999": time.Hour,
		"-5": 0, "1.5": 0, "soon": 0, "18446744073709551615": time.Hour,
		"Tue, 03 Nov 2026 10:00:30 GMT":    30 * time.Second,
		"Tuesday, 03-Nov-26 10:00:30 GMT":  30 * time.Second,
		"Tue Nov  3 10:00:30 2026":         30 * time.Second,
		"Tue, 03 Nov 2026 09:00:00 GMT":    0,
		"Wed, 04 Nov 2026 10:00:00 GMT":    time.Hour,
		"Wed, 04 Nov 2026 10:00:00 +0000x": 0,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q gives %v, want %v", text, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("7")
	f.Add("Tue, 03 Nov 2026 10:00:30 GMT")
	f.Add("Fri, 31 Dec 9999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, text string) {
		if got := retryAfter(text, time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC)); got < 0 || got > maxWait {
			t.Errorf("%q gives %v", text, got)
		}
	})
}

func TestRetryAfterIsPassedOnAndStopsTheRest(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC) }
	for _, test := range []struct {
		status int
		header string
		want   time.Duration
		asked  int // requests
	}{
		{429, "90", 90 * time.Second, 1},
		{429, "", time.Second, 1},
		{503, "Tue, 03 Nov 2026 10:02:00 GMT", 2 * time.Minute, 1},
		{503, "", time.Second, 1},
		{408, "1", time.Second, 1},
		{425, "1", time.Second, 1},
		{500, "86400", time.Hour, 1},
		{500, "", 0, 20}, // it may be the fault of one event
		{401, "", 0, 20},
	} {
		r := start(t, func(w nethttp.ResponseWriter, _ request) int {
			w.Header().Set("Retry-After", test.header)
			return test.status
		})
		s, err := tryOpen(t, "max_in_flight: 2\nurl: "+r.URL, sinks.Env{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		each := eachOf(t, deliver(t, s, numbered(20)))
		for i, err := range each {
			if got := sinks.Wait(err); got != test.want {
				t.Errorf("%d: event %d waits %v, want %v: %v", test.status, i, got, test.want, err)
			}
		}
		if got := len(r.all()); got != test.asked {
			t.Errorf("%d with %q: %d requests were made", test.status, test.header, got)
		}
	}
}

func eachOf(t *testing.T, err error) sinks.BatchError {
	t.Helper()
	each, ok := err.(sinks.BatchError) //nolint:errorlint // that is what is returned
	if !ok {
		t.Fatalf("got %v", err)
	}
	return each
}

func TestGoneClosesTheSink(t *testing.T) {
	core, seen := observer.New(zapcore.DebugLevel)
	var answers atomic.Int32
	r := start(t, func(nethttp.ResponseWriter, request) int {
		if answers.Add(1) == 3 {
			return nethttp.StatusGone
		}
		return nethttp.StatusOK
	})
	s, err := tryOpen(t, "max_in_flight: 1\nurl: "+r.URL, sinks.Env{Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]string{"", "", "again", "again", "again"}, sinktest.Outcomes(deliver(t, s, numbered(5)), 5)); diff != "" {
		t.Error(diff)
	}
	for range 3 {
		err := deliver(t, s, numbered(5))
		if err == nil || !strings.Contains(err.Error(), "410 Gone") || !strings.Contains(err.Error(), "restarted") {
			t.Errorf("got %v", err)
		}
		if _, refused := sinks.IsPermanent(err); refused {
			t.Error("events are refused for good")
		}
	}
	if n := len(r.all()); n != 3 {
		t.Errorf("%d requests were made", n)
	}
	if n := seen.FilterMessageSnippet("410").Len(); n != 1 {
		t.Errorf("it was logged %d times", n)
	}
	again := r.open(t, "") // as after a restart
	if err := deliver(t, again, numbered(5)); err != nil {
		t.Error(err)
	}
}
