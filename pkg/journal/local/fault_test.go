package local

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// TestPowerLoss cuts the power at random moments under concurrent appends, and
// holds what the disk then has against what was acknowledged.
func TestPowerLoss(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { powerLoss(t, seed) })
	}
}

func powerLoss(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := vfs.NewCrashableMem()
	c := newClock()
	o := options(t, fs, "data/journal", c)
	j := mustOpen(t, o)
	cursor, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var acked sync.Map // id → seq, as soon as Append returned
	var acks atomic.Int64
	var committed atomic.Uint64
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// Two keys an event, and every fourth append is a repeat
				// known by its second key alone.
				id := fmt.Sprintf("%d-%d", w, i)
				e := journaltest.Event(id, event.Key("a"+id), event.Key("b"+id))
				if i%4 == 3 {
					id = fmt.Sprintf("%d-%d", w, i-1)
					e = journaltest.Event("repeat", event.Key("b"+id))
				}
				r, err := j.Append(ctx, e)
				if err != nil {
					return
				}
				if r[0].ID != id {
					t.Errorf("receipt for %s is of %s", id, r[0].ID)
				}
				acked.Store(id, r[0].Seq)
				acks.Add(1)
			}
		})
	}
	writers.Go(func() {
		for {
			records, err := cursor.Next(ctx, 16)
			if err != nil {
				return
			}
			last := records[len(records)-1].Seq
			if err := cursor.Commit(ctx, journal.Progress{Done: journal.UpTo(last).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: records[0].Seq, Reason: "x"}}}}); err != nil {
				return
			}
			committed.Store(uint64(last))
		}
	})

	// The moment is random in the work done, not in time.
	for moment := int64(rng.IntN(400) + 20); acks.Load() < moment; {
		time.Sleep(50 * time.Microsecond)
	}
	// What is acknowledged now must be on the disk that crashes after now.
	want := map[string]journal.Seq{}
	acked.Range(func(id, seq any) bool { want[id.(string)] = seq.(journal.Seq); return true })
	wantCommitted := committed.Load()
	crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed % 3 * 50), RNG: rng})
	stop()
	writers.Wait()

	o.FS = crashed
	after := mustOpen(t, o)
	reader, err := after.Reader(t.Context(), "check", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]journal.Seq{}
	for after.Last() > journal.Seq(len(stored)) {
		records, err := reader.Next(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			id := r.Event.CloudEvent.ID()
			if _, ok := stored[id]; ok {
				t.Errorf("%s is stored twice", id)
			}
			stored[id] = r.Seq
		}
	}
	for id, seq := range want {
		if stored[id] != seq {
			t.Errorf("%s was acknowledged at %d and is stored at %d", id, seq, stored[id])
		}
	}
	// No event without its keys: each is known by either of them.
	for id, seq := range stored {
		for _, key := range []event.Key{event.Key("a" + id), event.Key("b" + id)} {
			r, err := after.Append(t.Context(), journaltest.Event("probe", key))
			if err != nil {
				t.Fatal(err)
			}
			if !r[0].Duplicate || r[0].Seq != seq || r[0].ID != id {
				t.Errorf("event %s at %d is not known by key %s: %+v", id, seq, key, r[0])
			}
		}
	}
	// No keys without their event: an event that is not stored is taken.
	for w := range 8 {
		for i := range 400 {
			id := fmt.Sprintf("%d-%d", w, i)
			if _, ok := stored[id]; ok || i%4 == 3 {
				continue
			}
			r, err := after.Append(t.Context(), journaltest.Event(id, event.Key("a"+id), event.Key("b"+id)))
			if err != nil {
				t.Fatal(err)
			}
			if r[0].Duplicate {
				t.Errorf("%s is not stored, but its key is known: %+v", id, r[0])
			}
			break
		}
	}
	again, err := after.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	if uint64(again.Committed()) < wantCommitted {
		t.Errorf("the cursor stands at %d, it was committed at %d", again.Committed(), wantCommitted)
	}
}

