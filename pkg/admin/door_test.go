package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/forwarded"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// shown asks for the status with a token, from an address.
func shown(t *testing.T, w *world, token, from string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://relay.example.com"+BasePath+"/status", http.NoBody)
	r.RemoteAddr = hostPort(from)
	r.Header.Set("Authorization", "Bearer "+token)
	answer := httptest.NewRecorder()
	w.server.ServeHTTP(answer, r)
	return answer
}

func hostPort(addr string) string {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), 4711).String()
}

// Wrong tokens of one network are limited, whatever its addresses, and a right one
// is let in all the same.
func TestWrongTokensAreLimited(t *testing.T) {
	w := newWorld(t, operatorToken)
	refused, limited := 0, 0
	for i := range 1000 {
		answer := shown(t, w, fmt.Sprintf("wrong-wrong-wrong-%d", i), fmt.Sprintf("2001:db8::%x", i+1))
		switch answer.Code {
		case http.StatusUnauthorized:
			refused++
		case http.StatusTooManyRequests:
			limited++
			if wait, err := strconv.Atoi(answer.Header().Get("Retry-After")); err != nil || wait < 1 || wait > 6 {
				t.Fatalf("Retry-After: %q", answer.Header().Get("Retry-After"))
			}
			var p struct{ Status int }
			if err := json.Unmarshal(answer.Body.Bytes(), &p); err != nil || p.Status != http.StatusTooManyRequests {
				t.Fatalf("answered %s", answer.Body)
			}
		default:
			t.Fatalf("answered %d", answer.Code)
		}
	}
	if refused < wrongBurst || refused > wrongBurst+3 {
		t.Errorf("%d of 1000 were compared, %d limited", refused, limited)
	}
	if n := len(w.logs.FilterMessage("admin sign-in refused: wrong token").All()); n != refused {
		t.Errorf("%d lines tell of %d refusals", n, refused)
	}
	if n := len(w.logs.FilterMessageSnippet("admin sign-ins limited").All()); n < 1 || n > 4 {
		t.Errorf("%d lines tell that sign-ins are limited", n)
	}
	if code := shown(t, w, operatorToken, "2001:db8::1").Code; code != http.StatusOK {
		t.Errorf("the operator behind the same network is answered %d", code)
	}
	if code := shown(t, w, "wrong-wrong-wrong", "2001:db8:0:1::1").Code; code != http.StatusUnauthorized {
		t.Errorf("another network is answered %d", code)
	}
	b := &browser{t: t, w: w}
	from := func(r *http.Request) { r.RemoteAddr = hostPort("2001:db8::5") }
	if answer := b.ask(http.MethodPost, "/session", `{"token":"guess"}`, from); answer.Code != http.StatusTooManyRequests || answer.Header().Get("Retry-After") == "" {
		t.Errorf("a sign-in from there is answered %d %v", answer.Code, answer.Header())
	}
	if answer := b.ask(http.MethodPost, "/session", `{"token":"`+viewerToken+`"}`, from); answer.Code != http.StatusOK {
		t.Errorf("a viewer's sign-in from there is answered %d", answer.Code)
	}
	for outcome, want := range map[string]int{signInRefused: refused + 1, signInLimited: limited + 1, signInAccepted: 1} {
		if got := testutil.ToFloat64(w.metrics().signIns.WithLabelValues(outcome)); int(got) != want {
			t.Errorf("%s: %v are counted, want %d", outcome, got, want)
		}
	}
	for _, line := range w.logs.All() {
		for _, f := range line.Context {
			if strings.Contains(f.String, "wrong-wrong") || strings.Contains(f.String, "guess") {
				t.Errorf("the log tells what was shown: %v", line)
			}
		}
	}
}

