package http

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

func modes() []string { return []string{sinks.Binary, sinks.Structured, batched} }

func TestHTTP1(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: modes(), TooLarge: maxSize,
		Start: func(t *testing.T) sinktest.Broker {
			r := start(t, nil)
			return sinktest.Broker{
				Kind: Kind(), World: sinktest.NewNetwork(), Config: "url: " + r.URL + "/events",
				Read: func(t *testing.T) []sinktest.Message { return messages(t, r.kept()) },
			}
		},
	})
}

// TestBatches is for what the harness does in the first mode only.
func TestBatches(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: []string{batched}, TooLarge: maxSize,
		Start: func(t *testing.T) sinktest.Broker {
			r := start(t, nil)
			return sinktest.Broker{
				Kind: Kind(), World: sinktest.NewNetwork(), Config: "batch_size: 8\nurl: " + r.URL + "/events",
				Read: func(t *testing.T) []sinktest.Message { return messages(t, r.kept()) },
			}
		},
	})
}

func TestHTTP2(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: modes(), TooLarge: maxSize,
		Start: func(t *testing.T) sinktest.Broker {
			r, ca := startTLS(t)
			return sinktest.Broker{
				Kind: Kind(), World: sinktest.NewNetwork(),
				Config: fmt.Sprintf("url: %s/events\ntls: {enabled: true, ca_file: %q}", r.URL, ca),
				Read: func(t *testing.T) []sinktest.Message {
					for _, got := range r.kept() {
						if got.proto != "HTTP/2.0" {
							t.Fatalf("a request is %s", got.proto)
						}
					}
					return messages(t, r.kept())
				},
			}
		},
	})
}

func TestABatchOnTheWire(t *testing.T) {
	r := start(t, nil)
	events := sinktest.Events(3, 2)
	if err := deliver(t, r.open(t, "content_mode: batched"), events); err != nil {
		t.Fatal(err)
	}
	kept := r.kept()
	if len(kept) != 1 {
		t.Fatalf("there are %d requests", len(kept))
	}
	golden.Check(t, filepath.Join("testdata", "batch.golden"), wire(kept[0]))
	for i, m := range messages(t, kept) {
		for reader, seen := range m.Read {
			if diff := sinktest.Diff(events[i], seen, true); diff != "" {
				t.Errorf("%s reads event %d otherwise: %s", reader, i, diff)
			}
		}
	}
}

func TestHeadersCannotBeInjected(t *testing.T) {
	const evil = "a\r\nCe-Evil: yes\r\n\r\nPOST / HTTP/1.1 \x00ü\"%41"
	for _, start := range []func(t *testing.T) (*receiver, string){
		func(t *testing.T) (*receiver, string) { return start(t, nil), "" },
		func(t *testing.T) (*receiver, string) {
			r, ca := startTLS(t)
			return r, fmt.Sprintf("tls: {enabled: true, ca_file: %q}\n", ca)
		},
	} {
		r, block := start(t)
		events := sinktest.Events(1, 1)
		e := &events[0].CloudEvent
		e.SetID(evil)
		e.SetSubject(evil)
		e.SetExtension(event.Platform, evil)
		setContentType(e, `text/plain; a="b"`)
		if err := deliver(t, r.open(t, block), events); err != nil {
			t.Fatal(err)
		}
		all := r.all()
		if len(all) != 1 || all[0].header.Get("Ce-Evil") != "" {
			t.Fatalf("got %+v", all)
		}
		for _, m := range messages(t, all) {
			for reader, seen := range m.Read {
				if diff := sinktest.Diff(events[0], seen, false); diff != "" {
					t.Errorf("%s: %s", reader, diff)
				}
			}
		}
		setContentType(e, "text/plain\r\nCe-Evil: yes")
		if err := deliver(t, r.open(t, block), events); err != nil {
			t.Fatal(err)
		}
		if got := r.all()[1].header; got.Get("Ce-Evil") != "" || got.Get("Content-Type") != "text/plain%0D%0ACe-Evil: yes" {
			t.Errorf("got %v", got)
		}
	}
}

// setContentType sets what the SDK's setter would make neat.
func setContentType(e *cloudevents.Event, contentType string) {
	c := e.Context.AsV1()
	c.DataContentType = &contentType
	e.Context = c
}

