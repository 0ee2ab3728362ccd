package jetstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

const shortLease = 900 * time.Millisecond

// short makes leases short.
func short(o *Options) { o.lease = shortLease }

// errorsOf records the errors that a journal logs.
func errorsOf(logs **observer.ObservedLogs) func(*Options) {
	core, observed := observer.New(zap.ErrorLevel)
	*logs = observed
	return func(o *Options) { o.Log = zap.New(core) }
}

func mustCommit(t *testing.T, c journal.Cursor, p journal.Progress) {
	t.Helper()
	if err := c.Commit(t.Context(), p); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

func mustCursors(t *testing.T, j *Journal) []journal.Position {
	t.Helper()
	all, err := j.Cursors(t.Context())
	if err != nil {
		t.Fatalf("Cursors: %v", err)
	}
	return all
}

// A process that stops without closing its cursor is followed after its lease: no event is
// skipped, and the new owner knows the done ranges. The stream is on three servers, and the
// server that leads the stream stops, too.
func TestTakeover(t *testing.T) {
	nodes := natstest.StartCluster(t, nil)
	three := func(o *Options) { o.Replicas = 3 }
	a, b := process(t, natstest.URLs(nodes), "a", three, short), process(t, natstest.URLs(nodes), "b", three, short)
	ca, cb := mustReader(t, a), mustReader(t, b)
	mustAppend(t, a, numbered(0, 10)...)
	records := mustNext(t, ca, 6)
	one := journal.Range{From: records[3].Seq, To: records[3].Seq}
	mustCommit(t, ca, journal.Progress{Done: []journal.Range{{From: 1, To: records[1].Seq}, one}, Open: 3})
	within(t, "the other process knows the position", func() bool {
		return cb.Owner().Name == "a" && cb.Committed() == records[1].Seq && cb.Done(one.From) && !cb.Done(one.From-1) && cb.Lag() == 7
	})
	moved := ca.OwnershipLost()
	s, err := a.js.Stream(t.Context(), "postwire")
	if err != nil {
		t.Fatal(err)
	}
	leader := slices.IndexFunc(nodes, func(n *natstest.Node) bool { return n.Name == s.CachedInfo().Cluster.Leader })
	die(a)
	began := time.Now()
	nodes[leader].Kill(t)
	ids, last := read(t, cb, 8)
	if got := strings.Join(ids, " "); got != "2 3 4 5 6 7 8 9" {
		t.Errorf("the new owner read %s", got)
	}
	t.Logf("the takeover took %v", time.Since(began))
	if !cb.Done(one.From) || cb.Done(one.From-1) || cb.Committed() != records[1].Seq {
		t.Errorf("the new owner does not know the done ranges: committed %d", cb.Committed())
	}
	select {
	case <-moved:
	case <-time.After(10 * time.Second):
		t.Error("the ownership of the stopped process did not end")
	}
	within(t, "the lag counts open events", func() bool { return cb.Lag() == 7 })
	mustCommit(t, cb, journal.UpTo(last))
	within(t, "nothing is left", func() bool { return cb.Lag() == 0 })
}

func mustNext(t *testing.T, c journal.Cursor, n int) (records []journal.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(records) < n {
		more, err := c.Next(ctx, n-len(records))
		if err != nil {
			t.Fatalf("Next: %v", err)
		}
		records = append(records, more...)
	}
	return records
}

// An owner that was paused for longer than its lease commits nothing, whether it notices
// the pause itself or not, and its deliveries end.
func TestPausedOwner(t *testing.T) {
	t.Parallel()
	for name, unaware := range map[string]bool{"aware": false, "unaware": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := natstest.Start(t).URL()
			a, b := process(t, url, "a", short), process(t, url, "b", short)
			ca, cb := mustReader(t, a).(*cursor), mustReader(t, b).(*cursor)
			mustAppend(t, a, numbered(0, 3)...)
			records := mustNext(t, ca, 3)
			moved := ca.OwnershipLost()
			ca.mu.Lock() // nothing of the cursor goes on
			if unaware {
				ca.ownership.lease.Stop()
			}
			ids, _ := read(t, cb, 3)
			if unaware {
				ca.ownership.renewed = ca.j.opts.boot()
			}
			ca.mu.Unlock()
			if got := strings.Join(ids, " "); got != "0 1 2" {
				t.Errorf("the new owner read %s", got)
			}
			if err := ca.Commit(t.Context(), journal.UpTo(records[2].Seq)); !errors.Is(err, journal.ErrOwnershipLost) {
				t.Errorf("Commit = %v", err)
			}
			select {
			case <-moved:
			case <-time.After(5 * time.Second):
				t.Error("the ownership has not ended")
			}
			if p := mustCursors(t, b)[0]; p.Committed != 0 || p.Lag != 3 || !p.InUse {
				t.Errorf("the position is %+v", p)
			}
			if r := cb.observed; r.Epoch < 2 || r.Owner != "b" {
				t.Errorf("the record is %+v", r)
			}
		})
	}
}

