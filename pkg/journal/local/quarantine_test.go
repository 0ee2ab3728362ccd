package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// noise is a body of a size that does not compress, another one for each number.
func noise(number, size int) []byte {
	rng := rand.New(rand.NewPCG(7, uint64(number)))
	b := make([]byte, 0, size+8)
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:size]
}

func rejected(number, size int) journal.QuarantinedRequest {
	return journal.QuarantinedRequest{Source: "s", Received: newClock().Now().Add(time.Duration(number)), Body: noise(number, size), Reason: "odd"}
}

// released removes all that is in quarantine, one by one, as an operator does.
func released(t *testing.T, j *Journal) (n int) {
	t.Helper()
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := j.Release(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// What is dropped leaves the disk at once, and a crash before that leaves nothing behind.
func TestDroppedRequestsFreeTheDisk(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := options(t, mem, "data", newClock())
	o.Quarantine = 1 << 30
	j := mustOpen(t, o)
	const many, size = 70, 1 << 20
	for n := range many {
		if _, err := j.Quarantine(t.Context(), rejected(n, size)); err != nil {
			t.Fatal(err)
		}
	}
	j.measure()
	before := j.Usage().Bytes
	if n := released(t, j); n != many {
		t.Fatalf("%d requests were released", n)
	}
	j.measure()
	if after := j.Usage().Bytes; after > before-many*size*9/10 {
		t.Errorf("%d bytes, after the drop %d", before, after)
	}
	bodies := func(fs vfs.FS) int {
		names, err := fs.List("data/" + quarantineDir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	crashed := mem.CrashClone(vfs.CrashCloneCfg{})
	eventually(t, "the files are removed", func() bool { return bodies(mem) == 0 })
	o.FS = crashed
	if mustOpen(t, o); bodies(crashed) != 0 {
		t.Errorf("after a crash %d files are left", bodies(crashed))
	}
}

// A flood of different requests stays within its source's share of the disk.
func TestFloodStaysWithinItsShare(t *testing.T) {
	const share = 8 << 20
	o := options(t, vfs.Default, t.TempDir(), newClock())
	o.Quarantine, o.segment = share, 1<<20
	seen := &journaltest.Discarded{}
	o.Discarded = seen.Add
	core, logs := observer.New(zap.WarnLevel)
	o.Log = zap.New(core)
	j := mustOpen(t, o)
	for n := range 200 {
		if _, err := j.Quarantine(t.Context(), rejected(n, 256<<10)); err != nil {
			t.Fatal(err)
		}
	}
	const fit = share / (256<<10 + 1024)
	if n := seen.Of("s", journal.QuarantineMaxBytes); n != 200-fit {
		t.Errorf("%d of 200 were discarded, %d fit", n, fit)
	}
	eventually(t, "the disk holds little more than the share", func() bool { return j.Usage().Bytes < 2*share })
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	told := uint64(0)
	for _, e := range logs.FilterMessage("the journal discards quarantined requests").All() {
		m := e.ContextMap()
		if m["source"] != "s" || m["reason"] != "max_bytes" {
			t.Errorf("logged %v", m)
		}
		told += m["requests"].(uint64)
	}
	if told != 200-fit {
		t.Errorf("the log tells of %d", told)
	}
}

// Very many requests of a few bytes take no more than the share either: what the
// index needs of each is counted.
func TestTinyRequestsAreBounded(t *testing.T) {
	const share = 1 << 20
	o := options(t, vfs.Default, t.TempDir(), newClock())
	o.Quarantine, o.segment = share, 1<<20
	j := mustOpen(t, o)
	const many = 4000
	var all sync.WaitGroup
	for w := range 50 {
		all.Go(func() {
			for n := range many / 50 {
				if _, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Received: time.Unix(1, 0), Body: fmt.Append(nil, w, ".", n)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	n := 0
	for _, err := range j.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n == 0 || n > share/(entryBytes+blockBytes) {
		t.Errorf("%d requests are kept", n)
	}
	h := j.store.quotas["s"]
	if h.bytes > share || h.requests != uint64(n) {
		t.Errorf("the source holds %d bytes of %d requests, %d are kept", h.bytes, h.requests, n)
	}
	eventually(t, "the disk is free", func() bool { return j.Usage().Bytes < 8*share })
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	if again := j.store.quotas["s"]; again.bytes != h.bytes || again.requests != h.requests {
		t.Errorf("after reopening it is %d bytes of %d requests, was %d of %d", again.bytes, again.requests, h.bytes, h.requests)
	}
}

// A share that has been made smaller is kept to from the next expiry on, and one
// request stays whatever its size.
func TestSmallerShare(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	j := mustOpen(t, o)
	last := ""
	for n := range 10 {
		var err error
		if last, err = j.Quarantine(t.Context(), rejected(n, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	o.Quarantine = 50 << 10
	j = mustOpen(t, o)
	if err := j.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil || r.ID != last {
			t.Errorf("kept %s, %v; want %s", r.ID, err, last)
		}
	}
	if _, err := j.QuarantinedRequest(t.Context(), last); err != nil {
		t.Error(err)
	}
}

// Without a retention, as in a spill, what waits is not discarded for its age.
func TestNoRetentionKeepsTheQuarantine(t *testing.T) {
	c := newClock()
	o := options(t, vfs.NewMem(), "data", c)
	o.Retention = 0
	j := mustOpen(t, o)
	id, err := j.Quarantine(t.Context(), rejected(1, 10))
	if err != nil {
		t.Fatal(err)
	}
	c.Advance(1000 * time.Hour)
	if err := j.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := j.QuarantinedRequest(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// However fast large requests and events come, the journal takes no more than
// max_bytes and one group, but for what a compaction writes anew at that moment.
func TestLimitIsNotOvershot(t *testing.T) {
	const limit, size, senders = 48 << 20, 1 << 20, 16
	for name, put := range map[string]func(*testing.T, *Journal, int) error{
		"requests": func(t *testing.T, j *Journal, n int) error {
			_, err := j.Quarantine(t.Context(), rejected(n, size))
			return err
		},
		"events": func(t *testing.T, j *Journal, n int) error {
			e := journaltest.Event(fmt.Sprint(n))
			if err := e.CloudEvent.SetData("application/octet-stream", noise(n, size)); err != nil {
				t.Error(err)
			}
			_, err := j.Append(t.Context(), e)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, vfs.Default, t.TempDir(), newClock())
			o.Log = nil
			o.MaxBytes, o.Quarantine, o.segment = limit, 1<<30, 4<<20
			j := mustOpen(t, o)
			c, err := j.Reader(t.Context(), "sink", journal.Earliest) // holds all events
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var accepted, peak atomic.Int64
			var all sync.WaitGroup
			end := time.Now().Add(3 * time.Second)
			for w := range senders {
				all.Go(func() {
					for n := 0; time.Now().Before(end); n++ {
						switch err := put(t, j, w*100000+n); {
						case err == nil:
							accepted.Add(1)
						case !errors.Is(err, journal.ErrFull):
							t.Errorf("an append: %v", err)
							return
						default:
							time.Sleep(10 * time.Millisecond)
						}
					}
				})
			}
			all.Go(func() {
				for time.Now().Before(end) {
					peak.Store(max(peak.Load(), folderSize(t, o.Dir)))
				}
			})
			all.Wait()
			eventually(t, "compactions are done", func() bool {
				m := j.store.db.Metrics()
				return m.Compact.NumInProgress == 0 && m.Flush.NumInProgress == 0 && m.Table.ObsoleteCount == 0
			})
			rest := folderSize(t, o.Dir)
			t.Logf("%d accepted; peak %d, at rest %d of %d bytes", accepted.Load(), peak.Load(), rest, limit)
			if rest > limit+maxGroupBytes {
				t.Errorf("the folder takes %d bytes, the limit is %d", rest, limit)
			}
			if accepted.Load() < limit/size/4 {
				t.Errorf("only %d were accepted", accepted.Load())
			}
		})
	}
}

// folderSize is what the files of a folder take.
func folderSize(t *testing.T, dir string) (n int64) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(_ string, f fs.DirEntry, err error) error {
		if err == nil && !f.IsDir() {
			if info, err := f.Info(); err == nil { // it may be gone by now
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// Whichever change of the disk fails while requests push others out, what was
// acknowledged and not discarded is there afterwards, once, with its receipts, and
// the index fits it.
func TestEveryOperationFailsWhileRequestsAreDiscarded(t *testing.T) {
	step := int64(5)
	if testing.Short() {
		step = 23
	}
	for n := int64(0); ; n += step {
		mem := vfs.NewCrashableMem()
		var count atomic.Int64
		f := &faulty{err: syscall.ENOSPC}
		f.match = func(op errorfs.Op) bool {
			return op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && count.Add(1) == n+1
		}
		o := options(t, errorfs.Wrap(mem, f), "data", newClock())
		o.Log = nil
		o.segment, o.Quarantine = 64<<10, 100<<10
		j := mustOpen(t, o)
		f.armed.Store(true)
		for i := range 12 {
			for range 2 {
				eventually(t, "a request", func() bool {
					_, err := j.Quarantine(t.Context(), rejected(i, 20<<10))
					if err != nil && !errors.Is(err, journal.ErrUnavailable) {
						t.Fatalf("operation %d: %v", n, err)
					}
					return err == nil
				})
			}
		}
		crashed := mem.CrashClone(vfs.CrashCloneCfg{})
		if err := j.Close(); err != nil {
			t.Fatalf("operation %d: Close: %v", n, err)
		}
		o.FS = crashed
		after := mustOpen(t, o)
		checkQuarantine(t, after, fmt.Sprintf("operation %d", n), 12-4, 12)
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
		if f.hits.Load() == 0 {
			t.Logf("%d operations failed in turn", n)
			return
		}
	}
}

// checkQuarantine holds the entries of the quarantine against each other, and
// against the requests that must be there.
func checkQuarantine(t *testing.T, j *Journal, what string, from, to int) {
	t.Helper()
	bodies := map[string]journal.QuarantinedRequest{}
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		bodies[string(r.Body)] = r
	}
	for i := from; i < to; i++ {
		// An attempt that failed may have been stored.
		if r, ok := bodies[string(noise(i, 20<<10))]; !ok || r.Count < 2 || r.Count > 4 {
			t.Errorf("%s: request %d is kept: %v, count %d", what, i, ok, r.Count)
		}
	}
	counts := map[byte]int{}
	it, err := j.store.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		counts[it.Key()[0]]++
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(bodies); counts[quarantineSpace] != n || counts[identitySpace] != n || counts[orderSpace] != n {
		t.Errorf("%s: %d requests, and of the entries of a kind: %d, %d, %d", what, n, counts[quarantineSpace], counts[identitySpace], counts[orderSpace])
	}
	if h := j.store.quotas["s"]; h.requests != uint64(len(bodies)) || h.bytes > 100<<10 {
		t.Errorf("%s: the source holds %+v, %d are there", what, h, len(bodies))
	}
}

// A repair brings back the receipts of quarantined requests, or, where those are
// damaged, counts them once.
func TestRepairOfTheQuarantine(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprint("receipts lost: ", lost), func(t *testing.T) {
			o := options(t, vfs.NewMem(), "data", newClock())
			j := mustOpen(t, o)
			var all []string
			for n := range 3 {
				for range n + 1 {
					id, err := j.Quarantine(t.Context(), rejected(n, 100))
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, id)
				}
			}
			if lost {
				err := j.do(t.Context(), 1, func(g *group) error {
					return g.deleteRange([]byte{identitySpace}, []byte{identitySpace + 1})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			done, err := Repair(t.Context(), o)
			if err != nil || done.Quarantined != 3 {
				t.Fatalf("Repair = %+v, %v", done, err)
			}
			j = mustOpen(t, o)
			n := uint64(0)
			for r, err := range j.Quarantined(t.Context(), "") {
				if n++; err != nil || lost && r.Count != 1 || !lost && r.Count != n {
					t.Errorf("%+v, %v", r, err)
				}
			}
			if id, err := j.Quarantine(t.Context(), rejected(2, 100)); n != 3 || err != nil || id != all[5] {
				t.Errorf("of %d requests a repeat of %s is %s, %v", n, all[5], id, err)
			}
			if h := j.store.quotas["s"]; h.requests != 3 {
				t.Errorf("the source holds %+v", h)
			}
		})
	}
}

// The journal's folder and files are for its user alone, also in a folder that was
// there and open to others.
func TestFilesArePrivate(t *testing.T) {
	o := options(t, vfs.Default, t.TempDir(), newClock())
	o.FS, o.segment, o.MinFree = nil, 1<<10, 1<<20
	if err := os.Chmod(o.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		if info, err := os.Stat(o.Dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: the folder is %v, %v", when, info.Mode(), err)
		}
		kinds := map[string]bool{}
		var open []string
		// A new file is made private before anything is written to it.
		eventually(t, when+": files are private", func() bool {
			open = nil
			err := filepath.WalkDir(o.Dir, func(path string, f fs.DirEntry, err error) error {
				if err != nil {
					return nil //nolint:nilerr // it is gone by now
				}
				info, err := f.Info()
				if err != nil {
					return nil //nolint:nilerr // it is gone by now
				}
				want := os.FileMode(0o600)
				if f.IsDir() {
					want = 0o700
				}
				if info.Mode().Perm() != want {
					open = append(open, fmt.Sprintf("%s is %v", path, info.Mode()))
				}
				kinds[f.Name()[strings.LastIndexByte(f.Name(), '.')+1:]] = true
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return len(open) == 0
		})
		for _, kind := range []string{"seg", "sst", "FORMAT", "LOCK", reserveFile, quarantineDir} {
			if !kinds[kind] {
				t.Errorf("%s: there is no file %s to look at", when, kind)
			}
		}
	}
	j := mustOpen(t, o)
	for n := range 20 {
		if _, err := j.Quarantine(t.Context(), rejected(n, 20<<10)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a table is written", func() bool { return j.store.db.Metrics().Total().TablesCount > 0 })
	check("new files")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// As an older version has left them.
	err := filepath.WalkDir(o.Dir, func(path string, f fs.DirEntry, err error) error {
		if err != nil || f.IsDir() {
			return err
		}
		return os.Chmod(path, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	check("older files")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Repair(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	check("after a repair")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// A folder that is not a journal is left as it is.
func TestForeignFolderKeepsItsMode(t *testing.T) {
	o := options(t, vfs.Default, t.TempDir(), newClock())
	letter := o.Dir + "/letter.txt"
	if err := errors.Join(os.WriteFile(letter, []byte("dear"), 0o644), os.Chmod(o.Dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); err == nil {
		t.Fatal("it was opened")
	}
	for _, path := range []string{o.Dir, letter} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o044 != 0o044 {
			t.Errorf("%s is %v, %v", path, info.Mode(), err)
		}
	}
}

// What cannot be made private is warned about, and names what is open.
func TestOpenFolderIsWarnedAbout(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	p := private{FS: vfs.Default, chmod: func(string, os.FileMode) error { return syscall.EPERM }}
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/000001.log", nil, 0o640), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	p.tighten(dir, zap.New(core))
	all := logs.All()
	if len(all) != 1 || !strings.Contains(fmt.Sprint(all[0].ContextMap()), "000001.log") || !strings.Contains(fmt.Sprint(all[0].ContextMap()), "rwxr-xr-x") {
		t.Errorf("logged %+v", all)
	}
}
