package transfer_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/record"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

func TestMain(m *testing.M) {
	// A failed Open of the engine leaves this one behind.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/cockroachdb/pebble/v2.(*ConcurrencyLimitScheduler).periodicGranter"))
}

const (
	window    = time.Hour
	retention = 2 * time.Hour
)

// clock stands still until it is moved.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time          { return time.Unix(0, c.now.Load()).UTC() }
func (c *clock) Advance(d time.Duration) { c.now.Add(int64(d)) }

// place is where a journal is kept.
type place interface {
	open(t *testing.T) journal.Journal
	source(t *testing.T) (transfer.Source, error)
	target(t *testing.T) (transfer.Target, error)
}

type folder struct {
	dir   string
	clock *clock
}

func (f folder) options() local.Options {
	return local.Options{Dir: f.dir, Window: window, Retention: retention, Clock: f.clock.Now, Every: time.Hour}
}

func (f folder) open(t *testing.T) journal.Journal {
	t.Helper()
	j, err := local.Open(f.options())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (f folder) source(*testing.T) (transfer.Source, error) { return local.OpenSource(f.options()) }

func (f folder) target(*testing.T) (transfer.Target, error) { return local.OpenTarget(f.options()) }

type stream struct {
	url, name string
	clock     *clock
}

func (s stream) options() jetstream.Options {
	return jetstream.Options{URL: config.URL(s.url), Stream: s.name, Name: "one", Window: window, Retention: retention, Clock: s.clock.Now, Every: time.Hour}
}

func (s stream) open(t *testing.T) journal.Journal {
	t.Helper()
	j, err := jetstream.Open(t.Context(), s.options())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (s stream) source(t *testing.T) (transfer.Source, error) {
	return jetstream.OpenSource(t.Context(), s.options())
}

func (s stream) target(t *testing.T) (transfer.Target, error) {
	return jetstream.OpenTarget(t.Context(), s.options())
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func closed(t *testing.T, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// read reads n records of a cursor.
func read(t *testing.T, c journal.Cursor, n int) (records []journal.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(records) < n {
		records = append(records, must(c.Next(ctx, n-len(records)))(t)...)
	}
	return records
}

func commit(t *testing.T, c journal.Cursor, through journal.Seq, u journal.Undelivered) {
	t.Helper()
	if err := c.Commit(t.Context(), journal.Progress{Done: journal.UpTo(through).Done, Undelivered: u}); err != nil {
		t.Fatal(err)
	}
}

// ranged is a note with places, as those of replays.
type ranged struct {
	First journal.Seq `json:"first"`
	Last  journal.Seq `json:"last"`
}

func moveNote(n journal.KVEntry, first, last func(journal.Seq) journal.Seq) (journal.KVEntry, error) {
	if !strings.HasPrefix(n.Key, "replay/") {
		return n, nil
	}
	var r ranged
	if err := json.Unmarshal(n.Value, &r); err != nil {
		return n, err
	}
	r.First, r.Last = first(r.First), last(r.Last)
	b, err := json.Marshal(r)
	return journal.KVEntry{Key: n.Key, Value: b}, err
}

// fill makes a journal with everything that there can be: events that have
// expired, and dead letters of such; events of which one sink has been given all,
// another some and a third none; retried, dropped and given-up ones; keys learned
// from duplicates, and keys outside the window; requests and notes. Its largest
// event may be more than a message takes.
func fill(t *testing.T, p place, c *clock, largest int) {
	t.Helper()
	j := p.open(t)
	defer closed(t, j)
	appendAll := func(ids ...string) (places []journal.Seq) {
		for _, id := range ids {
			c.Advance(time.Second)
			e := journaltest.Event(id, event.NewKey("test", id), event.NewKey("second", id))
			if id == "c3" {
				e.CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("x", largest) + `"`)
			}
			places = append(places, must(j.Append(t.Context(), e))(t)[0].Seq)
		}
		return places
	}
	dead := func(at journal.Seq) journal.DeadLetter {
		return journal.DeadLetter{Seq: at, Reason: "refused", Err: "no", Attempts: 2, First: c.Now(), Last: c.Now()}
	}
	fast := must(j.Reader(t.Context(), "fast", journal.Earliest))(t)
	slow := must(j.Reader(t.Context(), "slow/er", journal.Latest))(t)
	a := appendAll("a1", "a2", "a3", "a4")
	read(t, fast, 4)
	commit(t, fast, a[3], journal.Undelivered{Dead: []journal.DeadLetter{dead(a[1]), dead(a[2])}})
	read(t, slow, 4)
	commit(t, slow, a[3], journal.Undelivered{})
	c.Advance(3 * time.Hour)
	if err := j.(interface{ Expire(context.Context) error }).Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := appendAll("b1", "b2", "b3", "b4")
	c.Advance(50 * time.Minute)
	twin := journaltest.Event("twin", event.NewKey("test", "b1"), event.NewKey("learned", "b1"))
	if r := must(j.Append(t.Context(), twin))(t)[0]; !r.Duplicate {
		t.Fatal("the twin was stored")
	}
	c.Advance(15 * time.Minute) // b's keys are outside
	late := appendAll("c1", "c2", "c3", "c4", "c5", "c6")
	twin = journaltest.Event("twin", event.NewKey("test", "c1"), event.NewKey("learned\r\n", "c1"))
	if r := must(j.Append(t.Context(), twin))(t)[0]; !r.Duplicate {
		t.Fatal("the twin was stored")
	}
	read(t, fast, 8)
	commit(t, fast, late[3], journal.Undelivered{
		Dead:      []journal.DeadLetter{dead(b[2]), dead(late[0]), dead(late[1])},
		Discarded: []journal.Disposition{{From: b[3], To: b[3], Reason: journal.DiscardedAfter, At: c.Now()}},
	})
	must(j.Redeliver(t.Context(), journal.DeliveryID{Sink: "fast", Seq: b[2]}))(t)
	must(j.Redeliver(t.Context(), journal.DeliveryID{Sink: "fast", Seq: a[1]}))(t)
	if err := j.Drop(t.Context(), journal.DeliveryID{Sink: "fast", Seq: late[0]}); err != nil {
		t.Fatal(err)
	}
	read(t, slow, 2)
	commit(t, slow, b[1], journal.Undelivered{})
	read(t, slow, 6) // of which some are done
	if err := slow.Commit(t.Context(), journal.Progress{Done: []journal.Range{{From: late[0], To: late[0]}, {From: late[2], To: late[3]}}, Open: 3}); err != nil {
		t.Fatal(err)
	}
	must(j.Reader(t.Context(), "newest", journal.Latest))(t)
	for _, id := range []string{"q1", "q2"} {
		must(j.Quarantine(t.Context(), journal.QuarantinedRequest{ID: id, Source: "s", Received: c.Now(), Method: "POST", Body: []byte(id), Reason: "odd"}))(t)
	}
	must(j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Received: c.Now().Add(time.Minute), Body: []byte("q1")}))(t) // a repeat
	for n, v := range map[string]string{"replay/x": fmt.Sprintf(`{"first":%d,"last":%d}`, b[0], late[2]), "replay/old": fmt.Sprintf(`{"first":%d,"last":%d}`, a[0], b[1]), "other": "ünï"} {
		if err := j.PutValue(t.Context(), n, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	replay := must(j.Reader(t.Context(), "replay/x", journal.Start(b[0]-1)))(t)
	read(t, replay, 1)
	commit(t, replay, b[0], journal.Undelivered{})
}

// picture is what is in a journal, with the event's names in the place of places.
type picture struct {
	Events       []string
	Keys         []string
	Dead         []string
	Dispositions []string
	Quarantined  []journal.QuarantinedRequest
	Notes        []string
	Cursors      []string
}

func look(t *testing.T, p place) (pic picture) {
	t.Helper()
	src := must(p.source(t))(t)
	defer closed(t, src)
	ctx := t.Context()
	var places []journal.Seq
	names := map[journal.Seq]string{}
	name := func(s journal.Seq) string {
		n, ok := slices.BinarySearch(places, s)
		switch {
		case s == 0:
			return "-"
		case ok:
			return names[s]
		case n == 0:
			return "before all"
		}
		return "behind " + names[places[n-1]]
	}
	// Other things stand between events: what counts is what is before and behind.
	before := func(s journal.Seq) string {
		n, ok := slices.BinarySearch(places, s)
		if ok {
			n++
		}
		if n == 0 {
			return "start"
		}
		return names[places[n-1]]
	}
	from := func(s journal.Seq) string {
		if n, _ := slices.BinarySearch(places, s); n < len(places) {
			return names[places[n]]
		}
		return "end"
	}
	describe := func(e transfer.Event) string {
		e.Keys = nil
		r := must(record.Decode(e.Seq, e.Record()))(t)
		if r.Event.SourceName == "" {
			t.Errorf("%s: without its keys nobody knows its source", r.Event.CloudEvent.ID())
		}
		ev := r.Event
		if data := ev.CloudEvent.DataEncoded; len(data) > 1<<10 {
			ev.CloudEvent.DataEncoded = fmt.Appendf(nil, `"%x"`, sha256.Sum256(data))
		}
		return fmt.Sprintf("%s at %s by %s, only %s, %s", ev.CloudEvent.ID(), e.Accepted.Format(time.RFC3339Nano), r.Event.SourceName, e.TargetSink, must(json.Marshal(ev.CloudEvent))(t))
	}
	var ofs []journal.Seq
	all := func() (got []transfer.Event) {
		for e, err := range src.Events(ctx, 0) {
			got = append(got, must(e, err)(t))
		}
		return got
	}()
	for _, e := range all {
		ev := must(record.Decode(e.Seq, e.Record()))(t).Event
		places = append(places, e.Seq)
		names[e.Seq] = ev.CloudEvent.ID()
		if e.TargetSink != "" {
			names[e.Seq] += " again"
		}
		ofs = append(ofs, e.OriginSeq)
	}
	for n, e := range all {
		pic.Events = append(pic.Events, describe(e)+" of "+name(ofs[n]))
	}
	keys := map[event.Key]string{}
	for k, err := range src.Keys(ctx) {
		must(k, err)(t)
		keys[k.Key] = fmt.Sprintf("%q at %s for %s, %s", k.Key, k.First.Format(time.RFC3339Nano), name(k.Seq), k.ID)
	}
	for _, text := range keys {
		pic.Keys = append(pic.Keys, text)
	}
	slices.Sort(pic.Keys)
	for d, err := range src.DeadLetters(ctx) {
		must(d, err)(t)
		at := d.Letter.Seq
		d.Letter.Seq = 0
		pic.Dead = append(pic.Dead, fmt.Sprintf("%s at %s %s %v of %s", d.Sink, name(at), describe(d.Event), d.Letter, name(d.Event.OriginSeq)))
	}
	for g, err := range src.Dispositions(ctx) {
		must(g, err)(t)
		if g.To < places[0] {
			continue // it goes with its events
		}
		pic.Dispositions = append(pic.Dispositions, fmt.Sprintf("%s from %s to %s %s %s as %s", g.Sink, from(g.From), before(g.To), g.Reason, g.At, name(g.RedeliveredAs)))
	}
	slices.Sort(pic.Dispositions)
	for q, err := range src.Quarantined(ctx) {
		pic.Quarantined = append(pic.Quarantined, must(q, err)(t))
	}
	for n, err := range src.Values(ctx) {
		must(n, err)(t)
		text := string(n.Value)
		if strings.HasPrefix(n.Key, "replay/") {
			var r ranged
			if err := json.Unmarshal(n.Value, &r); err != nil {
				t.Fatal(err)
			}
			text = "from " + from(r.First) + " to " + before(r.Last)
		}
		pic.Notes = append(pic.Notes, n.Key+": "+text)
	}
	for c, err := range src.Cursors(ctx) {
		must(c, err)(t)
		var done []string
		for _, s := range places {
			if slices.ContainsFunc(c.Done, func(r journal.Range) bool { return r.From <= s && s <= r.To }) {
				done = append(done, names[s])
			}
		}
		pic.Cursors = append(pic.Cursors, fmt.Sprintf("%s through %s, from %s, done %v", c.Name, before(c.Committed), before(c.StartSeq), done))
	}
	return pic
}

func compare(t *testing.T, want, got picture) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("(-source +target):\n%.6000s", diff)
	}
}

// errFault is what a faulty target returns.
var errFault = errors.New("the plug was pulled")

// faulty fails at the nth call that writes, before it or after it, and at every
// one that follows.
type faulty struct {
	transfer.Target
	left  int
	after bool
}

func (f *faulty) write(do func() error) error {
	if f.left--; f.left > 0 {
		return do()
	}
	if f.left == 0 && f.after {
		if err := do(); err != nil {
			return err
		}
	}
	return errFault
}

func (f *faulty) Append(ctx context.Context, items []transfer.Item, note func([]journal.Seq) (row, state []byte)) error {
	return f.write(func() error { return f.Target.Append(ctx, items, note) })
}

func (f *faulty) Clear(ctx context.Context) error {
	return f.write(func() error { return f.Target.Clear(ctx) })
}

func (f *faulty) Put(ctx context.Context, t transfer.Metadata) error {
	return f.write(func() error { return f.Target.Put(ctx, t) })
}

func (f *faulty) Finish(ctx context.Context) error {
	return f.write(func() error { return f.Target.Finish(ctx) })
}

// carry runs a transfer, with small pages, through a target that change may change.
func carry(t *testing.T, from, to place, change func(transfer.Target) transfer.Target) (transfer.Report, error) {
	t.Helper()
	src := must(from.source(t))(t)
	defer closed(t, src)
	dst, err := to.target(t)
	if err != nil {
		return transfer.Report{}, err
	}
	defer closed(t, dst)
	if change != nil {
		dst = change(dst)
	}
	return transfer.Run(t.Context(), src, dst, transfer.Options{MoveEntry: moveNote, Page: 3})
}

type direction struct {
	name     string
	from, to func(t *testing.T, c *clock, n int) place
}

func directions(t *testing.T) []direction {
	url := natstest.Start(t).URL()
	inFolder := func(t *testing.T, c *clock, _ int) place { return folder{t.TempDir() + "/journal", c} }
	count := 0
	inStream := func(_ *testing.T, c *clock, n int) place {
		count++
		return stream{url, fmt.Sprintf("s%d-%d", count, n), c}
	}
	return []direction{{"pebble to jetstream", inFolder, inStream}, {"jetstream to pebble", inStream, inFolder}}
}

func TestAllIsCarried(t *testing.T) {
	for _, d := range directions(t) {
		t.Run(d.name, func(t *testing.T) {
			c := newClock()
			from, to := d.from(t, c, 0), d.to(t, c, 1)
			fill(t, from, c, 3<<20)
			want := look(t, from)
			report, err := carry(t, from, to, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(want.Events) != 12 || len(want.Keys) != 13 || len(want.Dead) != 2 || len(want.Dispositions) != 3 || len(want.Cursors) != 4 {
				t.Errorf("the source is not as it should be: %d events, %d keys, %d dead, %d dispositions, %d cursors", len(want.Events), len(want.Keys), len(want.Dead), len(want.Dispositions), len(want.Cursors))
			}
			compare(t, want, look(t, to))
			if report.Events != 12 || report.Keys != 13 || report.Dead != 2 || report.Quarantined != 2 || len(report.Cursors) != 4 || report.Before || len(report.Missing) > 0 {
				t.Errorf("report: %+v", report)
			}
			compare(t, want, look(t, from)) // nothing was taken out of it
			again, err := carry(t, from, to, nil)
			if report.Before = true; err != nil || !cmp.Equal(report, again) {
				t.Errorf("again: %+v, %v; want %+v", again, err, report)
			}
			compare(t, want, look(t, to))
			works(t, to, c)

			// And back, where everything is as it was.
			c = newClock()
			back := d.from(t, c, 2)
			c.now.Store(to.(interface{ now() int64 }).now())
			want = look(t, to)
			if _, err := carry(t, to, back, nil); err != nil {
				t.Fatal(err)
			}
			compare(t, want, look(t, back))
		})
	}
}

func (f folder) now() int64 { return f.clock.now.Load() }
func (s stream) now() int64 { return s.clock.now.Load() }

// works uses what was carried, as a relay does.
func works(t *testing.T, p place, c *clock) {
	t.Helper()
	j := p.open(t)
	defer closed(t, j)
	// A twin inside the window is a duplicate, also by a key learned.
	for _, k := range []event.Key{event.NewKey("second", "c5"), event.NewKey("learned\r\n", "c1")} {
		r := must(j.Append(t.Context(), journaltest.Event("twin", k)))(t)[0]
		if !r.Duplicate || r.Seq == 0 {
			t.Errorf("a twin with the key %q: %+v", k, r)
		}
	}
	var dead []journal.Dead
	for d, err := range j.DeadLetters(t.Context(), journal.DeliveryID{}) {
		dead = append(dead, must(d, err)(t))
	}
	if len(dead) != 2 || dead[0].Event.CloudEvent.ID() != "a3" || dead[1].Event.CloudEvent.ID() != "c2" {
		t.Fatalf("dead letters: %v", dead)
	}
	var b4 journal.Seq
	for _, r := range must(j.Read(t.Context(), 0, 20))(t) {
		switch {
		case r.Event.CloudEvent.ID() == "b4":
			b4 = r.Seq
		case r.TargetSink != "" && r.Event.CloudEvent.ID() == "b3":
			u := must(j.Disposition(t.Context(), journal.DeliveryID{Sink: "fast", Seq: r.OriginSeq}))(t)
			if u.RedeliveredAs != r.Seq || u.Reason != journal.Redelivered {
				t.Errorf("the retried event: %+v, want it as %d", u, r.Seq)
			}
		}
	}
	if u := must(j.Disposition(t.Context(), journal.DeliveryID{Sink: "fast", Seq: b4}))(t); u.Reason != journal.DiscardedAfter {
		t.Errorf("the event given up: %+v", u)
	}
	must(j.Redeliver(t.Context(), dead[0].ID()))(t)
	c.Advance(time.Second)
	must(j.Append(t.Context(), journaltest.Event("new")))(t)
	for name, want := range map[string]string{
		"fast":     "c5 c6 b3 a2 a3 new",
		"slow/er":  "b3 b4 c1 c2 c3 c4 c5 c6 b3 a2 a3 new",
		"newest":   "a3 new",
		"replay/x": "b2 b3 b4 c1 c2 c3 c4 c5 c6 b3 a2 a3 new",
	} {
		cursor := must(j.Reader(t.Context(), name, journal.Latest))(t)
		records := read(t, cursor, len(strings.Fields(want)))
		var got, done []string
		for _, r := range records {
			got = append(got, r.Event.CloudEvent.ID())
			if cursor.Done(r.Seq) {
				done = append(done, r.Event.CloudEvent.ID())
			}
		}
		if want := map[string]string{"slow/er": "c1 c3 c4"}[name]; want != strings.Join(done, " ") {
			t.Errorf("of %s %v are done, want %s", name, done, want)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("what %s is given (-want +got):\n%s", name, diff)
		}
		commit(t, cursor, records[len(records)/2].Seq, journal.Undelivered{})
		closed(t, cursor)
	}
	for q, err := range j.Quarantined(t.Context(), "") {
		must(j.Release(t.Context(), must(q, err)(t).ID, journaltest.Event("released "+q.ID)))(t)
	}
}

// Whatever breaks off, and wherever: it is run again, and ends the same.
func TestItBreaksOffAnywhere(t *testing.T) {
	for _, d := range directions(t) {
		t.Run(d.name, func(t *testing.T) {
			c := newClock()
			from := d.from(t, c, 0)
			fill(t, from, c, 10)
			want := look(t, from)
			for n, done := 1, false; !done; n++ {
				for _, after := range []bool{false, true} {
					to := d.to(t, c, n)
					_, err := carry(t, from, to, func(dst transfer.Target) transfer.Target { return &faulty{dst, n, after} })
					if err == nil {
						done = true
					} else if !errors.Is(err, errFault) {
						t.Fatal(err)
					} else {
						refusesToOpen(t, to, n, after)
						// A second time, at the first thing that is left to do.
						if _, err := carry(t, from, to, func(dst transfer.Target) transfer.Target { return &faulty{dst, 1, true} }); err != nil && !errors.Is(err, errFault) {
							t.Fatal(err)
						}
						if _, err := carry(t, from, to, nil); err != nil {
							t.Fatalf("run again after call %d (after: %v): %v", n, after, err)
						}
					}
					compare(t, want, look(t, to))
				}
				if n > 100 {
					t.Fatal("it never ends")
				}
				if done {
					t.Logf("%d calls", n-1)
				}
			}
		})
	}
}

// refusesToOpen makes sure that no relay works on half of a journal.
func refusesToOpen(t *testing.T, p place, n int, after bool) {
	t.Helper()
	if n == 1 && !after {
		return // nothing is there
	}
	var j journal.Journal
	var err error
	switch p := p.(type) {
	case folder:
		j, err = local.Open(p.options())
	case stream:
		j, err = jetstream.Open(t.Context(), p.options())
	}
	if err == nil {
		closed(t, j)
		src := must(p.source(t))(t)
		defer closed(t, src)
		_, _, events := src.Range()
		if events == 12 {
			return // the very last act was done
		}
		t.Fatalf("half of a journal was opened after call %d", n)
	}
	if !strings.Contains(err.Error(), "postwire journal migrate") {
		t.Fatal(err)
	}
}

// What was carried is of one journal, as it was then.
func TestAnotherSourceIsRefused(t *testing.T) {
	for _, d := range directions(t) {
		t.Run(d.name, func(t *testing.T) {
			c := newClock()
			from, other, to := d.from(t, c, 0), d.from(t, c, 1), d.to(t, c, 2)
			fill(t, from, c, 10)
			c.Advance(time.Minute)
			fill(t, other, c, 10)
			broken := func(dst transfer.Target) transfer.Target { return &faulty{dst, 4, false} }
			if _, err := carry(t, from, to, broken); !errors.Is(err, errFault) {
				t.Fatal(err)
			}
			if _, err := carry(t, other, to, nil); err == nil || !strings.Contains(err.Error(), "events of another journal") {
				t.Errorf("another source: %v", err)
			}
			// A relay that ran in between has stored more, and is the newer truth.
			j := from.open(t)
			must(j.Append(t.Context(), journaltest.Event("between")))(t)
			var dead []journal.DeliveryID
			for d, err := range j.DeadLetters(t.Context(), journal.DeliveryID{}) {
				dead = append(dead, must(d, err)(t).ID())
			}
			must(j.Redeliver(t.Context(), dead[0]))(t)
			closed(t, j)
			if _, err := carry(t, from, to, nil); err != nil {
				t.Fatal(err)
			}
			compare(t, look(t, from), look(t, to))

			j = from.open(t)
			must(j.Append(t.Context(), journaltest.Event("later")))(t)
			closed(t, j)
			if _, err := carry(t, from, to, nil); err == nil || !strings.Contains(err.Error(), "source was written after it") {
				t.Errorf("a source that has changed since: %v", err)
			}
		})
	}
}

func TestAnEmptyJournalIsCarried(t *testing.T) {
	for _, d := range directions(t) {
		t.Run(d.name, func(t *testing.T) {
			c := newClock()
			from, to := d.from(t, c, 0), d.to(t, c, 1)
			j := from.open(t)
			must(j.Reader(t.Context(), "sink", journal.Latest))(t)
			closed(t, j)
			report, err := carry(t, from, to, nil)
			if err != nil || report.Events != 0 || len(report.Cursors) != 1 {
				t.Fatalf("%+v, %v", report, err)
			}
			j = to.open(t)
			defer closed(t, j)
			cursor := must(j.Reader(t.Context(), "sink", journal.Latest))(t)
			must(j.Append(t.Context(), journaltest.Event("first")))(t)
			if got := read(t, cursor, 1); got[0].Event.CloudEvent.ID() != "first" {
				t.Errorf("it is given %v", got)
			}
		})
	}
}

// A transfer that is interrupted ends at once, and goes on.
func TestItIsInterrupted(t *testing.T) {
	for _, d := range directions(t) {
		t.Run(d.name, func(t *testing.T) {
			c := newClock()
			from, to := d.from(t, c, 0), d.to(t, c, 1)
			fill(t, from, c, 10)
			src, dst := must(from.source(t))(t), must(to.target(t))(t)
			ctx, cancel := context.WithCancel(t.Context())
			_, err := transfer.Run(ctx, src, dst, transfer.Options{MoveEntry: moveNote, Page: 2, Progress: func(_ string, done, _ uint64) {
				if done >= 4 {
					cancel()
				}
			}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v", err)
			}
			closed(t, dst)
			closed(t, src)
			if _, err := carry(t, from, to, nil); err != nil {
				t.Fatal(err)
			}
			compare(t, look(t, from), look(t, to))
		})
	}
}