// proxy passes connections on to a server.
type proxy struct {
	net.Listener
	server  string
	mute    atomic.Bool  // drop what the server answers
	dropped atomic.Int64 // dropped bytes

	mu    sync.Mutex
	conns []net.Conn
}

func startProxy(t *testing.T, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, server: server}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", p.server)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			serving.Go(func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			})
			serving.Go(func() {
				_, _ = io.Copy(writerFunc(func(b []byte) (int, error) {
					if p.mute.Load() {
						p.dropped.Add(int64(len(b)))
						return len(b), nil
					}
					return client.Write(b)
				}), server)
				_ = client.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		serving.Wait()
	})
	return p
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// A commit whose answer is lost is repeated: it is neither lost nor stored twice.
func TestCommitWithoutAnswer(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	p := startProxy(t, strings.TrimPrefix(b.URL(), "nats://"))
	j := process(t, "nats://"+p.Addr().String(), "a")
	c := mustReader(t, j)
	mustAppend(t, j, numbered(0, 20)...)
	records := mustNext(t, c, 20)
	moved := c.OwnershipLost()
	for n, r := range records[:4] {
		p.mute.Store(true)
		time.AfterFunc(100*time.Millisecond, func() {
			p.mute.Store(false)
			p.cut()
		})
		d := journal.Disposition{From: r.Seq, To: r.Seq, Reason: journal.DiscardedAfter, At: time.Unix(int64(n), 0)}
		mustCommit(t, c, journal.Progress{Done: journal.UpTo(r.Seq).Done, Undelivered: journal.Undelivered{Discarded: []journal.Disposition{d}}})
		if c.Committed() != r.Seq {
			t.Errorf("Committed = %d, want %d", c.Committed(), r.Seq)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if p.dropped.Load() == 0 {
		t.Error("no answer was lost")
	}
	select {
	case <-moved:
		t.Error("the ownership has ended")
	default:
	}
	stored := 0
	for _, m := range b.Messages(t, b.Connect(t), "postwire") {
		if m.Subject == "postwire.lost.sink" {
			stored++
		}
	}
	if stored != 4 {
		t.Errorf("%d dispositions are stored, want 4", stored)
	}
	if p := mustCursors(t, j)[0]; p.Committed != records[3].Seq {
		t.Errorf("the position is %+v", p)
	}
}

// A commit with more dead letters and pages than a batch holds is stored, and pages that
// are no longer needed are removed.
func TestLargeCommit(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	j := process(t, url, "a")
	c := mustReader(t, j)
	mustAppend(t, j, numbered(0, 1500)...)
	records := mustNext(t, c, 1500)
	var p journal.Progress
	for _, r := range records[1:] {
		p.Dead = append(p.Dead, journal.DeadLetter{Seq: r.Seq, Reason: "invalid"})
	}
	p.Done = []journal.Range{{From: records[1].Seq, To: records[1499].Seq}}
	const far, last = 1_000_000, 9_000_000 // messages without events
	for m := uint64(far); m < last; m += 5000 {
		p.Done = append(p.Done, journal.Range{From: seqOf(m), To: seqOf(m + 2000)})
	}
	p.Open = 1
	mustCommit(t, c, p)
	check := func() {
		t.Helper()
		for m := uint64(far); m < last; m += 5000 {
			if c.Done(seqOf(m-1)) || !c.Done(seqOf(m)) || !c.Done(seqOf(m+2000)) || c.Done(seqOf(m+2001)) {
				t.Fatalf("done around message %d is wrong", m)
			}
		}
		if c.Committed() != 0 || c.Done(records[0].Seq) || !c.Done(records[1].Seq) || !c.Done(records[1499].Seq) {
			t.Errorf("committed %d", c.Committed())
		}
	}
	check()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = process(t, url, "b")
	c = mustReader(t, j)
	if got := mustNext(t, c, 1)[0].Seq; got != records[0].Seq {
		t.Errorf("read %d", got)
	}
	check()
	dead := 0
	for _, err := range j.DeadLetters(t.Context(), journal.DeliveryID{}) {
		if dead++; err != nil {
			t.Fatal(err)
		}
	}
	if dead != 1499 {
		t.Errorf("%d dead letters", dead)
	}
	pages := func() (n int) {
		subjects, err := j.subjects(t.Context(), j.names.donePages("sink"))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range subjects {
			if m, err := j.leaderGet(t.Context(), getRequest{LastFor: s}); err == nil && m.header.Get(removedHeader) == "" {
				n++
			}
		}
		return n
	}
	if n := pages(); n < 900 {
		t.Errorf("%d pages are stored", n)
	}
	mustCommit(t, c, journal.UpTo(seqOf(last+5000)))
	if n := pages(); n != 0 || c.Committed() != seqOf(last+5000) {
		t.Errorf("%d pages are left, committed %d", n, c.Committed())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.DeleteCursor(t.Context(), "sink"); err != nil {
		t.Fatal(err)
	}
	c = mustReader(t, j)
	if got := mustNext(t, c, 1)[0].Seq; got != records[0].Seq || c.Done(records[1].Seq) || c.StartSeq() >= got {
		t.Errorf("a deleted cursor begins at %d", got)
	}
}

// The record of a cursor holds back removal, also without a process. A record that cannot be
// read stops removal, and a cursor that no process has opened for an hour holds back nothing.
func TestRecordsHoldBackRemoval(t *testing.T) {
	t.Parallel()
	var logs *observer.ObservedLogs
	clock := newClock()
	j := process(t, natstest.Start(t).URL(), "a", errorsOf(&logs), func(o *Options) { o.Clock, o.Retention = clock.Now, time.Minute })
	fast, slow := mustReader(t, j), func() journal.Cursor {
		c, err := j.Reader(t.Context(), "slow", journal.Earliest)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}()
	receipts := mustAppend(t, j, numbered(0, 4)...)
	_, last := read(t, fast, 4)
	mustCommit(t, fast, journal.UpTo(last))
	read(t, slow, 4)
	mustCommit(t, slow, journal.UpTo(receipts[1].Seq))
	if err := slow.Close(); err != nil {
		t.Fatal(err)
	}
	expire := func(left uint64, messages ...string) {
		t.Helper()
		err := j.Expire(t.Context())
		if (err != nil) != (left == 3) {
			t.Errorf("Expire = %v", err)
		}
		if u := j.Usage(); u.Events != left {
			t.Errorf("%d events are left, want %d", u.Events, left)
		}
		var got []string
		for _, e := range logs.TakeAll() {
			got = append(got, e.Message)
		}
		if len(got) != len(messages) || len(got) > 0 && !strings.Contains(got[0], messages[0]) {
			t.Errorf("the log says %q, want %q", got, messages)
		}
	}
	clock.Advance(30 * time.Minute)
	expire(2)
	mustAppend(t, j, numbered(4, 5)...)
	_, last = read(t, fast, 1)
	mustCommit(t, fast, journal.UpTo(last))
	broken := nats.NewMsg(j.names.cursor("broken"))
	broken.Data = []byte("{")
	if err := j.put(t.Context(), []*nats.Msg{broken}); err != nil {
		t.Fatal(err)
	}
	clock.Advance(40 * time.Minute)
	expire(3, "delivered events are not removed")
	expire(3) // said once
	if err := j.DeleteCursor(t.Context(), "broken"); err != nil {
		t.Fatal(err)
	}
	expire(0, "no relay has had the sink in its configuration for an hour")
	mustAppend(t, j, numbered(5, 6)...)
	clock.Advance(2 * time.Hour)
	expire(1) // the open cursor holds it back

	// Loss is reported where it is possible: by the cursor that held back nothing, and not by
	// the one that has passed all removed events.
	reopen := func(name string) int {
		t.Helper()
		c, err := j.Reader(t.Context(), name, journal.Earliest)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		return logs.FilterMessageSnippet("may have discarded").Len()
	}
	if err := fast.Close(); err != nil {
		t.Fatal(err)
	}
	if n := reopen("sink"); n != 0 {
		t.Errorf("the cursor that has passed all removed events reports loss: %v", logs.TakeAll())
	}
	if n := reopen("slow"); n != 1 {
		t.Errorf("the cursor that was unused for hours says %v", logs.TakeAll())
	}
}

// Processes that open a new cursor at the same moment all get the cursor: the cluster refuses
// the record of all but one before reads return that one.
func TestCursorIsCreatedByManyAtOnce(t *testing.T) {
	t.Parallel()
	urls := natstest.URLs(natstest.StartCluster(t, nil))
	const processes = 6
	var all []*Journal
	for i := range processes {
		all = append(all, process(t, urls, fmt.Sprint(i), func(o *Options) { o.Replicas = 3 }))
	}
	for n := range 30 {
		var opened sync.WaitGroup
		for _, j := range all {
			opened.Go(func() {
				c, err := j.Reader(t.Context(), fmt.Sprint("sink-", n), journal.Earliest)
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		opened.Wait()
	}
}

// A position is stored although the stream has no room left, so that delivered events can be
// removed, and the journal opens again.
func TestPositionInAFullStream(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL()
	limit := func(o *Options) { o.MaxBytes = 200_000 }
	j := process(t, url, "a", limit)
	c := mustReader(t, j)
	mustAppend(t, j, numbered(0, 10)...)
	_, last := read(t, c, 10)
	for n, size := 0, 500_000; size > 10; n++ {
		err := j.PutValue(t.Context(), fmt.Sprint(n), make([]byte, size))
		if errors.Is(err, journal.ErrFull) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	mustCommit(t, c, journal.UpTo(last))
	process(t, url, "b", limit)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if p := mustCursors(t, process(t, url, "c", limit))[0]; p.Committed != last || p.InUse {
		t.Errorf("the position is %+v", p)
	}
}

// A stream that an administrator deletes is noticed, logged and made again, and the sink goes
// on with the events of the new stream. So is a record that was deleted. The journal polls
// all the time, and the server needs time to delete the stream, because the stream has
// consumers: a stream that is created before the server has removed the files stores nothing.
func TestStreamIsDeleted(t *testing.T) {
	t.Parallel()
	var logs *observer.ObservedLogs
	b := natstest.Start(t)
	j := process(t, b.URL(), "a", short, errorsOf(&logs))
	c := mustReader(t, j)
	js := b.Connect(t)
	said := func(what string) func() bool {
		return func() bool {
			return slices.ContainsFunc(logs.All(), func(e observer.LoggedEntry) bool {
				return strings.Contains(e.Message+" "+fmt.Sprint(e.ContextMap()["error"]), what)
			})
		}
	}
	mustAppend(t, j, numbered(0, 10)...)
	_, last := read(t, c, 10)
	mustCommit(t, c, journal.UpTo(seqOf(messageOf(last)-4)))

	s, err := js.Stream(t.Context(), "postwire")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("postwire.cursor.sink")); err != nil {
		t.Fatal(err)
	}
	within(t, "the missing record is reported", said("the position of a cursor is missing"))
	ids, _ := read(t, c, 2)
	if got := strings.Join(ids, " "); got != "8 9" {
		t.Errorf("after the record was deleted: %s", got)
	}

	go func() {
		for t.Context().Err() == nil {
			select {
			case j.pollNow <- struct{}{}:
			case <-t.Context().Done():
			}
		}
	}()
	for _, again := range []bool{false, true} { // and made again before the process notices
		logs.TakeAll()
		s, err := js.Stream(t.Context(), "postwire")
		if err != nil {
			t.Fatal(err)
		}
		for n := range 40 {
			if _, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: fmt.Sprint("c", n)}); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if err := js.DeleteStream(t.Context(), "postwire"); err != nil {
			t.Fatal(err)
		}
		if again {
			config := j.config()
			config.Metadata[idKey] = "another"
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
		}
		within(t, "the loss is reported", said("the stream of the journal is lost"))
		t.Logf("noticed after %v", time.Since(began))
		within(t, "events are accepted", func() bool {
			_, err := j.Append(t.Context(), journaltest.Event(fmt.Sprint("new ", again)))
			return err == nil
		})
		if ids, _ := read(t, c, 1); ids[0] != fmt.Sprint("new ", again) {
			t.Errorf("read %v", ids)
		}
		t.Logf("read after %v", time.Since(began))
	}
}

// A migration into a stream on three servers carries the positions: nothing is delivered
// again, and nothing is skipped.
func TestMigrationKeepsPositions(t *testing.T) {
	dir := t.TempDir()
	src, err := local.Open(local.Options{Dir: dir, Window: time.Hour, KeepKeys: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := src.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Append(t.Context(), numbered(0, 50)...); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, c, journal.Progress{Done: []journal.Range{{From: 1, To: 40}, {From: 45, To: 46}}})
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	from, err := local.OpenSource(local.Options{Dir: dir, Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	o := options(t, natstest.URLs(natstest.StartCluster(t, nil)), newClock())
	o.Replicas = 3
	within(t, "the cluster is ready", func() bool {
		j, err := Open(t.Context(), func() Options { o := o; o.Stream = "other"; return o }())
		return err == nil && j.Close() == nil
	})
	to, err := OpenTarget(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := transfer.Run(t.Context(), from, to, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, o)
	if p := mustCursors(t, j); len(p) != 1 || len(p[0].Done) != 1 || p[0].StartSeq != seqOf(1) { // before the first event, which the fence precedes
		t.Fatalf("positions: %+v", p)
	}
	next := mustReader(t, j)
	var ids []string
	for _, r := range mustNext(t, next, 10) {
		if !next.Done(r.Seq) {
			ids = append(ids, r.Event.CloudEvent.ID())
		}
	}
	if got := strings.Join(ids, " "); got != "40 41 42 43 46 47 48 49" {
		t.Errorf("after the migration: %s", got)
	}
	within(t, "the lag is right", func() bool { return next.Lag() == 8 })
}
