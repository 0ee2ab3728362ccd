package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// noisy is an event whose data does not compress.
func noisy(t testing.TB, number, size int) event.Event {
	t.Helper()
	e := journaltest.Event(fmt.Sprint(number))
	if err := e.CloudEvent.SetData("application/octet-stream", noise(number, size)); err != nil {
		t.Fatal(err)
	}
	return e
}

func appendNoise(t testing.TB, j *Journal, from, to, size int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if _, err := j.Append(t.Context(), noisy(t, n, size)); err != nil {
			t.Fatal(err)
		}
	}
}

func segmentFiles(t testing.TB, fs vfs.FS) (names []string) {
	t.Helper()
	all, err := fs.List("data/" + logDir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// readAll reads the stored events in order.
func readAll(t testing.TB, j *Journal) (seqs []journal.Seq) {
	t.Helper()
	for next := j.Oldest(); next <= j.Last(); {
		records, err := j.Read(t.Context(), next, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) == 0 {
			return seqs
		}
		for _, r := range records {
			if r.Event.CloudEvent.ID() != fmt.Sprint(r.Seq) {
				t.Fatalf("event %d is %s", r.Seq, r.Event.CloudEvent.ID())
			}
			seqs = append(seqs, r.Seq)
		}
		next = seqs[len(seqs)-1] + 1
	}
	return seqs
}

// TestSegmentsAreRemoved: expiry removes the files of segments that every sink has passed,
// keeps one for the next segment, and a crash at any moment leaves a journal that opens.
func TestSegmentsAreRemoved(t *testing.T) {
	mem := vfs.NewCrashableMem()
	c := newClock()
	o := options(t, mem, "data", c)
	o.segment = 64 << 10
	j := mustOpen(t, o)
	sink, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	appendNoise(t, j, 1, 100, 4<<10)
	before := segmentFiles(t, mem)
	if len(before) < 6 {
		t.Fatalf("the segments are %v", before)
	}
	c.Advance(3 * time.Hour)
	if err := j.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := segmentFiles(t, mem); !slices.Equal(after, before) || j.Oldest() != 1 {
		t.Errorf("the sink has had nothing, the oldest event is %d, and of %v are left %v", j.Oldest(), before, after)
	}
	if err := sink.Commit(t.Context(), journal.UpTo(50)); err != nil {
		t.Fatal(err)
	}
	if err := j.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := segmentFiles(t, mem)
	if len(after) >= len(before)-1 || !slices.Contains(after, spareName) || j.Oldest() != 51 {
		t.Errorf("the oldest event is %d, and of %v are left %v", j.Oldest(), before, after)
	}
	if got := readAll(t, j); len(got) != 50 || got[0] != 51 {
		t.Errorf("there are %v", got)
	}
	// The file of a removed segment holds old frames, which no one may read.
	appendNoise(t, j, 101, 116, 4<<10)
	for percent := 0; percent <= 100; percent += 50 {
		again := o
		again.FS = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, uint64(percent)))})
		crashed := mustOpen(t, again)
		if got := readAll(t, crashed); len(got) != 66 {
			t.Errorf("after a crash there are %d: %v", len(got), got)
		}
		if r, err := crashed.Append(t.Context(), journaltest.Event("117")); err != nil || r[0].Seq != 117 {
			t.Errorf("after a crash: %+v, %v", r, err)
		}
	}
	if err := sink.Commit(t.Context(), journal.UpTo(116)); err != nil {
		t.Fatal(err)
	}
	c.Advance(3 * time.Hour)
	for range 2 { // the first ends the written segment
		if err := j.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := segmentFiles(t, mem); len(after) != 2 {
		t.Errorf("without events there are %v", after)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	if r, err := j.Append(t.Context(), journaltest.Event("117")); err != nil || r[0].Seq != 117 {
		t.Errorf("after all events expired: %+v, %v", r, err)
	}
}

// TestCleanEndIsKnown: after a clean end everything was stored, so that any cut is damage.
func TestCleanEndIsKnown(t *testing.T) {
	mem := vfs.NewMem()
	o := options(t, mem, "data", newClock())
	j := mustOpen(t, o)
	appendNoise(t, j, 1, 5, 100)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	name := files(t, mem, logDir, segmentSuffix)[0]
	whole := contents(t, mem, name)
	last := len(whole) - headerBytes - 1 // the closedFrame
	for _, tt := range []struct {
		size    int
		damaged bool
	}{{len(whole), false}, {last + 3, false}, {last, false}} {
		rewrite(t, mem, name, func([]byte) []byte { return whole[:tt.size] })
		found, err := Inspect(t.Context(), o)
		if err != nil || found.Sound() == tt.damaged || found.Events != 5 {
			t.Errorf("cut at %d of %d: %+v, %v", tt.size, len(whole), found, err)
		}
	}
	rewrite(t, mem, name, func([]byte) []byte {
		b := slices.Clone(whole)
		b[last-10] ^= 1
		return b
	})
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), name+" is damaged") {
		t.Errorf("the last event is damaged: %v", err)
	}
}

