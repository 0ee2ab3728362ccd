package local

import (
	"math"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

func TestMain(m *testing.M) {
	// A failed Open of the engine leaves this one behind.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/cockroachdb/pebble/v2.(*ConcurrencyLimitScheduler).periodicGranter"))
}

// clock stands still until it is moved.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time          { return time.Unix(0, c.now.Load()).UTC() }
func (c *clock) Advance(d time.Duration) { c.now.Add(int64(d)) }

func options(t *testing.T, fs vfs.FS, dir string, c *clock) Options {
	return Options{
		Dir: dir, FS: fs, Window: time.Hour, Retention: 2 * time.Hour, Clock: c.Now, Every: time.Hour,
		Log: zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel)),
	}
}

func mustOpen(t *testing.T, o Options) *Journal {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return j
}

func TestConformance(t *testing.T) {
	for name, fs := range map[string]func() vfs.FS{
		"disk":   func() vfs.FS { return vfs.Default },
		"memory": func() vfs.FS { return vfs.NewMem() },
	} {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) journaltest.Harness {
				c := newClock()
				o := options(t, fs(), t.TempDir(), c)
				discarded := &journaltest.Discarded{}
				o.Quarantine, o.Discarded = 64<<10, discarded.Add
				return journaltest.Harness{
					Open:    func(t *testing.T) journal.Journal { return mustOpen(t, o) },
					Advance: c.Advance,
					Expire: func(t *testing.T, j journal.Journal) {
						if err := j.(*Journal).Expire(t.Context()); err != nil {
							t.Fatalf("Expire: %v", err)
						}
					},
					Window: o.Window, Retention: o.Retention, Quarantine: o.Quarantine, Discarded: discarded, Consecutive: true,
				}
			})
		})
	}
}

// TestUsageTellsKeys counts the identity keys that are remembered, over
// generations, their end and a restart, with the count noted or not.
func TestUsageTellsKeys(t *testing.T) {
	clock := newClock()
	o := options(t, vfs.NewMem(), "data", clock)
	o.Window = time.Hour
	j := mustOpen(t, o)
	n := 0
	put := func(events int) {
		t.Helper()
		for range events {
			n++
			id := strconv.Itoa(n)
			if _, err := j.Append(t.Context(), journaltest.Event(id, event.NewKey("s", "a", id), event.NewKey("s", "b", id))); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(what string, keys uint64) {
		t.Helper()
		if got := j.Usage().Keys; got != keys {
			t.Errorf("%s: %d keys, want %d", what, got, keys)
		}
	}
	reopen := func() {
		t.Helper()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = mustOpen(t, o)
	}
	put(3)
	want("three events of two keys", 6)
	if _, err := j.Append(t.Context(), journaltest.Event("1", event.NewKey("s", "a", "1"))); err != nil {
		t.Fatal(err)
	}
	want("and a duplicate", 6)
	clock.Advance(90 * time.Minute)
	put(2)
	want("in two generations", 10)
	reopen()
	want("after a restart", 10)
	if err := j.change(t.Context(), func(g *group) error {
		return g.deleteRange(metaKeysKey(0), metaKeysKey(math.MaxInt64))
	}); err != nil {
		t.Fatal(err)
	}
	reopen()
	want("where an older version has not noted it", 10)
	clock.Advance(70 * time.Minute)
	if err := j.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("when the first generation is over", 4)
	reopen()
	want("and after another restart", 4)
}