// An event whose data is an event itself must not be taken for that one.
func TestDataThatIsAnEvent(t *testing.T) {
	for _, contentType := range []string{"application/cloudevents+json", "application/cloudevents-batch+json; charset=utf-8"} {
		r := start(t, nil)
		events := numbered(1)
		inner := `{"specversion":"1.0","id":"evil","source":"evil","type":"evil"}`
		if err := events[0].CloudEvent.SetData("application/json", []byte(inner)); err != nil {
			t.Fatal(err)
		}
		setContentType(&events[0].CloudEvent, contentType)
		if err := deliver(t, r.open(t, ""), events); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"0"}, r.keptIDs(t)); diff != "" {
			t.Errorf("%s: %s", contentType, diff)
		}
	}
}

func TestWhatEachRequestHas(t *testing.T) {
	tests := []struct {
		name, block string
		want        map[string]string
	}{
		{"nothing", "", map[string]string{"User-Agent": "Postwire", "Authorization": "", "Idempotency-Key": "", "Webhook-Id": "", "Accept-Encoding": ""}},
		{"headers", `headers: {x-api-key: "s3cret", User-Agent: ours}`, map[string]string{"X-Api-Key": "s3cret", "User-Agent": "ours"}},
		{"basic", "basic: {username: relay, password: s3cret}", map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("relay:s3cret"))}},
		{"bearer", "bearer: s3cret", map[string]string{"Authorization": "Bearer s3cret"}},
	}
	for _, test := range tests {
		for _, mode := range modes() {
			t.Run(test.name+" "+mode, func(t *testing.T) {
				r := start(t, nil)
				if err := deliver(t, r.open(t, test.block+"\ncontent_mode: "+mode), numbered(2)); err != nil {
					t.Fatal(err)
				}
				for _, got := range r.all() {
					if got.path != "/events?at=1" {
						t.Errorf("the path is %s", got.path)
					}
					for name, want := range test.want {
						if value := got.header.Get(name); value != want {
							t.Errorf("%s is %q, want %q", name, value, want)
						}
					}
				}
			})
		}
	}
}

func TestTLSWithClientCertificates(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	clientCert, clientKey := selfsigned.Certificate(t, t.TempDir(), "client")
	r, _ := startTLS(t, func(s *httptest.Server) { s.TLS = selfsigned.Mutual(t, cert, key, clientCert) })
	events := numbered(3)
	s := r.open(t, fmt.Sprintf("tls: {enabled: true, ca_file: %q, cert_file: %q, key_file: %q}", cert, clientCert, clientKey))
	if err := deliver(t, s, events); err != nil {
		t.Fatal(err)
	}
	s = r.open(t, fmt.Sprintf("tls: {enabled: true, ca_file: %q}", cert))
	if diff := cmp.Diff([]string{"again", "again", "again"}, sinktest.Outcomes(deliver(t, s, events), 3)); diff != "" {
		t.Error("without a certificate: " + diff)
	}
	_, err := tryOpen(t, "url: "+r.URL, sinks.Env{})
	if err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("a certificate of an unknown authority: %v", err)
	}
	if got := len(r.all()); got != 3 {
		t.Errorf("%d requests came", got)
	}
}

// TestOrderUnderFailure: of each key the first event is answered with 503 a few
// times, and none behind it may arrive before it, nor two at once.
func TestOrderUnderFailure(t *testing.T) {
	for _, mode := range []string{sinks.Binary, batched} {
		t.Run(mode, func(t *testing.T) {
			const keys, n = 8, 160
			var mu sync.Mutex
			asked, busy := map[string]int{}, map[string]bool{}
			events := make([]event.Event, n)
			keyOf := map[string]string{}
			for i, e := range numbered(n) {
				key := fmt.Sprint(i % keys)
				e.CloudEvent.SetExtension(event.PartitionKey, key)
				events[i], keyOf[e.CloudEvent.ID()] = e, key
			}
			var most, inFlight atomic.Int32
			r := start(t, func(_ nethttp.ResponseWriter, got request) int {
				ids := got.ids(t)
				most.Store(max(most.Load(), inFlight.Add(1)))
				defer inFlight.Add(-1)
				mu.Lock()
				seen := map[string]bool{}
				for _, id := range ids {
					seen[keyOf[id]] = true
				}
				for key := range seen {
					if busy[key] {
						t.Errorf("two requests at once have events of key %s", key)
					}
					busy[key] = true
				}
				asked[ids[0]]++
				fail := asked[ids[0]] < 3
				mu.Unlock()
				runtime.Gosched() // so that others come in between
				mu.Lock()
				defer mu.Unlock()
				for key := range seen {
					busy[key] = false
				}
				if fail {
					return nethttp.StatusServiceUnavailable
				}
				return nethttp.StatusOK
			})
			s := r.open(t, "max_in_flight: 4\nbatch_size: 5\ncontent_mode: "+mode)
			sinktest.Concurrently(t.Context(), t, s, events)
			last := map[string]int{}
			kept := r.keptIDs(t)
			for _, id := range kept {
				var i int
				if _, err := fmt.Sscan(id, &i); err != nil {
					t.Fatal(err)
				}
				if before, ok := last[keyOf[id]]; ok && before >= i {
					t.Errorf("event %d came before %d", before, i)
				}
				last[keyOf[id]] = i
			}
			if len(kept) != n {
				t.Errorf("%d events were taken", len(kept))
			}
			if most.Load() > 4 {
				t.Errorf("%d requests were in flight", most.Load())
			}
		})
	}
}