// faulty makes operations fail while it is armed.
type faulty struct {
	armed atomic.Bool
	hits  atomic.Int64
	match func(op errorfs.Op) bool
	err   error
}

func (f *faulty) String() string { return "faulty" }

func (f *faulty) MaybeError(op errorfs.Op) error {
	if f.armed.Load() && f.match(op) {
		f.hits.Add(1)
		return f.err
	}
	return nil
}

// TestDiskFails makes kinds of file operations fail under appends, each in
// turn: appends are refused while it lasts, nothing acknowledged is missing
// afterwards, and everything works again without a restart.
func TestDiskFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		match func(errorfs.Op) bool
		err   error
	}{
		{"a log's sync", func(op errorfs.Op) bool {
			return strings.HasSuffix(op.Path, segmentSuffix) && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo)
		}, syscall.EIO},
		{"a log's write", func(op errorfs.Op) bool {
			return strings.HasSuffix(op.Path, segmentSuffix) && op.Kind == errorfs.OpFileWriteAt
		}, syscall.EIO},
		{"every write with the disk full", func(op errorfs.Op) bool {
			return op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpCreate
		}, syscall.ENOSPC},
		{"everything that changes the disk", func(op errorfs.Op) bool { return op.Kind.ReadOrWrite() == errorfs.OpIsWrite }, syscall.EIO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			f := &faulty{match: tt.match, err: &os.PathError{Op: "op", Path: "p", Err: tt.err}}
			o := options(t, errorfs.Wrap(mem, f), "data", newClock())
			j := mustOpen(t, o)
			reader, err := j.Reader(t.Context(), "sink", journal.Earliest)
			if err != nil {
				t.Fatal(err)
			}
			var acked []string
			put := func(id string) error {
				_, err := j.Append(t.Context(), journaltest.Event(id))
				if err == nil {
					acked = append(acked, id)
				}
				return err
			}
			for i := range 10 {
				if err := put(fmt.Sprint("before", i)); err != nil {
					t.Fatal(err)
				}
			}
			f.armed.Store(true)
			for i := range 20 {
				if err := put(fmt.Sprint("while", i)); err == nil {
					t.Errorf("append %d was acknowledged while the disk failed", i)
				} else if !errors.Is(err, journal.ErrUnavailable) {
					t.Errorf("append %d: %v, want ErrUnavailable", i, err)
				}
			}
			if f.hits.Load() == 0 {
				t.Fatal("no operation was made to fail")
			}
			// A crash now: what was acknowledged is on the disk.
			crashed := mem.CrashClone(vfs.CrashCloneCfg{})
			f.armed.Store(false)
			eventually(t, "appends are taken again", func() bool { return put("after") == nil })
			for i := range 10 {
				if err := put(fmt.Sprint("later", i)); err != nil {
					t.Fatal(err)
				}
			}
			seen := map[string]bool{}
			for !seen["later9"] {
				records, err := reader.Next(t.Context(), 100)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range records {
					if id := r.Event.CloudEvent.ID(); seen[id] {
						t.Errorf("%s is stored twice", id)
					} else {
						seen[id] = true
					}
				}
				if err := reader.Commit(t.Context(), journal.UpTo(records[len(records)-1].Seq)); err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range acked {
				if !seen[id] {
					t.Errorf("%s was acknowledged and is gone", id)
				}
			}
			o.FS = crashed
			after := mustOpen(t, o)
			for i := range 10 {
				r, err := after.Append(t.Context(), journaltest.Event(fmt.Sprint("before", i)))
				if err != nil || !r[0].Duplicate {
					t.Errorf("before%d was acknowledged, and is gone after a crash: %+v, %v", i, r, err)
				}
			}
		})
	}
}

