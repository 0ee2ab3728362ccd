package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// serve serves the world's API on another port, as opts say besides.
func (w *world) serve(t *testing.T, opts Options) (address string, stop func()) {
	t.Helper()
	opts.Gatherer, opts.Log, opts.API = prometheus.NewRegistry(), zap.NewNop(), w.api
	s := server(t, opts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		running.Wait()
	}
}

// aged lets the world's API be served on a port whose connections grow old.
func (w *world) aged(t *testing.T, age time.Duration) (base string, stop func()) {
	t.Helper()
	address, stop := w.serve(t, Options{MaxConnectionAge: age})
	return "http://" + address, stop
}

// A client that follows over connections which end all the time sees every event
// once, in order, and what became of it.
func TestFollowAcrossConnections(t *testing.T) {
	w := newWorld(t, operatorToken)
	base, stop := w.aged(t, 50*time.Millisecond)
	defer stop()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &Client{URL: base, Token: bobToken, HTTP: &http.Client{Transport: transport}}
	const n = 300
	var appending sync.WaitGroup
	appending.Go(func() {
		for i := range n {
			if _, err := w.journal.Append(t.Context(), journaltest.Event(strconv.Itoa(i))); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond) // load, and nothing that is waited for
		}
	})
	defer appending.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen, delivered []journal.Seq
	err := c.Follow(ctx, url.Values{"from": {"1h"}}, func(m Message) error {
		switch m.Name {
		case "event":
			var s EventView
			if err := json.Unmarshal(m.Data, &s); err != nil {
				return err
			}
			seen = append(seen, s.Seq)
			if s.Deliveries[0].State == "delivered" {
				delivered = append(delivered, s.Seq)
			}
		case "status":
			var b StatusChanged
			if err := json.Unmarshal(m.Data, &b); err != nil {
				return err
			}
			delivered = append(delivered, b.Seq)
		}
		if len(seen) >= n && len(delivered) >= n {
			cancel()
		}
		return nil
	}, func(err error) { t.Errorf("interrupted: %v", err) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Follow = %v, with %d events", err, len(seen))
	}
	if len(seen) != n || !slices.IsSorted(seen) || len(slices.Compact(slices.Clone(seen))) != n {
		t.Errorf("%d events are seen of %d: %v", len(seen), n, seen)
	}
	slices.Sort(delivered)
	if len(slices.Compact(delivered)) != n {
		t.Errorf("%d deliveries are seen of %d", len(delivered), n)
	}
}

// append stores some more events.
func (w *world) append(t *testing.T, n int) {
	t.Helper()
	for range n {
		if _, err := w.journal.Append(t.Context(), journaltest.Event(fmt.Sprint("more-", w.journal.Last()))); err != nil {
			t.Fatal(err)
		}
	}
}

// raw follows a tail, as a program in another language does, and returns its messages.
func raw(t *testing.T, base, query string, with func(*http.Request), enough func(text string) bool) (resp *http.Response, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+BasePath+"/events/tail"+query, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+bobToken)
	with(r)
	resp, err = http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		if text += string(buf[:n]); err != nil || enough(text) {
			return resp, text
		}
	}
}

// The last message of a tail says where another one goes on, by its ID and its data;
// and the connection ends with the tail.
func TestTailsSayWhereTheyEnded(t *testing.T) {
	w := newWorld(t, operatorToken)
	w.append(t, 3)
	whole := func(string) bool { return false }
	none := func(*http.Request) {}
	base, stop := w.aged(t, 20*time.Millisecond)
	defer stop()
	resp, text := raw(t, base, "?from=1h", none, whole)
	if !strings.Contains(text, "id: 3\nevent: end\ndata: {\"next\":4,\"reason\":\"connection_age\"}\n\n") {
		t.Errorf("at its age a tail ends with\n%s", text)
	}
	if !resp.Close || resp.Header.Get("X-Accel-Buffering") != "no" || !strings.HasPrefix(text, "id:") && !strings.HasPrefix(text, "retry: 1000\n") {
		t.Errorf("a tail is answered %v\n%s", resp.Header, text)
	}
	for name, tt := range map[string]struct {
		query string
		with  func(*http.Request)
		first int // event that is seen first
	}{
		"seq":                       {"?seq=2", none, 2},
		"seq and from":              {"?seq=3&from=1h", none, 3},
		"Last-Event-ID":             {"", func(r *http.Request) { r.Header.Set("Last-Event-ID", "1") }, 2},
		"Last-Event-ID and seq":     {"?seq=1", func(r *http.Request) { r.Header.Set("Last-Event-ID", "2") }, 3},
		"seq 1, before all of them": {"?seq=1", none, 1},
	} {
		_, text := raw(t, base, tt.query, tt.with, whole)
		if want := fmt.Sprintf("id: %d\nevent: event\n", tt.first); strings.Index(text, "event: event") != strings.Index(text, want)+len(want)-len("event: event\n") {
			t.Errorf("%s: the first event is not %d:\n%s", name, tt.first, text)
		}
	}
	// Of another journal, which had more: with what comes next.
	if _, text := raw(t, base, "?seq=1000", none, whole); !strings.Contains(text, `"next":4,"reason"`) {
		t.Errorf("a place that there is not yet:\n%s", text)
	}
}

