package jetstream

import (
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

func TestMain(m *testing.M) {
	natstest.Serve()
	goleak.VerifyTestMain(m)
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

func options(t *testing.T, url string, c *clock) Options {
	return Options{
		URL: config.URL(url), Stream: "postwire", Name: "one", Window: time.Hour, Retention: 2 * time.Hour, Clock: c.Now, Every: time.Hour,
		Log: zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel)),
	}
}

func mustOpen(t *testing.T, o Options) *Journal {
	t.Helper()
	j, err := Open(t.Context(), o)
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
	for name, change := range map[string]func(*testing.T, *Options){
		"cluster": func(*testing.T, *Options) {},
		"spill":   func(t *testing.T, o *Options) { o.Spill = &Spill{Dir: t.TempDir()} },
	} {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) journaltest.Harness {
				t.Parallel()
				c := newClock()
				o := options(t, natstest.Start(t).URL(), c)
				discarded := &journaltest.Discarded{}
				o.Quarantine, o.Discarded = 64<<10, discarded.Add
				change(t, &o)
				return journaltest.Harness{
					Open:    func(t *testing.T) journal.Journal { return mustOpen(t, o) },
					Advance: c.Advance,
					Expire: func(t *testing.T, j journal.Journal) {
						if err := j.(*Journal).Expire(t.Context()); err != nil {
							t.Fatalf("Expire: %v", err)
						}
					},
					Window: o.Window, Retention: o.Retention, Quarantine: o.Quarantine, Discarded: discarded,
				}
			})
		})
	}
}
