package ingress

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
)

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func captioned(n int) []byte {
	return []byte(`{"event":"upload_completed","platform":"x","caption":"` + strings.Repeat("c", n) + `","result":{"success":true,"publish_id":"1"}}`)
}

// TestCompressedBodies: a body that is compressed is taken for what it holds,
// in the signature, in the limit and in what is stored.
func TestCompressedBodies(t *testing.T) {
	c := config.Default().Server
	c.MaxBodyBytes = 64 << 10
	w := serve(t, c, nil)
	body, large := captioned(10), captioned(100<<10)
	cut := zipped(t, captioned(1000))
	for _, tt := range []struct {
		name     string
		sent     []byte
		signed   []byte // what the signature is of
		encoding string
		want     int
	}{
		{"gzip", zipped(t, body), body, "gzip", http.StatusAccepted},
		{"its other name", zipped(t, body), body, "X-GZIP", http.StatusOK},
		{"not compressed, and says so", body, body, "identity", http.StatusOK},
		{"signed as it was compressed", zipped(t, body), zipped(t, body), "gzip", http.StatusUnauthorized},
		{"too large when it is read", zipped(t, large), large, "gzip", http.StatusRequestEntityTooLarge},
		{"a bomb", zipped(t, make([]byte, 50<<20)), nil, "gzip", http.StatusRequestEntityTooLarge},
		{"not gzip at all", body, body, "gzip", http.StatusUnsupportedMediaType},
		{"cut off", cut[:len(cut)/2], nil, "gzip", http.StatusUnsupportedMediaType},
		{"something behind it", append(zipped(t, body), "x"...), nil, "gzip", http.StatusUnsupportedMediaType},
		{"empty", nil, nil, "gzip", http.StatusUnsupportedMediaType},
		{"another one", body, body, "br", http.StatusUnsupportedMediaType},
		{"two", zipped(t, zipped(t, body)), nil, "gzip, gzip", http.StatusUnsupportedMediaType},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			sign(t, h, secret, tt.signed)
			header := []string{"Content-Encoding", tt.encoding}
			for name := range h {
				header = append(header, name, h.Get(name))
			}
			resp, _ := w.do(t, http.MethodPost, "/signed", "", tt.sent, header...)
			if resp.StatusCode != tt.want {
				t.Errorf("answered %s, want %d", resp.Status, tt.want)
			}
			if got := resp.Header.Get("Accept-Encoding"); (got == "gzip") != (tt.want == http.StatusUnsupportedMediaType) {
				t.Errorf("Accept-Encoding is %q", got)
			}
		})
	}
	records, err := w.journal.Read(t.Context(), 1, 10)
	if err != nil || len(records) != 1 || !bytes.Equal(records[0].Event.CloudEvent.DataEncoded, body) {
		t.Errorf("stored: %v, %v", records, err)
	}
	// What nobody understands is set aside as it was read, and says so.
	nonsense := []byte("{nothing")
	h := http.Header{}
	sign(t, h, secret, nonsense)
	header := []string{"Content-Encoding", "gzip"}
	for name := range h {
		header = append(header, name, h.Get(name))
	}
	if resp, _ := w.do(t, http.MethodPost, "/signed", "", zipped(t, nonsense), header...); resp.StatusCode != http.StatusAccepted {
		t.Errorf("answered %s", resp.Status)
	}
	for r, err := range w.journal.Quarantined(t.Context(), "") {
		if err != nil || !bytes.Equal(r.Body, nonsense) || r.Header.Get("Content-Encoding") != "" {
			t.Errorf("set aside: %q, %v, %v", r.Body, r.Header, err)
		}
	}
}