// TestRequestsAreInFlightTogether: none is answered before max_in_flight are there.
func TestRequestsAreInFlightTogether(t *testing.T) {
	for _, mode := range modes() {
		var together sync.WaitGroup
		together.Add(4)
		r := start(t, func(nethttp.ResponseWriter, request) int {
			together.Done()
			together.Wait()
			return nethttp.StatusOK
		})
		s := r.open(t, "max_in_flight: 4\nbatch_size: 2\ncontent_mode: "+mode)
		var calls sync.WaitGroup
		for range s.Limits().InFlight {
			calls.Go(func() {
				if err := deliver(t, s, numbered(s.Limits().Batch)); err != nil {
					t.Errorf("mode %s: %v", mode, err)
				}
			})
		}
		calls.Wait()
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	var dialled atomic.Int32
	r := start(t, nil)
	s, err := tryOpen(t, "url: "+r.URL+"\nmax_in_flight: 4", sinks.Env{Dial: counting(&dialled)})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		sinktest.Concurrently(t.Context(), t, s, numbered(50))
	}
	if got := dialled.Load(); got > 1+2*4 { // a connection that becomes free beats one that is being made
		t.Errorf("%d connections were made", got)
	}
}

func TestBatchesAreCut(t *testing.T) {
	r := start(t, nil)
	s := r.open(t, "content_mode: batched\nbatch_size: 4\nbatch_bytes: 4KiB\nmax_in_flight: 1")
	events := numbered(12, "one")
	if err := events[5].CloudEvent.SetData("application/json", []byte(`"`+strings.Repeat("x", 5000)+`"`)); err != nil {
		t.Fatal(err)
	}
	if err := deliver(t, s, events); err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for _, k := range r.kept() {
		if ids := k.ids(t); len(k.body) > 4<<10 && len(ids) > 1 {
			t.Errorf("%v have %d bytes", ids, len(k.body))
		}
		got = append(got, k.ids(t))
	}
	want := [][]string{{"0", "1", "2", "3"}, {"4"}, {"5"}, {"6", "7", "8", "9"}, {"10", "11"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestABatchIsHalved: of a batch only those are set aside that are refused alone.
func TestABatchIsHalved(t *testing.T) {
	refuse := func(t *testing.T, bad map[string]int) func(nethttp.ResponseWriter, request) int {
		return func(_ nethttp.ResponseWriter, got request) int {
			for _, id := range got.ids(t) {
				if status := bad[id]; status != 0 {
					return status
				}
			}
			return nethttp.StatusOK
		}
	}
	tests := []struct {
		name string
		bad  map[string]int
		want []string
	}{
		{"two of many", map[string]int{"3": 400, "4": 413}, []string{"", "", "", "invalid", "too_large", "", "", "", "", ""}},
		{"the last", map[string]int{"9": 409}, []string{"", "", "", "", "", "", "", "", "", "refused"}},
		{"one that is to be tried again", map[string]int{"1": 422, "6": 500}, []string{"", "invalid", "", "", "", "again", "again", "again", "again", "again"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, refuse(t, test.bad))
			s := r.open(t, "content_mode: batched")
			if diff := cmp.Diff(test.want, sinktest.Outcomes(deliver(t, s, numbered(10)), 10)); diff != "" {
				t.Error(diff)
			}
			var want []string
			for i, o := range test.want {
				if o == "" {
					want = append(want, fmt.Sprint(i))
				}
			}
			if diff := cmp.Diff(want, r.keptIDs(t)); diff != "" {
				t.Error("taken: " + diff)
			}
		})
	}
}

// TestABatchThatIsHalvedKeepsItsOrder: what is behind a failure is not sent.
func TestABatchThatIsHalvedKeepsItsOrder(t *testing.T) {
	r := start(t, func(_ nethttp.ResponseWriter, got request) int {
		if len(got.ids(t)) == 10 {
			return nethttp.StatusBadRequest
		}
		return nethttp.StatusBadGateway
	})
	err := deliver(t, r.open(t, "content_mode: batched"), numbered(10, "one"))
	if diff := cmp.Diff(slices.Repeat([]string{"again"}, 10), sinktest.Outcomes(err, 10)); diff != "" {
		t.Error(diff)
	}
	if n := len(r.all()); n != 2 {
		t.Errorf("%d requests were made", n)
	}
}

// TestErrorsAndLogsKeepSecrets: errors and logs hold neither url nor credentials,
// nor what the receiver says.
func TestErrorsAndLogsKeepSecrets(t *testing.T) {
	const block = `
bearer: s3cret-bearer
headers: {X-Api-Key: s3cret-header}
signing: {secret: whsec_czNjcmV0LXMzY3JldC1zM2NyZXQtczNjcmV0}
`
	secrets := []string{"s3cret", "czNjcmV0", "customer@example.com"}
	events := numbered(1)
	if err := events[0].CloudEvent.SetData("application/json", []byte(`{"user_email": "customer@example.com"}`)); err != nil {
		t.Fatal(err)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	echo := start(t, func(w nethttp.ResponseWriter, _ request) int {
		w.Header().Set("Location", "https://customer@example.com/")
		return nethttp.StatusFound
	})
	refusing := start(t, func(nethttp.ResponseWriter, request) int { return nethttp.StatusBadRequest })
	gone := start(t, func(nethttp.ResponseWriter, request) int { return nethttp.StatusGone })
	tests := []struct{ name, url, want string }{
		{"nobody listens", closed.URL, "connection refused"},
		{"not HTTP", "http://" + raw(t, "customer@example.com s3cret\r\n\r\n"), "the answer was not HTTP"},
		{"no status", "http://" + raw(t, "HTTP/1.1 customer@example.com s3cret\r\n\r\n"), "the answer was not HTTP"},
		{"bad header", "http://" + raw(t, "HTTP/1.1 200 OK\r\ncustomer@example.com s3cret\r\n\r\n"), "the answer was not HTTP"},
		{"own words", "http://" + raw(t, "HTTP/1.1 500 customer@example.com s3cret\r\nContent-Length: 0\r\n\r\n"), "500 Internal Server Error"},
		{"redirect", echo.URL, "redirects are not followed, set url to the new address"},
		{"refused", refusing.URL, "the receiver answers 400 Bad Request"},
		{"gone", gone.URL, "410 Gone"},
		{"not TLS", strings.Replace(refusing.URL, "http://", "https://", 1), "TLS"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			core, seen := observer.New(zapcore.DebugLevel)
			s, err := tryOpen(t, "url: "+test.url+"/s3cret-path?token=s3cret-query"+block, sinks.Env{Log: zap.New(core)})
			if err == nil {
				err = deliver(t, s, events)
			}
			text := fmt.Sprint(err)
			if err == nil || !strings.Contains(text, test.want) {
				t.Errorf("want %q, got %v", test.want, err)
			}
			for _, entry := range seen.All() {
				text += fmt.Sprint(entry.Message, entry.ContextMap())
			}
			for _, secret := range secrets {
				if strings.Contains(text, secret) {
					t.Errorf("%q is shown: %s", secret, text)
				}
			}
		})
	}
}

// TestWebhookIDs: a repeat of a stored event has the same webhook-id, and every
// other stored event has another one, whatever its source and id.
func TestWebhookIDs(t *testing.T) {
	const block = "signing: {secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw}\nmax_in_flight: 1\ncontent_mode: "
	for _, mode := range modes() {
		r := start(t, nil)
		ids := func(stored string) []string {
			s, err := tryOpen(t, "url: "+r.URL+"\n"+block+mode, sinks.Env{})
			if err != nil {
				t.Fatal(err)
			}
			before := len(r.all())
			events := numbered(3)
			for i := range events {
				events[i].MessageID += stored
			}
			if err := deliver(t, s, events); err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, got := range r.all()[before:] {
				ids = append(ids, got.header.Get("Webhook-Id"))
			}
			return ids
		}
		first, again, replay, other := ids(""), ids(""), ids("a"), ids("b")
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("mode %s: a repeat has other ids: %s", mode, diff)
		}
		seen := map[string]bool{}
		all := slices.Concat(first, replay, other)
		for _, id := range all {
			seen[id] = true
			if strings.ContainsAny(id, ". ") || !strings.HasPrefix(id, "msg_") {
				t.Errorf("mode %s: an id is %q", mode, id)
			}
		}
		if len(seen) != len(all) {
			t.Errorf("mode %s: of %d ids, %d differ", mode, len(all), len(seen))
		}
	}
}

// TestASlowBodyDoesNotUndoTheAnswer: the status is known, whatever the body does.
func TestASlowBodyDoesNotUndoTheAnswer(t *testing.T) {
	addr := raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe rest never comes")
	s, err := tryOpen(t, "url: http://"+addr, sinks.Env{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := s.Deliver(ctx, numbered(1)); err != nil || ctx.Err() != nil {
		t.Error(err)
	}
}

// TestAConnectionThatWasClosedMeanwhile: a receiver that hangs up on idle
// connections does not make events fail.
func TestAConnectionThatWasClosedMeanwhile(t *testing.T) {
	r := start(t, nil)
	s := r.open(t, "")
	for i := range 20 {
		if err := deliver(t, s, numbered(1)); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		r.CloseClientConnections()
	}
}

// TestAFailureLeavesOthersAlone: 500 for one event holds back its key only.
func TestAFailureLeavesOthersAlone(t *testing.T) {
	r := start(t, func(_ nethttp.ResponseWriter, got request) int {
		if got.ids(t)[0] == "0" {
			return nethttp.StatusInternalServerError
		}
		return nethttp.StatusOK
	})
	err := deliver(t, r.open(t, ""), numbered(6, "a", "b"))
	if diff := cmp.Diff([]string{"again", "", "again", "", "again", ""}, sinktest.Outcomes(err, 6)); diff != "" {
		t.Error(diff)
	}
	for i, err := range eachOf(t, err) {
		if sinks.IsAtDestination(err) || sinks.Wait(err) != 0 {
			t.Errorf("event %d: %v is not of this event only", i, err)
		}
	}
}

// TestAHangingRequestHoldsUpNoOtherCall: a receiver that does not answer one
// event answers the others meanwhile, and the timeout is of the event.
func TestAHangingRequestHoldsUpNoOtherCall(t *testing.T) {
	hangs, release := make(chan struct{}), make(chan struct{})
	r := start(t, func(_ nethttp.ResponseWriter, got request) int {
		if got.ids(t)[0] == "0" {
			close(hangs)
			<-release
		}
		return nethttp.StatusOK
	})
	defer close(release)
	s, events := r.open(t, ""), numbered(20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Deliver(ctx, events[:1]) }()
	<-hangs
	if err := deliver(t, s, events[1:]); err != nil {
		t.Error(err)
	}
	if ctx.Err() != nil {
		t.Error("the others waited")
	}
	if err := eachOf(t, <-done)[0]; sinks.IsAtDestination(err) {
		t.Errorf("%v is not of this event only", err)
	}
}

// TestAConnectionThatCannotBeMade is a failure of the whole sink.
func TestAConnectionThatCannotBeMade(t *testing.T) {
	var away atomic.Bool
	r := start(t, nil)
	s, err := tryOpen(t, "url: "+r.URL, sinks.Env{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if away.Load() {
			return nil, errors.New("connection refused, says the test")
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(t, s, numbered(1)); err != nil {
		t.Fatal(err)
	}
	away.Store(true)
	r.CloseClientConnections()
	err = deliver(t, s, numbered(3))
	if _, each := errors.AsType[sinks.BatchError](err); err == nil || each {
		t.Errorf("got %v", err)
	}
}
