package local

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// TestFullJournalKeepsEventsAtStart: a relay opens its cursors after the journal, and until
// then a full journal must not remove what they need. The same holds while a cursor is closed
// for a moment.
func TestFullJournalKeepsEventsAtStart(t *testing.T) {
	c := newClock()
	o := options(t, vfs.NewMem(), "data", c)
	o.MaxBytes, o.segment, o.Log = 8<<20, 256<<10, nil
	j := mustOpen(t, o)
	sink, err := j.Reader(t.Context(), "sink", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; err == nil; n++ {
		_, err = j.Append(t.Context(), noisy(t, n, 16<<10))
	}
	if !errors.Is(err, journal.ErrFull) {
		t.Fatal(err)
	}
	for _, when := range []string{"after a restart", "after the cursor was closed"} {
		if when == "after a restart" {
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			j = mustOpen(t, o)
		} else if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
		if excess := j.excess(); excess == 0 {
			t.Fatal("the journal is not nearly full")
		}
		if err := errors.Join(j.trim(t.Context(), 1<<20), j.Expire(t.Context())); err != nil {
			t.Fatal(err)
		}
		if sink, err = j.Reader(t.Context(), "sink", journal.Earliest); err != nil {
			t.Fatal(err)
		}
		if records, err := sink.Next(t.Context(), 1); err != nil || records[0].Seq != 1 {
			t.Errorf("%s the sink goes on with %v, %v", when, records, err)
		}
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	c.Advance(2 * pinned)
	if err := j.trim(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if j.Oldest() == 1 {
		t.Error("a sink that is not configured any more keeps its events")
	}
}

// TestReaderDuringRemoval: a cursor that is opened while events are being removed keeps them.
func TestReaderDuringRemoval(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	o.segment = 64 << 10
	j := mustOpen(t, o)
	appendNoise(t, j, 1, 60, 4<<10)
	var sink journal.Cursor
	_, err := j.remove(t.Context(), func(*store, journal.Seq, journal.Seq) (_ journal.Seq, err error) {
		sink, err = j.Reader(t.Context(), "sink", journal.Earliest)
		return 40, err
	})
	if err := errors.Join(err, j.removeSegments(t.Context(), false)); err != nil {
		t.Fatal(err)
	}
	if records, err := sink.Next(t.Context(), 1); err != nil || records[0].Seq != 1 {
		t.Errorf("the sink goes on with %v, %v", records, err)
	}
	// The dead letter of an event that is not there does not stop the sink.
	err = sink.Commit(t.Context(), journal.Progress{Done: journal.UpTo(1).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{{Seq: 100, Reason: "x"}}}})
	if err != nil {
		t.Errorf("Commit = %v", err)
	}
	if _, err := j.DeadLetter(t.Context(), journal.DeliveryID{Sink: "sink", Seq: 100}); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("DeadLetter = %v", err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("61")); err != nil {
		t.Errorf("Append = %v", err)
	}
}

// slowReuse is a disk that waits before it renames the spare.
type slowReuse struct {
	vfs.FS
	armed     atomic.Bool
	at, going chan struct{}
}

func (s *slowReuse) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if s.armed.Swap(false) {
		close(s.at)
		<-s.going
	}
	return s.FS.ReuseForWrite(from, to, c)
}

// TestSpareIsTakenOnce: while a file is being taken for the next segment, another one becomes
// free.
func TestSpareIsTakenOnce(t *testing.T) {
	fs := &slowReuse{FS: vfs.NewMem(), at: make(chan struct{}), going: make(chan struct{})}
	c := newClock()
	o := options(t, fs, "data", c)
	o.segment = 64 << 10
	j := mustOpen(t, o)
	appendNoise(t, j, 1, 60, 4<<10)
	c.Advance(3 * time.Hour)
	st := j.store
	held := st.segments.acquire(st.segments.infos()[0].number)
	if err := j.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	fs.armed.Store(true)
	done := make(chan error, 1)
	go func() {
		var err error
		for n := 61; n < 140 && err == nil; n++ {
			_, err = j.Append(context.Background(), noisy(t, n, 4<<10))
		}
		done <- err
	}()
	<-fs.at
	released := make(chan error, 1)
	go func() { released <- st.segments.release(held) }()
	close(fs.going)
	if err := errors.Join(<-released, <-done); err != nil {
		t.Error(err)
	}
}

// TestCanceledResolutions: a caller that does not wait leaves the committer alone.
func TestCanceledResolutions(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem(), "data", newClock()))
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, _ = j.Release(ctx, "none")
		ctx, cancel = context.WithCancel(t.Context())
		go cancel()
		_ = j.Drop(ctx, journal.DeliveryID{Sink: "x", Seq: 3})
		ctx, cancel = context.WithCancel(t.Context())
		go cancel()
		_ = j.Expire(ctx)
	}
}