// TestLimitsOfASource: each source may have a limit of its own, below or above
// that of the server.
func TestLimitsOfASource(t *testing.T) {
	c := config.Default().Server
	c.MaxBodyBytes = 2000
	open := newSource(t, auth.Auth{None: true})
	w := serveRoutes(t, Options{Config: c, Routes: []Route{
		{Name: "small", Source: open, Settings: source.Settings{Paths: []string{"/small"}, MaxBodyBytes: 1024}},
		{Name: "usual", Source: open, Settings: source.Settings{Paths: []string{"/usual"}}},
		{Name: "large", Source: open, Settings: source.Settings{Paths: []string{"/large"}, MaxBodyBytes: 100 << 10}},
	}})
	for _, tt := range []struct {
		path string
		size int
		fits bool
	}{
		{"/small", 800, true},
		{"/small", 1024, false},
		{"/usual", 1024, true},
		{"/usual", 2000, false},
		{"/large", 50 << 10, true},
		{"/large", 100 << 10, false},
	} {
		resp, _ := w.do(t, http.MethodPost, tt.path, "", captioned(tt.size))
		if fits := resp.StatusCode < 300; fits != tt.fits || !fits && resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s, %d bytes: %s", tt.path, tt.size, resp.Status)
		}
	}
}

// held is a source that lets requests wait.
type held struct {
	source.Source
	entered chan struct{}
	release chan struct{}
}

func (h held) Normalize(r *source.Request) ([]event.Event, error) {
	h.entered <- struct{}{}
	<-h.release
	return h.Source.Normalize(r)
}

// TestRequestsAtOnce: above a source's own limit requests are answered 429,
// above the server's 503, and a source that is flooded leaves the others their
// part.
func TestRequestsAtOnce(t *testing.T) {
	c := config.Default().Server
	c.MaxInFlight = 8 // 4 for whoever comes first, 2 for each source
	flood := held{newSource(t, auth.Auth{None: true}), make(chan struct{}, 10), make(chan struct{})}
	w := serveRoutes(t, Options{Config: c, Routes: []Route{
		routeTo("flood", flood, source.Rate{}),
		{Name: "few", Source: flood, Settings: source.Settings{Paths: []string{"/few"}, MaxInFlight: 1}},
	}})
	var posts sync.WaitGroup
	post := func(path string) {
		posts.Go(func() {
			if resp, _ := w.do(t, http.MethodPost, path, "", captioned(10)); resp.StatusCode >= 300 {
				t.Errorf("%s was answered %s", path, resp.Status)
			}
		})
		<-flood.entered
	}
	for range 6 {
		post("/flood")
	}
	if resp, _ := w.do(t, http.MethodPost, "/flood", "", captioned(10)); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more than fits was answered %s", resp.Status)
	}
	post("/few") // in its own part
	if resp, _ := w.do(t, http.MethodPost, "/few", "", captioned(10)); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more than the source may was answered %s", resp.Status)
	}
	close(flood.release)
	posts.Wait()
	for range 2 {
		if resp, _ := w.do(t, http.MethodPost, "/few", "", captioned(10)); resp.StatusCode != http.StatusOK {
			t.Errorf("afterwards: %s", resp.Status)
		}
		<-flood.entered
	}
}

// TestBudget holds the account books against a plain sum.
func TestBudget(t *testing.T) {
	const sources, total = 3, 120 // 60 for whoever comes first, 20 each
	rng := rand.New(rand.NewPCG(1, 2))
	b := newQuotaPool(total, sources)
	var accounts []*quota
	for range sources {
		accounts = append(accounts, b.quotaOf(0))
	}
	for range 10000 {
		a := accounts[rng.IntN(sources)]
		n := rng.Int64N(30)
		if rng.IntN(2) == 0 {
			a.release(min(n, a.used))
		} else {
			others, common := int64(0), int64(0)
			for _, o := range accounts {
				if o != a {
					others += o.used
					common += max(0, o.used-20)
				}
			}
			fits := max(0, a.used+n-20)+common <= 60
			if err := a.acquire(n); (err == nil) != fits {
				t.Fatalf("take(%d) = %v with %d taken and %d by others", n, err, a.used, others)
			} else if err != nil && !errors.Is(err, errExhausted) {
				t.Fatal(err)
			}
		}
	}
	for _, a := range accounts {
		a.release(a.used)
	}
	if b.free != 60 {
		t.Errorf("%d are left at the end, want 60", b.free)
	}
}