// contents returns what a file holds.
func contents(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open("data/" + name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTornWrite cuts the last frame at every byte: everything before it is there, and what
// comes later is not confused by the rest of it.
func TestTornWrite(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := options(t, mem, "data", newClock())
	o.Log = nil
	j := mustOpen(t, o)
	appendNoise(t, j, 1, 3, 100)
	name := files(t, mem, logDir, segmentSuffix)[0]
	before := len(contents(t, mem, name))
	appendNoise(t, j, 4, 4, 100)
	whole := contents(t, mem, name)
	for cut := before; cut <= len(whole); cut++ {
		again := o
		again.FS = mem.CrashClone(vfs.CrashCloneCfg{})
		rewrite(t, again.FS, name, func([]byte) []byte {
			b := slices.Clone(whole)
			for i := cut; i < len(b); i++ {
				b[i] ^= 0xff // as the older bytes of a recycled file
			}
			return b
		})
		torn, err := Open(again)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		want := 3
		if cut == len(whole) {
			want = 4
		}
		if got := readAll(t, torn); len(got) != want {
			t.Fatalf("cut at %d: there are %v", cut, got)
		}
		appendNoise(t, torn, want+1, 6, 10)
		if err := torn.Close(); err != nil {
			t.Fatal(err)
		}
		torn, err = Open(again)
		if err != nil {
			t.Fatalf("cut at %d, and opened again: %v", cut, err)
		}
		if got := readAll(t, torn); len(got) != 6 {
			t.Fatalf("cut at %d, and opened again: there are %v", cut, got)
		}
		if err := torn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForgedFrame: a body that has the bytes of a frame is not read as one, where damage
// makes the engine look for the next frame.
func TestForgedFrame(t *testing.T) {
	forged := entry{seq: 1000, changes: appendChange(nil, changeSet, cursorKey("sink"), encodeCursor(1000, 0))}
	frame := appendEntries(make([]byte, headerBytes), forged.appendTo(nil))
	// write makes a journal with the frame in its events.
	write := func(seed int) (o Options, mem *vfs.MemFS, name string) {
		mem = vfs.NewMem()
		o = options(t, mem, "data", newClock())
		j := mustOpen(t, o)
		for _, salt := range []uint32{0, 1, 0xffffffff} {
			seal(frame, salt, 1, 0)
			e := journaltest.Event(fmt.Sprint(salt))
			if err := e.CloudEvent.SetData("application/octet-stream", slices.Concat(noise(seed, 100), frame, noise(seed+1, 100))); err != nil {
				t.Fatal(err)
			}
			if _, err := j.Append(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		appendNoise(t, j, 7, 7, 100)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		return o, mem, files(t, mem, logDir, segmentSuffix)[0]
	}
	o, mem, name := write(0)
	for seed := 1; !bytes.Contains(contents(t, mem, name), frame[headerBytes:]); seed++ { // compression has found something in it
		if seed == 20 {
			t.Fatal("the frame is in no log as it is")
		}
		o, mem, name = write(seed)
	}
	rewrite(t, mem, name, func(b []byte) []byte { b[headerBytes+3] ^= 1; return b })
	done, err := Repair(t.Context(), o)
	if err != nil || done.Events != 3 || len(done.Lost) != 1 || len(done.Positions) != 0 {
		t.Errorf("%+v, %v", done, err)
	}
}

// stalled is a disk whose syncs wait.
type stalled struct {
	vfs.FS
	mu   sync.Mutex
	wait chan struct{} // nil does not wait
}

type stalledFile struct {
	vfs.File
	disk *stalled
}

func (d *stalled) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &stalledFile{f, d}, nil
}

func (d *stalled) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.Create(name, c))
}

func (d *stalled) set(wait chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wait = wait
}

func (f *stalledFile) SyncData() error {
	f.disk.mu.Lock()
	wait := f.disk.wait
	f.disk.mu.Unlock()
	if wait != nil {
		<-wait
	}
	return f.File.SyncData()
}

// TestDiskStalls: while a sync hangs nothing is acknowledged, sinks read what is stored, and
// afterwards everything goes on.
func TestDiskStalls(t *testing.T) {
	disk := &stalled{FS: vfs.NewMem()}
	j := mustOpen(t, options(t, disk, "data", newClock()))
	appendNoise(t, j, 1, 3, 100)
	release := make(chan struct{})
	disk.set(release)
	results := make(chan error, 100)
	for n := range cap(results) {
		go func() {
			_, err := j.Append(t.Context(), noisy(t, 4+n, 100))
			results <- err
		}()
	}
	eventually(t, "appends wait", func() bool { return j.store.staged.Load() > 0 })
	if got := readAll(t, j); len(got) != 3 || len(results) != 0 || j.Check() != nil {
		t.Errorf("while the disk stalls %d events can be read, %d appends are answered, the check says %v", len(got), len(results), j.Check())
	}
	disk.set(nil)
	close(release)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if last := j.Last(); last != 103 {
		t.Errorf("the newest event is %d", last)
	}
}

// TestLittleSpaceTrimsHistory: delivered events make room on a disk that fills up, before any
// event is refused.
func TestLittleSpaceTrimsHistory(t *testing.T) {
	disk := &nearlyFull{FS: vfs.NewMem()}
	disk.free.Store(1 << 30)
	o := options(t, disk, "data", newClock())
	o.MinFree, o.segment = 1<<20, 64<<10
	j := mustOpen(t, o)
	c, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	appendNoise(t, j, 1, 100, 4<<10)
	if err := c.Commit(t.Context(), journal.UpTo(100)); err != nil {
		t.Fatal(err)
	}
	disk.free.Store(5 << 18) // of which a quarter is above the limit
	eventually(t, "delivered events make room", func() bool { return j.Oldest() > 50 })
	if err := j.Check(); err != nil {
		t.Errorf("while there was something to remove: %v", err)
	}
}

// FuzzFrames reads any bytes as a segment: it ends, and never reads a frame that is not whole.
func FuzzFrames(f *testing.F) {
	frame := appendEntries(make([]byte, headerBytes), (&entry{seq: 1}).appendTo(nil))
	seal(frame, 7, 3, 0)
	f.Add(slices.Concat(frame, frame))
	f.Add(slices.Concat(frame[:10], frame))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &frameReader{file: bytes.NewReader(b), salt: 7, limit: int64(len(b)), generation: 3}
		at := int64(-1)
		for {
			f, err := r.next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				if _, err := r.promised(100); err != nil {
					t.Fatal(err)
				}
				if more, err := r.resume(100); err != nil || !more {
					return
				}
				continue
			}
			if f.at <= at || f.end() > int64(len(b)) || !bytes.Equal(f.payload, b[f.at+headerBytes:f.end()]) {
				t.Fatalf("frame %+v after %d", f, at)
			}
			if binary.LittleEndian.Uint32(b[f.at+8:]) < 3 {
				t.Fatalf("frame %+v of an older generation", f)
			}
			at = f.at
		}
	})
}