// A weak token is not compared over the limit, so that guesses count at the rate of
// the limit only; the right one, shown often, uses nothing up.
func TestAWeakTokenIsNotComparedOverTheLimit(t *testing.T) {
	w := newWorld(t, operatorToken)
	w.credentials.Replace(append(testCredentials(operatorToken), Credential{"weak", Viewer, "weak"})...)
	for range 10 * wrongBurst {
		if code := shown(t, w, "weak", "192.0.2.1").Code; code != http.StatusOK {
			t.Fatalf("the weak token is answered %d", code)
		}
	}
	for i := range 2 * wrongBurst {
		_ = shown(t, w, strconv.Itoa(i), "192.0.2.1")
	}
	if code := shown(t, w, "weak", "192.0.2.1").Code; code != http.StatusTooManyRequests {
		t.Errorf("over the limit a weak token is answered %d", code)
	}
	if code := shown(t, w, "weak", "192.0.2.2").Code; code != http.StatusOK {
		t.Errorf("from another address it is answered %d", code)
	}
}

// Whoever has more addresses than are remembered is held by the limit of all.
func TestWrongTokensOfManyAddressesAreLimited(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAttempts(func() time.Time { return now })
	allowed := 0
	for i := range 3 * maxRemembered {
		if a.begin(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})).wait == 0 {
			allowed++
		}
	}
	if allowed != allWrongBurst {
		t.Errorf("%d were compared", allowed)
	}
	if n := len(a.byAddress); n != maxRemembered || a.recent.Len() != n {
		t.Errorf("%d addresses are remembered", n)
	}
	now = now.Add(time.Minute)
	if try := a.begin(netip.Addr{}); try.wait != 0 {
		t.Errorf("a minute later an address that is not known waits %v", try.wait)
	}
	if got := forwarded.Network(netip.MustParseAddr("::ffff:192.0.2.1")); got.String() != "192.0.2.1/32" {
		t.Errorf("the network of an IPv4 address in IPv6 is %v", got)
	}
}

// The tokens of the configuration may hold what a header may hold.
func TestTokensOfAnyText(t *testing.T) {
	c := NewCredentials(testCredentials(operatorToken)...)
	if h := c.find(aliceToken, false); h == nil || h.name != "alice" || h.role != Operator {
		t.Errorf("a token with colons and umlauts finds %v", h)
	}
	w := newWorld(t, operatorToken)
	if code := shown(t, w, aliceToken, "192.0.2.1").Code; code != http.StatusOK {
		t.Errorf("answered %d", code)
	}
	for _, token := range []string{"", " ", aliceToken + " ", " " + aliceToken, strings.ToUpper(aliceToken), "alice:" + aliceToken} {
		if code := shown(t, w, token, "192.0.2.1").Code; code != http.StatusUnauthorized {
			t.Errorf("%q is answered %d", token, code)
		}
	}
}

// What a token has opened ends when the token is replaced or removed, and what other
// tokens have opened goes on.
func TestTailsEndWithTheirToken(t *testing.T) {
	for name, replace := range map[string]func(w *world){
		"replaced": func(w *world) { w.credentials.Replace(testCredentials("another-operator's-secret")...) },
		"removed":  func(w *world) { w.credentials.Replace(testCredentials(operatorToken)[1:]...) },
	} {
		for _, by := range []string{"token", "session"} {
			t.Run(name+" "+by, func(t *testing.T) {
				w := newWorld(t, operatorToken)
				b := &browser{t: t, w: w}
				b.signIn(operatorToken)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				mine := follow(ctx, t, w, func(r *http.Request) {
					if by == "session" {
						r.AddCookie(b.cookie)
					} else {
						r.Header.Set("Authorization", "Bearer "+operatorToken)
					}
				})
				others := follow(ctx, t, w, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+bobToken) })
				replace(w)
				select {
				case <-mine:
				case <-time.After(time.Second):
					t.Error("the tail goes on after a second")
				}
				select {
				case <-others:
					t.Error("the tail of another token has ended")
				default:
				}
				if answer := b.ask(http.MethodGet, "/status", ""); answer.Code != http.StatusUnauthorized {
					t.Errorf("the session is answered %d", answer.Code)
				}
			})
		}
	}
}