// A budget is divided anew while it is in use: what is taken counts on, whether
// its source stays or goes, and all is there again in the end.
func TestBudgetIsDividedAnew(t *testing.T) {
	b := newQuotaPool(120, 3)
	stays, goes := b.quotaOf(0), b.quotaOf(0)
	for _, take := range []struct {
		a *quota
		n int64
	}{{stays, 30}, {goes, 50}} {
		if err := take.a.acquire(take.n); err != nil {
			t.Fatal(err)
		}
	}
	b.divide(1, map[*quota]bool{stays: true}) // 60 for whoever comes first, 60 of its own
	if err := stays.acquire(91); !errors.Is(err, errExhausted) {
		t.Errorf("121 of 120 are taken: %v", err)
	}
	if err := stays.acquire(90); err != nil {
		t.Error(err)
	}
	goes.release(50)
	b.divide(12, map[*quota]bool{stays: true})
	if len(b.quotas) != 1 {
		t.Errorf("%d accounts are kept", len(b.quotas))
	}
	stays.release(120)
	if b.free != 60 {
		t.Errorf("%d are left at the end, want 60", b.free)
	}
}

// Sources come, go and change while others are in use. One that stays keeps
// what it has used of its rate.
// TestBudgetOfALateRequest: a request that comes to a source which a reload has just
// removed is in the books, also over the next reload.
func TestBudgetOfALateRequest(t *testing.T) {
	b := newQuotaPool(100, 2)
	stays, goes := b.quotaOf(0), b.quotaOf(0)
	used := map[*quota]bool{stays: true}
	b.divide(1, used)
	if err := goes.acquire(60); err != nil {
		t.Fatal(err)
	}
	b.divide(1, used)
	goes.release(60)
	b.divide(1, used)
	if b.free != 50 || b.used != 0 || len(b.quotas) != 1 {
		t.Errorf("with nothing taken %d are for whoever comes first, %d are used, of %d accounts", b.free, b.used, len(b.quotas))
	}
	if err := goes.acquire(60); err != nil {
		t.Fatal(err)
	}
	b.divide(1, used)
	if want := int64(50 - 10); b.free != want {
		t.Errorf("%d are left, want %d", b.free, want)
	}
	goes.release(60)
	if b.free != 50 {
		t.Errorf("with nothing taken %d are for whoever comes first", b.free)
	}
}

func TestExchange(t *testing.T) {
	src := newSource(t, auth.Auth{None: true})
	limited := Route{Name: "limited", Source: src, Settings: source.Settings{Paths: []string{"/limited"}, Rate: source.Rate{PerSecond: 0.001, Burst: 1}}}
	w := serveRoutes(t, Options{Config: config.Default().Server, Routes: []Route{limited, routeTo("old", src, source.Rate{})}})
	status := func(path string) int {
		t.Helper()
		resp, _ := w.do(t, http.MethodPost, path, "", captioned(10))
		return resp.StatusCode
	}
	if a, b, c := status("/limited"), status("/old"), status("/new"); a != 202 || b != 200 || c != 404 {
		t.Fatalf("at first %d, %d, %d", a, b, c)
	}
	if err := w.server.SetRoutes([]Route{limited, routeTo("new", src, source.Rate{}), {Name: "other", Source: src, Settings: source.Settings{Paths: []string{"/new"}}}}); err == nil {
		t.Error("two sources on one path are taken")
	}
	if code := status("/old"); code != 200 {
		t.Errorf("what was refused has changed something: %d", code)
	}
	moved := limited
	moved.Settings.Paths = []string{"/moved"}
	if err := w.server.SetRoutes([]Route{moved, routeTo("new", src, source.Rate{})}); err != nil {
		t.Fatal(err)
	}
	if a, b, c, d := status("/moved"), status("/old"), status("/new"), status("/limited"); a != 429 || b != 404 || c != 200 || d != 404 {
		t.Errorf("then %d, %d, %d, %d", a, b, c, d)
	}
	if n, err := testutil.GatherAndCount(w.registry, "postwire_dedupe_hits_total"); err != nil || n != 2 {
		t.Errorf("%d sources are measured: %v", n, err)
	}
}

