package console

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cdpheap "github.com/chromedp/cdproto/heapprofiler"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"golang.org/x/time/rate"
)

var long = flag.Bool("long", false, "watch the load for a minute instead of some seconds")

// figures are what a stretch of load came to, for its sender.
type figures struct {
	sent      int64
	took      time.Duration
	p50, p99  time.Duration
	heap      uint64 // of the relay, and of this test
	delivered int64
}

// perSecond is how many events a second are sent.
const perSecond = 1000

// load sends events for so long.
func (w *world) load(from int, d time.Duration) (f figures) {
	w.t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	defer cancel()
	limiter := rate.NewLimiter(rate.Limit(perSecond), perSecond/20)
	var next, failed atomic.Int64
	next.Store(int64(from))
	before := w.taken.Load()
	began := time.Now()
	var senders sync.WaitGroup
	var mu sync.Mutex
	var all []time.Duration
	for range 32 {
		senders.Go(func() {
			var took []time.Duration
			for limiter.Wait(ctx) == nil {
				body := upload("instagram", fmt.Sprintf("profile-%d", next.Load()%50), fmt.Sprint(next.Add(1)))
				at := time.Now()
				resp, err := client.Post("http://"+w.ingress+"/raw", "application/json", bytes.NewBufferString(body))
				if err != nil {
					failed.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusAccepted {
					failed.Add(1)
				}
				took = append(took, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
		})
	}
	senders.Wait()
	f.took = time.Since(began)
	if n := failed.Load(); n > 0 {
		w.t.Errorf("%d requests were not taken", n)
	}
	f.sent = next.Load() - int64(from)
	eventually(w.t, "all is delivered", func() bool { return w.taken.Load()-before == f.sent })
	f.delivered = w.taken.Load() - before
	slices.Sort(all)
	f.p50, f.p99 = all[len(all)/2], all[len(all)*99/100]
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.heap = m.HeapAlloc
	return f
}

func (f figures) String() string {
	return fmt.Sprintf("%d events in %.1f s (%.0f/s), answered in %v (median) and %v (99 of 100), all delivered; heap %.1f MiB",
		f.sent, f.took.Seconds(), float64(f.sent)/f.took.Seconds(), f.p50.Round(10*time.Microsecond), f.p99.Round(10*time.Microsecond), float64(f.heap)/(1<<20))
}

// heap is what the page holds, after what it let go of was collected.
func (b *browser) heap() float64 {
	b.t.Helper()
	used, err := chromedp.Run(b.ctx, func(ctx context.Context, _ *chromedp.Target) (float64, error) {
		for range 2 {
			if _, err := chromedp.Call(ctx, cdpheap.CollectGarbage, struct{}{}); err != nil {
				return 0, err
			}
		}
		usage, err := chromedp.Call(ctx, cdpruntime.GetHeapUsage, struct{}{})
		return usage.UsedSize, err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return used
}

// TestAFloodThroughTheLiveTail: a thousand events a second go through an open
// live tail. The page answers, holds no more in the end than in the beginning,
// and counts what it does not show; the relay does not notice.
func TestAFloodThroughTheLiveTail(t *testing.T) {
	span := 5 * time.Second
	if *long {
		span = time.Minute
	}
	w := start(t)
	warm := w.load(0, span/2)
	alone := w.load(int(warm.sent), span)
	t.Logf("nobody watches: %v", alone)

	b := open(t, w.admin)
	b.signIn(operatorToken)
	b.page("events", "Events")
	b.click("#live")
	b.shows("Waiting for the next event")
	offset := int(warm.sent + alone.sent)
	first := w.load(offset, span/2) // rows fill up
	heapBefore := b.heap()
	// How late what the page wants to do every 20 ms is done, and how often it
	// is drawn.
	b.js(nil, `(() => {
		window.late = []; window.frames = 0;
		let last = performance.now();
		setInterval(() => { const now = performance.now(); late.push(now - last - 20); last = now; }, 20);
		const frame = () => { frames++; requestAnimationFrame(frame); };
		requestAnimationFrame(frame);
	})()`)
	watched := w.load(offset+int(first.sent), span)
	t.Logf("one watches:    %v", watched)
	var late []float64
	var frames int
	b.js(&late, "late")
	b.js(&frames, "frames")
	heapAfter := b.heap()
	slices.Sort(late)
	t.Logf("the page: late by %.0f ms (median), %.0f ms (99 of 100), %.0f ms at most; %.0f frames a second; heap %.2f MiB, then %.2f MiB",
		late[len(late)/2], late[len(late)*99/100], late[len(late)-1], float64(frames)/watched.took.Seconds(), heapBefore/(1<<20), heapAfter/(1<<20))

	sent := first.sent + watched.sent
	var tally struct{ Seen, Missed, Rows int64 }
	eventually(t, "all are shown or counted", func() bool {
		b.js(&tally, `({Seen: Number(document.querySelector(".tally").dataset.seen), Missed: Number(document.querySelector(".tally").dataset.dropped), Rows: document.querySelectorAll("#results tbody tr").length})`)
		return tally.Seen+tally.Missed >= sent
	})
	t.Logf("of %d events %d were shown and %d counted", sent, tally.Seen, tally.Missed)
	b.shot("flood")
	if tally.Seen+tally.Missed != sent {
		t.Errorf("%d were sent, %d shown and %d counted", sent, tally.Seen, tally.Missed)
	}
	if tally.Missed == 0 || tally.Rows > 200 {
		t.Errorf("%d rows are kept, and %d were not shown", tally.Rows, tally.Missed)
	}
	if late[len(late)*99/100] > 1000 { // a page that hangs; how smooth it is depends on the machine
		t.Errorf("the page is late by %.0f ms", late[len(late)*99/100])
	}
	if heapAfter > heapBefore*1.5+2<<20 {
		t.Errorf("the page holds %.2f MiB, and %.2f MiB before", heapAfter/(1<<20), heapBefore/(1<<20))
	}
	// Of a busy machine the figures are wide: a view that held the relay up, or
	// events back, would be far outside.
	if watched.heap > 2*alone.heap+16<<20 || watched.p50 > 4*alone.p50+5*time.Millisecond {
		t.Errorf("the relay answers slower, or holds more, while one watches: %v; %v alone", watched, alone)
	}
	if watched.delivered != watched.sent || float64(watched.sent)/watched.took.Seconds() < 0.9*float64(alone.sent)/alone.took.Seconds() {
		t.Errorf("the relay notices who watches: %v; %v alone", watched, alone)
	}
}