// A tail that began while no token was configured ends when there is one.
func TestUnlockedTailsEnd(t *testing.T) {
	w := newWorld(t, "")
	ended := follow(t.Context(), t, w, func(*http.Request) {})
	w.credentials.Replace(testCredentials(operatorToken)...)
	select {
	case <-ended:
	case <-time.After(time.Second):
		t.Error("the tail goes on after a second")
	}
}

// follow opens a tail, and closes what it returns when the tail has ended.
func follow(ctx context.Context, t *testing.T, w *world, with func(*http.Request)) (ended chan struct{}) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.client.URL+BasePath+"/events/tail", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	with(r)
	resp, err := w.client.HTTP.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("a tail is answered %s", resp.Status)
	}
	ended = make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err == nil {
			close(ended)
		}
	}()
	t.Cleanup(func() {
		w.client.HTTP.CloseIdleConnections()
		w.server.end(nil)
		<-done
	})
	return ended
}

// Viewers that keep all of their part busy do not keep an operator waiting.
func TestOperatorsHaveAReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(2, 1, time.Second)
		var leave []func()
		for range 2 {
			l, ok := r.enter(t.Context(), Viewer)
			if !ok {
				t.Fatal("a viewer is not let in")
			}
			leave = append(leave, l)
		}
		began := time.Now()
		if _, ok := r.enter(t.Context(), Viewer); ok || time.Since(began) != time.Second {
			t.Errorf("one viewer more: %v after %v", ok, time.Since(began))
		}
		operator, ok := r.enter(t.Context(), Operator)
		if !ok {
			t.Fatal("an operator is kept out by viewers")
		}
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		began = time.Now()
		if _, ok := r.enter(gone, Operator); ok || time.Since(began) != 100*time.Millisecond {
			t.Errorf("one whose client is gone: %v after %v", ok, time.Since(began))
		}
		operator()
		leave[0]()
		if l, ok := r.enter(t.Context(), Viewer); !ok {
			t.Error("there is no room after one has left")
		} else {
			l()
		}
		leave[1]()
	})
}

// Every operation that reads much is counted with its like.
func TestBusyIsAnswered(t *testing.T) {
	w := newWorld(t, operatorToken)
	g := w.api.handler().(*guard)
	for path, k := range map[string]kind{"/events": kindSearch, "/dlq": kindList, "/dlq-count": kindList, "/status": kindPlain, "/events/tail": kindTail} {
		room := newRoom(1, 1, 0)
		g.rooms[k] = room
		leave, _ := room.enter(t.Context(), Viewer)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, BasePath+path, http.NoBody)
		r.Header.Set("Authorization", "Bearer "+bobToken)
		answer := httptest.NewRecorder()
		g.ServeHTTP(answer, r)
		want := http.StatusServiceUnavailable
		if k == kindTail {
			want = http.StatusTooManyRequests
		}
		if answer.Code != want || answer.Header().Get("Retry-After") == "" {
			t.Errorf("%s: answered %d %v", path, answer.Code, answer.Header())
		}
		if testutil.ToFloat64(w.metrics().busy.WithLabelValues(string(k))) == 0 {
			t.Errorf("%s is not counted", path)
		}
		leave()
	}
}