func TestTailsSayWhyTheyEnded(t *testing.T) {
	w := newWorld(t, operatorToken)
	for name, end := range map[string]func(stop func()){
		`"reason":"revoked"`: func(func()) { w.credentials.Replace(testCredentials(operatorToken)[:2]...) },
		`"reason":"shutdown"`: func(stop func()) {
			w.credentials.Replace(testCredentials(operatorToken)...)
			go stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.credentials.Replace(testCredentials(operatorToken)...)
			base, stop := w.aged(t, time.Hour)
			stop = sync.OnceFunc(stop)
			defer stop()
			var once sync.Once
			_, text := raw(t, base, "", func(*http.Request) {}, func(text string) bool {
				if strings.Contains(text, "event: heartbeat") {
					once.Do(func() { end(stop) })
				}
				return false
			})
			if !strings.Contains(text, "event: end\ndata: {\"next\":1,"+name) {
				t.Errorf("it ends with\n%s", text)
			}
		})
	}
}

// A relay that stops and starts again, on the same journal, is followed further.
func TestFollowAcrossARestart(t *testing.T) {
	w := newWorld(t, operatorToken)
	base, stop := w.aged(t, time.Hour)
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &Client{URL: base, Token: bobToken, HTTP: &http.Client{Transport: transport}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen []journal.Seq
	var why []string
	err = c.Follow(ctx, nil, func(m Message) error {
		var s struct{ Seq journal.Seq }
		if err := json.Unmarshal(m.Data, &s); err != nil {
			return err
		}
		switch m.Name {
		case "heartbeat":
			if len(seen) == 0 {
				w.append(t, 2)
			}
		case "event":
			if seen = append(seen, s.Seq); len(seen) == 2 {
				go stop()
			} else if len(seen) == 4 {
				cancel()
			}
		}
		return nil
	}, func(err error) {
		why = append(why, err.Error())
		w.append(t, 2) // while nobody follows
		s := server(t, Options{Gatherer: prometheus.NewRegistry(), Log: zap.NewNop(), API: w.api})
		var l net.Listener
		for l == nil { // the server before may still be closing its own
			l, _ = net.Listen("tcp", u.Host)
		}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(seen, []journal.Seq{1, 2, 3, 4}) {
		t.Errorf("Follow = %v with %v", err, seen)
	}
	if !slices.Equal(why, []string{"the relay ended the tail: shutdown"}) {
		t.Errorf("it was interrupted by %q", why)
	}
}

// What does not go by itself ends what follows, and says what it is.
func TestFollowGivesUp(t *testing.T) {
	w := newWorld(t, operatorToken)
	base, stop := w.aged(t, time.Hour)
	defer stop()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &Client{URL: base, Token: bobToken, HTTP: &http.Client{Transport: transport}}
	err := c.Follow(t.Context(), nil, func(Message) error {
		w.credentials.Replace(testCredentials(operatorToken)[:2]...)
		return nil
	}, func(error) {})
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusUnauthorized {
		t.Errorf("after its token is gone: %v", err)
	}
	broken := errors.New("by the test")
	w.credentials.Replace(testCredentials(operatorToken)...)
	if err := c.Follow(t.Context(), nil, func(Message) error { return broken }, func(error) {}); !errors.Is(err, broken) {
		t.Errorf("after see has failed: %v", err)
	}
	c.URL = "http://127.0.0.1:1"
	if err := c.Follow(t.Context(), nil, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("without a relay: %v", err)
	}
}

// silentTrip is a proxy that holds everything back.
type silentTrip struct{}

func (silentTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	body, w := io.Pipe()
	context.AfterFunc(r.Context(), func() { _ = w.CloseWithError(r.Context().Err()) })
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Header: http.Header{}, Body: body, Request: r}, nil
}

func TestFollowNoticesABufferingProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{URL: "http://relay", HTTP: &http.Client{Transport: silentTrip{}}}
		began := time.Now()
		err := c.Follow(t.Context(), nil, func(Message) error { return nil }, func(error) {})
		if !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "proxy") || time.Since(began) != silenceTimeout {
			t.Errorf("Follow = %v after %v", err, time.Since(began))
		}
	})
}