// TestEveryOperationFailsInTurn lets the nth change of the disk fail, once,
// for every n of a short life, rotation of logs and manifests included.
func TestEveryOperationFailsInTurn(t *testing.T) {
	step := int64(1)
	if testing.Short() {
		step = 7
	}
	for n := int64(0); ; n += step {
		mem := vfs.NewCrashableMem()
		var count atomic.Int64
		f := &faulty{err: syscall.EIO}
		f.match = func(op errorfs.Op) bool {
			return op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && count.Add(1) == n+1
		}
		o := options(t, errorfs.Wrap(mem, f), "data", newClock())
		o.Log = nil // each failure is logged, as it should
		o.segment = 64 << 10
		j := mustOpen(t, o)
		f.armed.Store(true)
		var acked []string
		for i := range 12 {
			id := fmt.Sprint(i)
			e := journaltest.Event(id)
			if err := e.CloudEvent.SetData("application/octet-stream", make([]byte, 20<<10)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "append "+id, func() bool {
				_, err := j.Append(t.Context(), e)
				if err != nil && !errors.Is(err, journal.ErrUnavailable) {
					t.Fatalf("operation %d: %v", n, err)
				}
				return err == nil
			})
			acked = append(acked, id)
		}
		if err := j.Close(); err != nil {
			t.Fatalf("operation %d: Close: %v", n, err)
		}
		o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
		after := mustOpen(t, o)
		for _, id := range acked {
			r, err := after.Append(t.Context(), journaltest.Event(id))
			if err != nil || !r[0].Duplicate {
				t.Errorf("operation %d failed: %s was acknowledged and is gone: %+v, %v", n, id, r, err)
			}
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
		if f.hits.Load() == 0 {
			t.Logf("%d operations failed in turn", n)
			return
		}
	}
}

// TestEveryOperationOfAStartFails lets the nth change of the disk fail, once, from the first
// start on: the next attempt opens the journal, and a crash after that loses nothing.
func TestEveryOperationOfAStartFails(t *testing.T) {
	for n := int64(1); ; n++ {
		mem := vfs.NewCrashableMem()
		var count atomic.Int64
		f := &faulty{err: &os.PathError{Op: "op", Path: "p", Err: syscall.EIO}}
		f.match = func(op errorfs.Op) bool {
			return op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && count.Add(1) == n
		}
		f.armed.Store(true)
		o := options(t, errorfs.Wrap(mem, f), "data", newClock())
		o.Log = nil
		j, err := Open(o)
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("operation %d: %v", n, err)
			}
			if j, err = Open(o); err != nil {
				t.Fatalf("operation %d, and once more: %v", n, err)
			}
		}
		eventually(t, "append", func() bool {
			_, err := j.Append(t.Context(), journaltest.Event("1"))
			return err == nil
		})
		crashed := mem.CrashClone(vfs.CrashCloneCfg{})
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		o.FS = crashed
		after, err := Open(o)
		if err != nil {
			t.Fatalf("operation %d failed, and the journal does not open after a crash: %v", n, err)
		}
		if r, err := after.Append(t.Context(), journaltest.Event("1")); err != nil || !r[0].Duplicate {
			t.Errorf("operation %d failed, and an acknowledged event is gone: %+v, %v", n, r, err)
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
		if f.hits.Load() == 0 {
			t.Logf("%d operations failed in turn", n-1)
			return
		}
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// nearlyFull is a disk whose free space is told, not measured.
type nearlyFull struct {
	vfs.FS
	free atomic.Uint64
}

func (d *nearlyFull) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free.Load()}, nil
}