// TestMemoryIsTakenAsBytesArrive: who announces much and sends little takes
// nothing, and what is taken is given back.
func TestMemoryIsTakenAsBytesArrive(t *testing.T) {
	b := newQuotaPool(1<<20, 1)
	memory := b.quotaOf(0)
	p := newPool(b, 10, 64<<10, false, NewMetrics(prometheus.NewRegistry()))
	var requests []*allocation
	read := func(body io.Reader, length int64) error {
		r := httptest.NewRequest(http.MethodPost, "/", body)
		r.ContentLength = length
		h, err := p.begin(&connection{pool: p}, httptest.NewRecorder(), r, netip.Addr{}, memory, 0)
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, h)
		p.verify(h, false) // it does not yield to the next one
		in := &bodyReader{pool: p, request: h, limit: 4 << 20}
		return in.read(r)
	}
	if err := read(strings.NewReader("few"), 3<<20); err != nil || memory.used != 0 {
		t.Errorf("of an announced body %d bytes are taken: %v", memory.used, err)
	}
	if err := read(bytes.NewReader(make([]byte, 600<<10)), 600<<10); err != nil || memory.used < 500<<10 || memory.used > 610<<10 {
		t.Errorf("of a body of 600 KiB %d bytes are taken: %v", memory.used, err)
	}
	if err := read(bytes.NewReader(make([]byte, 600<<10)), -1); !errors.Is(err, errExhausted) {
		t.Errorf("more than there is was taken: %v", err)
	}
	for _, h := range requests {
		p.end(h, false)
	}
	if memory.used != 0 {
		t.Errorf("%d bytes are not given back", memory.used)
	}
}

// TestIdleConnectionsMakeRoom: connections that are open and idle shut nobody
// out; one that is at work is not closed.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	c := config.Default().Server
	c.MaxConnections = 4
	busy := held{newSource(t, auth.Auth{None: true}), make(chan struct{}, 10), make(chan struct{})}
	w := serveRoutes(t, Options{Config: c, Routes: []Route{
		routeTo("busy", busy, source.Rate{}), routeTo("open", newSource(t, auth.Auth{None: true}), source.Rate{}),
	}})
	var posts sync.WaitGroup
	posts.Go(func() {
		if resp, _ := w.do(t, http.MethodPost, "/busy", "", captioned(10)); resp.StatusCode >= 300 {
			t.Errorf("the request under way was answered %s", resp.Status)
		}
	})
	<-busy.entered
	var idle []net.Conn
	for range 20 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for range 5 {
		resp, err := client.Post(w.url+"/open", "application/json", bytes.NewReader(captioned(10)))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Errorf("answered %s", resp.Status)
		}
	}
	// The first of the idle ones is gone.
	if err := idle[0].SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the first idle connection: %v", err)
	}
	close(busy.release)
	posts.Wait()
	if n := testutil.ToFloat64(w.metrics.evicted); n < 17 {
		t.Errorf("%v connections were closed to make room", n)
	}
	if n := testutil.ToFloat64(w.metrics.connections); n > 4 {
		t.Errorf("%v connections are open", n)
	}
}

// TestLeastBuffered: with the smallest max_buffered_bytes that the configuration takes, a
// sender that is alone has the largest body taken, however it sends it, beside many
// sources.
func TestLeastBuffered(t *testing.T) {
	body := captioned(300 << 10)
	c := config.Default().Server
	c.MaxBodyBytes = config.Size(len(body))
	c.MaxBufferedBytes = c.LeastBuffered(c.MaxBodyBytes)
	var routes []Route
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		routes = append(routes, routeTo(name, newSource(t, auth.Auth{None: true}), source.Rate{}))
	}
	w := serveRoutes(t, Options{Config: c, Routes: routes})
	for name, send := range map[string]struct {
		body     io.Reader
		encoding string
	}{
		"with its length": {bytes.NewReader(body), "identity"},
		"in chunks":       {io.MultiReader(bytes.NewReader(body)), "identity"},
		"compressed":      {bytes.NewReader(zipped(t, body)), "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequest(http.MethodPost, w.url+"/a", send.body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Content-Encoding", send.encoding)
			r.Header.Set("X-Large", strings.Repeat("x", int(c.MaxHeaderBytes)-1<<10))
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode > 299 {
				t.Errorf("answered %s", resp.Status)
			}
		})
	}
}