// Each change is one line: who, from where, what, on what, and what came of it.
func TestChangesAreAudited(t *testing.T) {
	w := newWorld(t, operatorToken)
	const person = "someone@example.com"
	type fields = map[string]any
	for _, tt := range []struct {
		name, token, method, path, body string
		from                            func(*http.Request)
		want                            fields
	}{
		{"pause", aliceToken, http.MethodPost, "/sinks/out/pause", "", nil, fields{"operation": "pause-sink", "outcome": "applied", "status": int64(200), "by": "alice", "role": "operator", "proof": "token", "remote": "192.0.2.1", "sink": "out"}},
		{"behind a proxy", operatorToken, http.MethodPost, "/sinks/out/resume", "", func(r *http.Request) {
			r.RemoteAddr = hostPort("10.1.1.1")
			r.Header.Set("X-Forwarded-For", "203.0.113.7")
		}, fields{"operation": "resume-sink", "outcome": "applied", "by": "admin.token", "remote": "203.0.113.7", "proxy": "10.1.1.1", "sink": "out"}},
		{"a stranger's word", aliceToken, http.MethodPost, "/sinks/out/resume", "", func(r *http.Request) { r.Header.Set("X-Forwarded-For", "203.0.113.7") }, fields{"remote": "192.0.2.1", "proxy": nil}},
		{"no such sink", aliceToken, http.MethodPost, "/sinks/nowhere/pause", "", nil, fields{"outcome": "failed", "status": int64(404), "sink": "nowhere"}},
		{"a name that may be a person's", aliceToken, http.MethodPost, "/sinks/" + person + "/pause", "", nil, fields{"outcome": "failed", "status": int64(404), "sink": nil}},
		{"an escaped name", aliceToken, http.MethodPost, "/sinks/o%75t/pause", "", nil, fields{"outcome": "applied", "sink": "out"}},
		{"a viewer", bobToken, http.MethodPost, "/sinks/out/pause", "", nil, fields{"operation": "pause-sink", "outcome": "denied", "status": int64(403), "by": "bob", "role": "viewer", "sink": "out"}},
		{"a dead letter", aliceToken, http.MethodDelete, "/dlq/17@out", "", nil, fields{"operation": "drop-dlq", "outcome": "failed", "sink": "out", "seq": uint64(17)}},
		{"a page", aliceToken, http.MethodPost, "/dlq-drop", `{"sink":"out"}`, nil, fields{"operation": "drop-dlq-page", "outcome": "applied", "sink": "out", "done": int64(0), "failed": int64(0)}},
		{"a replay", aliceToken, http.MethodPost, "/replays", `{"sink":"out","from":"1h","dry_run":true}`, nil, fields{"operation": "start-replay", "outcome": "applied", "sink": "out", "dry_run": true}},
		{"a replay to nowhere", aliceToken, http.MethodPost, "/replays", `{"sink":"gone","from":"1h","filter":"profile == \"` + person + `\""}`, nil, fields{"operation": "start-replay", "outcome": "failed", "sink": "gone"}},
		{"the log", aliceToken, http.MethodPut, "/log-level", `{"level":"warn"}`, nil, fields{"operation": "set-log-level", "outcome": "applied", "level": "warn"}},
		{"no change", aliceToken, http.MethodPut, "/log-level", `{"level":"` + person + `"}`, nil, fields{"operation": "set-log-level", "outcome": "failed", "status": int64(422)}},
		{"reload", aliceToken, http.MethodPost, "/reload", "", nil, fields{"operation": "reload", "outcome": "applied"}},
		{"delete", aliceToken, http.MethodDelete, "/sinks/old", "", nil, fields{"operation": "delete-sink", "outcome": "failed", "sink": "old"}},
		{"adopt", aliceToken, http.MethodPost, "/sinks/old/adopt", `{"as":"out"}`, nil, fields{"operation": "adopt-sink", "outcome": "failed", "sink": "old", "as": "out"}},
		{"send", aliceToken, http.MethodPost, "/events/7/send", `{"sink":"out"}`, nil, fields{"operation": "send-event", "outcome": "failed", "sink": "out", "seq": "7"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_ = w.logs.TakeAll()
			r := httptest.NewRequestWithContext(t.Context(), tt.method, "http://relay.example.com"+BasePath+tt.path, strings.NewReader(tt.body))
			r.RemoteAddr = hostPort("192.0.2.1")
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+tt.token)
			if tt.from != nil {
				tt.from(r)
			}
			before := testutil.CollectAndCount(w.metrics().changes)
			w.server.ServeHTTP(httptest.NewRecorder(), r)
			if after := testutil.CollectAndCount(w.metrics().changes); after != before {
				t.Error("a time series appears with the first change: it was not there from the start")
			}
			lines := w.logs.FilterMessageSnippet("admin change ").All()
			if len(lines) != 1 {
				t.Fatalf("%d lines: %v", len(lines), lines)
			}
			got := lines[0].ContextMap()
			for key, want := range tt.want {
				if fmt.Sprint(got[key]) != fmt.Sprint(want) {
					t.Errorf("%s is %v, want %v, in %v", key, got[key], want, got)
				}
			}
			if text := fmt.Sprint(got); strings.Contains(text, "example.com") {
				t.Errorf("the line holds what a caller wrote: %s", text)
			}
		})
	}
}