// FuzzEntries applies any bytes as the payload of a frame: it fails or does not.
func FuzzEntries(f *testing.F) {
	e := entry{seq: 5, records: [][]byte{{1, 2}}, changes: appendChange(appendChange(nil, changeSet, []byte("c"), []byte("v")), changeDelete, []byte("k"))}
	f.Add(appendEntries(nil, e.appendTo(nil)))
	f.Add(appendEntries(nil, bytes.Repeat(e.appendTo(nil), 20)))
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), Logger: pebbleLog{zap.NewNop()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = db.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		w, err := openWindow(db, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		r := &replayer{db: db, window: w, batch: db.NewBatch()}
		_ = r.apply(&segment{}, frame{payload: b})
		if err := r.batch.Close(); err != nil {
			t.Fatal(err)
		}
		_ = (&survey{}).readEntries(b)
	})
}

// TestEntry encodes and decodes entries of every size.
func TestEntry(t *testing.T) {
	for _, size := range []int{0, 1, 100, 127, 128, 16300, 16384, 1 << 20} {
		want := entry{seq: 9, records: [][]byte{noise(1, size), {}, noise(2, 3)}, changes: noise(3, size/2)}
		var got []entry
		payload := appendEntries(nil, want.appendTo(want.appendTo(nil)))
		entries, err := entriesOf(payload, nil)
		if err == nil {
			err = eachEntryOf(entries, func(e entry) error { got = append(got, e); return nil })
		}
		if err != nil || len(got) != 2 {
			t.Fatalf("%d bytes: %d entries, %v", size, len(got), err)
		}
		for _, e := range got {
			if e.seq != want.seq || !slices.EqualFunc(e.records, want.records, bytes.Equal) || !bytes.Equal(e.changes, want.changes) {
				t.Errorf("%d bytes: an entry differs", size)
			}
		}
	}
}