// TestNewFolderIsResumed: a first start that ended between any two of its steps.
func TestNewFolderIsResumed(t *testing.T) {
	for _, folders := range [][]string{{}, {indexDir}, {logDir}, {indexDir, quarantineDir}, {indexDir, logDir, quarantineDir}} {
		for _, marked := range []bool{false, true} {
			fs := vfs.NewMem()
			for _, name := range folders {
				if err := fs.MkdirAll("data/"+name, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := fs.MkdirAll("data", 0o700); err != nil {
				t.Fatal(err)
			}
			if marked {
				m, err := newMarker()
				if err == nil {
					err = writeFile(fs, "data", formatFile, m.String())
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			j, err := Open(options(t, fs, "data", newClock()))
			if err != nil {
				t.Errorf("%v, marker %v: %v", folders, marked, err)
				continue
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestRepairOfAUsedFolder: a repair that was interrupted before it changed the folder begins
// anew, because the relay may have used the folder.
func TestRepairOfAUsedFolder(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	o.segment = 64 << 10
	filled(t, o, true, 300, 1<<10)
	rewrite(t, o.FS, "log/"+segmentFiles(t, o.FS)[1], spoil(0.5))
	if sound, err := rebuild(t.Context(), o, "data/"+repairingDir, &Contents{}); err != nil || sound {
		t.Fatal(sound, err)
	}
	j := mustOpen(t, o)
	appendNoise(t, j, 301, 600, 1<<10)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := Repair(t.Context(), o)
	if err != nil || done.Last != 600 {
		t.Fatalf("Repair = %+v, %v", done, err)
	}
	if j := mustOpen(t, o); j.Last() != 600 {
		t.Errorf("the journal ends at %d", j.Last())
	}
}

// TestKeptFilesStay: the files that a repair keeps are not written any more, and a second
// repair keeps others.
func TestKeptFilesStay(t *testing.T) {
	c := newClock()
	o := options(t, vfs.NewMem(), "data", c)
	o.segment = 64 << 10
	filled(t, o, true, 300, 1<<10)
	segments := segmentFiles(t, o.FS)
	rewrite(t, o.FS, "log/"+segments[1], spoil(0.5))
	done, err := Repair(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	kept := func(name string) string {
		return string(contents(t, o.FS, o.FS.PathBase(done.Kept)+"/"+logDir+"/"+name))
	}
	before := map[string]string{}
	for _, name := range segments {
		before[name] = kept(name)
	}
	j := mustOpen(t, o)
	c.Advance(3 * time.Hour)
	for n := 301; n <= 500; n++ {
		appendNoise(t, j, n, n, 1<<10)
		if n%50 == 0 {
			c.Advance(3 * time.Hour)
			if err := j.Expire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range segments {
		if kept(name) != before[name] {
			t.Errorf("the kept file %s has changed", name)
		}
	}
	if err := o.FS.Remove("data/" + formatFile); err != nil {
		t.Fatal(err)
	}
	again, err := Repair(t.Context(), o)
	if err != nil || again.Kept == done.Kept {
		t.Errorf("the second repair: %v, kept in %s and %s", err, done.Kept, again.Kept)
	}
}