// A change is logged when its caller has gone, and when it panics.
func TestChangesAreAuditedToTheEnd(t *testing.T) {
	w := newWorld(t, operatorToken)
	ctx, cancel := context.WithCancel(t.Context())
	ask := func(path string) {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://relay.example.com"+BasePath+path, http.NoBody)
		r.Header.Set("Authorization", "Bearer "+aliceToken)
		w.server.ServeHTTP(httptest.NewRecorder(), r)
	}
	w.reloading = cancel
	ask("/reload")
	if lines := w.logs.FilterMessage("admin change applied").FilterField(zap.Bool("caller_gone", true)).All(); len(lines) != 1 {
		t.Errorf("a caller that has gone: %v", w.logs.All())
	}
	w.reloading = func() { panic("by the test") }
	func() {
		defer func() { _ = recover() }()
		ask("/reload")
		t.Error("it does not panic")
	}()
	if lines := w.logs.FilterMessage("admin change failed").FilterField(zap.Int("status", 500)).All(); len(lines) != 1 {
		t.Errorf("a panic: %v", w.logs.All())
	}
}

// A search finds events of a size that the journal does not read a page of at once.
func TestSearchOfLargeEvents(t *testing.T) {
	w := newWorld(t, "")
	const n = 40
	for i := range n {
		e := journaltest.Event(fmt.Sprintf("large-%d", i))
		if err := e.CloudEvent.SetData("text/plain", make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.journal.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[journal.Seq]bool{}
	query := url.Values{"id": {"large-"}, "limit": {"7"}}
	for range n {
		found, err := w.client.Search(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found.Events {
			if seen[e.Seq] {
				t.Fatalf("event %d is found twice", e.Seq)
			}
			seen[e.Seq] = true
		}
		if found.Next == 0 {
			break
		}
		query.Set("before", strconv.FormatUint(uint64(found.Next), 10))
	}
	if len(seen) != n {
		t.Errorf("%d of %d were found", len(seen), n)
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"", "Bearer", "Bearer ", "Bearer " + operatorToken, "bearer  x", "Basic YTpi", "Bearer a b", "\x00"} {
		f.Add(seed, "192.0.2.1:1", "1.2.3.4")
	}
	credentials := NewCredentials(testCredentials(operatorToken)...)
	a := &API{Credentials: credentials, Proxies: forwarded.Proxies{netip.MustParsePrefix("10.0.0.0/8")}, Metrics: NewMetrics(prometheus.NewRegistry()), Now: time.Now, Log: zap.NewNop()}
	d := a.door()
	f.Fuzz(func(t *testing.T, header, from, list string) {
		r := &http.Request{Method: http.MethodGet, Host: "relay", RemoteAddr: from, Header: http.Header{"Authorization": {header}, "X-Forwarded-For": {list}}}
		who, refused := d.identify(r)
		scheme, token, _ := strings.Cut(header, " ")
		right := strings.EqualFold(scheme, "Bearer") && slices.ContainsFunc(testCredentials(operatorToken), func(c Credential) bool { return c.Token == config.Secret(token) })
		if (who.role() != Nobody) != right || right && refused != nil {
			t.Errorf("%q makes %s: %v", header, who.role(), refused)
		}
	})
}