func TestTooLittleSpaceRefusesEventsAndLetsCursorsMove(t *testing.T) {
	disk := &nearlyFull{FS: vfs.NewMem()}
	disk.free.Store(1 << 30)
	o := options(t, disk, "data", newClock())
	o.MinFree = 1 << 20
	j := mustOpen(t, o)
	c, err := j.Reader(t.Context(), "sink", journal.Latest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("a")); err != nil {
		t.Fatal(err)
	}
	disk.free.Store(1000)
	eventually(t, "the journal is full", func() bool { return errors.Is(j.Check(), journal.ErrFull) })
	if _, err := j.Append(t.Context(), journaltest.Event("b")); !errors.Is(err, journal.ErrFull) {
		t.Errorf("Append = %v, want ErrFull", err)
	}
	if _, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{}); !errors.Is(err, journal.ErrFull) {
		t.Errorf("Quarantine = %v, want ErrFull", err)
	}
	if err := c.Commit(t.Context(), journal.UpTo(1)); err != nil {
		t.Errorf("Commit = %v", err)
	}
	disk.free.Store(1 << 30)
	eventually(t, "there is room", func() bool { return j.Check() == nil })
	if _, err := j.Append(t.Context(), journaltest.Event("b")); err != nil {
		t.Errorf("Append = %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		prepare    func(t *testing.T, fs vfs.FS)
	}{
		{"an older format", "format 1 by another version of postwire, this version reads format 4", func(t *testing.T, fs vfs.FS) {
			if err := writeFile(fs, "data", formatFile, "postwire-journal 1\n"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a newer format", "format 5 by another version of postwire, this version reads format 4", func(t *testing.T, fs vfs.FS) {
			if err := writeFile(fs, "data", formatFile, "postwire-journal 5\n"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a marker that is none", "no marker of a journal", func(t *testing.T, fs vfs.FS) {
			if err := writeFile(fs, "data", formatFile, "hello\n"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a folder of something else", "is not empty (it holds letters.txt)", func(t *testing.T, fs vfs.FS) {
			if err := writeFile(fs, "data", "letters.txt", "dear\n"); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if err := fs.MkdirAll("data", 0o755); err != nil {
				t.Fatal(err)
			}
			tt.prepare(t, fs)
			_, err := Open(options(t, fs, "data", newClock()))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q in it", err, tt.want)
			}
		})
	}
	t.Run("a folder in use", func(t *testing.T) {
		o := options(t, vfs.Default, t.TempDir(), newClock())
		mustOpen(t, o)
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "another process uses this folder") {
			t.Errorf("Open = %v", err)
		}
	})
}

// TestLimitTrimsHistoryBeforeItRefuses: what every sink has passed makes room
// for what comes in; what one still waits for does not, and then new events
// are refused.
func TestLimitTrimsHistoryBeforeItRefuses(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	o.segment = 256 << 10
	o.MaxBytes = 8 << 20
	j := mustOpen(t, o)
	c, err := j.Reader(t.Context(), "sink", journal.Latest)
	if err != nil {
		t.Fatal(err)
	}
	number := 0
	put := func() error {
		number++
		e := journaltest.Event(fmt.Sprint(number))
		noise := make([]byte, 64<<10)
		rng := rand.New(rand.NewPCG(1, uint64(number)))
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		if err := e.CloudEvent.SetData("application/octet-stream", noise); err != nil {
			t.Fatal(err)
		}
		_, err := j.Append(t.Context(), e)
		return err
	}
	// Delivered: more than the limit fits.
	accepted := 0
	eventually(t, "delivered events make room", func() bool {
		if put() == nil {
			accepted++
			if err := c.Commit(t.Context(), journal.UpTo(j.Last())); err != nil {
				t.Fatal(err)
			}
		}
		return accepted >= 160 && j.Usage().Trimmed > 0
	})
	if j.Oldest() == 1 {
		t.Error("events were trimmed, and the oldest is 1")
	}
	// Not delivered: it stays, and what comes in is refused.
	kept := j.Last() + 1
	eventually(t, "the journal is full", func() bool { return errors.Is(put(), journal.ErrFull) && j.Last() >= kept })
	records, err := c.Next(t.Context(), 1)
	if err != nil || records[0].Seq != kept {
		t.Errorf("Next = %v, %v; want event %d", records, err, kept)
	}
	if u := j.Usage(); u.Bytes < u.MaxBytes*3/4 {
		t.Errorf("full at %d of %d bytes", u.Bytes, u.MaxBytes)
	}
	if err := c.Commit(t.Context(), journal.UpTo(j.Last())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is room again", func() bool { return put() == nil })
}
