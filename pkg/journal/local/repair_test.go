package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
)

// filled makes a journal, closed or cut off: events with data of a size, of
// which one sink has been given a third and another two, a dead letter, a
// quarantined request, and a note.
func filled(t *testing.T, o Options, closed bool, events, size int) {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := j.Reader(t.Context(), "slow", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	quick, err := j.Reader(t.Context(), "quick", journal.Earliest)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var batch []event.Event
	for number := range events {
		e := journaltest.Event(fmt.Sprint(number + 1))
		var noise []byte // that does not compress
		for len(noise) < size {
			noise = binary.LittleEndian.AppendUint64(noise, rng.Uint64())
		}
		if err := e.CloudEvent.SetData("application/octet-stream", noise); err != nil {
			t.Fatal(err)
		}
		if batch = append(batch, e); len(batch) < 20 {
			continue
		}
		if _, err := j.Append(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
		batch = batch[:0]
	}
	dead := journal.DeadLetter{Seq: 1, Reason: "too_large"}
	if err := errors.Join(
		slow.Commit(t.Context(), journal.Progress{Done: journal.UpTo(journal.Seq(events / 3)).Done, Undelivered: journal.Undelivered{Dead: []journal.DeadLetter{dead}}}),
		quick.Commit(t.Context(), journal.UpTo(journal.Seq(events*2/3))),
		j.PutValue(t.Context(), "note", []byte("text")),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Body: []byte("?")}); err != nil {
		t.Fatal(err)
	}
	if closed {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	// A table that is being written, or not needed any more, is no part of the
	// journal: damage to it is none.
	eventually(t, "tables are at rest", func() bool {
		m := j.store.db.Metrics()
		return m.Compact.NumInProgress == 0 && m.Flush.NumInProgress == 0 && m.Table.ObsoleteCount == 0 && m.Table.ZombieCount == 0
	})
	t.Cleanup(func() { _ = j.Close() }) // after the test has looked at the crash
}

// files are the names of a folder of the journal that end so, the largest first.
func files(t *testing.T, fs vfs.FS, folder, suffix string) (names []string) {
	t.Helper()
	all, err := fs.List("data/" + folder)
	if err != nil {
		t.Fatal(err)
	}
	size := func(name string) int64 {
		info, err := fs.Stat("data/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for _, name := range all {
		if strings.HasSuffix(name, suffix) {
			names = append(names, folder+"/"+name)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return int(size(b) - size(a)) })
	if len(names) == 0 {
		t.Fatalf("no file *%s among %v", suffix, all)
	}
	return names
}

// rewrite changes what a file holds.
func rewrite(t *testing.T, fs vfs.FS, name string, change func([]byte) []byte) {
	t.Helper()
	f, err := fs.Open("data/" + name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(fs, "data/"+fs.PathDir(name), fs.PathBase(name), string(change(b))); err != nil {
		t.Fatal(err)
	}
}

// spoil changes bytes at a part of a file.
func spoil(part float64) func([]byte) []byte {
	return func(b []byte) []byte {
		at := int(part * float64(len(b)))
		for i := at; i < min(at+100, len(b)); i++ {
			b[i] ^= 0x55
		}
		return b
	}
}

func remove(t *testing.T, fs vfs.FS, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := fs.Remove("data/" + name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRepair breaks a journal in every way that a disk and an operator can,
// and wants it named, repaired, and every event accounted for.
func TestRepair(t *testing.T) {
	for _, tt := range []struct {
		name    string
		crashed bool // or closed
		damage  func(t *testing.T, fs vfs.FS) (file string)
		least   int    // events that must be saved
		open    string // what Open says; empty is that it opens
		mayOpen bool   // the start may not need what is damaged
	}{
		{name: "nothing", least: 3000, damage: func(*testing.T, vfs.FS) string { return "" }},
		{name: "nothing, after a crash", crashed: true, least: 3000, damage: func(*testing.T, vfs.FS) string { return "" }},
		{name: "a frame", least: 2960, damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, logDir, segmentSuffix)[3]
			rewrite(t, fs, name, spoil(0.5))
			return name
		}},
		{name: "two frames of a segment", least: 2920, damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, logDir, segmentSuffix)[3]
			rewrite(t, fs, name, spoil(0.3))
			rewrite(t, fs, name, spoil(0.6))
			return name
		}},
		{name: "the first bytes of a segment", least: 2980, damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, logDir, segmentSuffix)[3]
			rewrite(t, fs, name, spoil(0))
			return name
		}},
		{name: "the last bytes of a segment", least: 2980, damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, logDir, segmentSuffix)[3]
			rewrite(t, fs, name, spoil(0.99999))
			return name
		}},
		{name: "a frame of every segment, after a crash", crashed: true, open: "damaged", least: 2400, damage: func(t *testing.T, fs vfs.FS) string {
			all := files(t, fs, logDir, segmentSuffix)
			for _, name := range all {
				rewrite(t, fs, name, spoil(0.4))
			}
			return all[0]
		}},
		{name: "a segment's half", least: 2800, damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, logDir, segmentSuffix)[3]
			rewrite(t, fs, name, func(b []byte) []byte { return b[:len(b)/2] })
			return name
		}},
		{name: "a segment", least: 2700, open: "is missing", damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, logDir, segmentSuffix)[3]
			remove(t, fs, name)
			return name
		}},
		{name: "the first segment", least: 2700, open: "is missing", damage: func(t *testing.T, fs vfs.FS) string {
			name := slices.Min(files(t, fs, logDir, segmentSuffix))
			remove(t, fs, name)
			return ""
		}},
		{name: "the last segment", least: 2700, open: "is missing", damage: func(t *testing.T, fs vfs.FS) string {
			name := slices.Max(files(t, fs, logDir, segmentSuffix))
			remove(t, fs, name)
			return name
		}},
		{name: "the log", least: 0, open: "is missing", damage: func(t *testing.T, fs vfs.FS) string {
			if err := fs.RemoveAll("data/" + logDir); err != nil {
				t.Fatal(err)
			}
			return ""
		}},
		{name: "a block of the index", least: 3000, mayOpen: true, open: "damaged", damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, indexDir, ".sst")[0]
			rewrite(t, fs, name, spoil(0.5))
			return name
		}},
		{name: "a table's end", least: 3000, open: "size mismatch", damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, indexDir, ".sst")[0]
			rewrite(t, fs, name, func(b []byte) []byte { return b[:len(b)/2] })
			return indexDir
		}},
		{name: "a table of the index", least: 3000, open: "does not exist", damage: func(t *testing.T, fs vfs.FS) string {
			name := files(t, fs, indexDir, ".sst")[0]
			remove(t, fs, name)
			return ""
		}},
		{name: "a spoiled manifest", least: 3000, open: "MANIFEST", damage: func(t *testing.T, fs vfs.FS) string {
			for _, name := range files(t, fs, indexDir, "") {
				if strings.HasPrefix(name, indexDir+"/MANIFEST") {
					rewrite(t, fs, name, spoil(0))
				}
			}
			return ""
		}},
		{name: "the index", least: 3000, open: "missing", damage: func(t *testing.T, fs vfs.FS) string {
			if err := fs.RemoveAll("data/" + indexDir); err != nil {
				t.Fatal(err)
			}
			return ""
		}},
		{name: "the marker", least: 3000, open: "FORMAT", damage: func(t *testing.T, fs vfs.FS) string {
			remove(t, fs, formatFile)
			return formatFile
		}},
		{name: "a body", least: 3000, damage: func(t *testing.T, fs vfs.FS) string {
			rewrite(t, fs, files(t, fs, quarantineDir, "")[0], spoil(0))
			return "entry"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			o := options(t, mem, "data", newClock())
			o.segment = 256 << 10
			o.Log = nil
			filled(t, o, !tt.crashed, 3000, 1<<10)
			o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
			file := tt.damage(t, o.FS)

			found, err := Inspect(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			before := storedID(t, o.FS.(*vfs.MemFS))
			if whole := file == "" && tt.open == ""; whole != found.Sound() {
				t.Errorf("check found %v, lost %v", found.Damage, found.Lost)
			}
			if file != "" && !slices.ContainsFunc(found.Damage, func(d Damage) bool { return strings.Contains(d.File, file) }) {
				t.Errorf("check does not name %s: %v", file, found.Damage)
			}
			wantOpen(t, o, tt.open, tt.mayOpen)

			done, err := Repair(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d events saved, lost %v, damage %v", done.Events, done.Lost, done.Damage)
			if done.Events < tt.least {
				t.Errorf("%d events were saved, want at least %d", done.Events, tt.least)
			}
			if file == "" && tt.open == "" {
				if done.Kept != "" {
					t.Errorf("a sound journal was changed, and is kept in %s", done.Kept)
				}
				return
			}
			verifyRepaired(t, o, done, 1001)
			// A place whose event is lost is given again, under another ID.
			after := ""
			eventually(t, "a copy of the open journal is whole", func() bool {
				after = storedID(t, o.FS.(*vfs.MemFS))
				return after != ""
			})
			if lost := len(done.Lost)+len(done.Damage) > 0; after == "" || before != "" && lost == (after == before) {
				t.Errorf("the ID was %q and is %q", before, after)
			}
		})
	}
}

// storedID is the ID of a journal, empty where the engine cannot open the journal.
func storedID(t *testing.T, fs *vfs.MemFS) string {
	t.Helper()
	copied := vfs.NewMem()
	if ok, err := vfs.Clone(fs, copied, "data", "data"); err != nil || !ok {
		t.Fatal(err)
	}
	j, err := Open(options(t, copied, "data", newClock()))
	if err != nil {
		return ""
	}
	defer func() { _ = j.Close() }()
	return j.ID()
}

// wantOpen opens a damaged journal and reads it to the end; somewhere on the
// way an error must say what to do.
func wantOpen(t *testing.T, o Options, want string, mayOpen bool) {
	t.Helper()
	j, err := Open(o)
	if err == nil {
		defer j.Close()
		if want != "" && !mayOpen {
			t.Errorf("Open went well, want %q", want)
		}
		for next := journal.Seq(1); err == nil && next <= j.Last(); next += 100 {
			_, err = j.Read(t.Context(), next, 100)
		}
		if err == nil {
			return
		}
	} else if want == "" {
		t.Errorf("Open: %v", err)
	}
	if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "postwire journal check") && !strings.Contains(err.Error(), "postwire journal repair") {
		t.Errorf("the error is %q, want %q and what to do in it", err, want)
	}
}

// verifyRepaired holds a repaired journal against what the repair said; the slow
// sink waits for the event at waits.
func verifyRepaired(t *testing.T, o Options, done Repaired, waits journal.Seq) {
	t.Helper()
	found, err := Inspect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Damage) > 0 || len(found.Lost) > 0 {
		t.Errorf("after the repair, check finds %v, and lost %v", found.Damage, found.Lost)
	}
	if names, err := o.FS.List(done.Kept); err != nil || len(names) == 0 {
		t.Errorf("kept in %s: %v, %v", done.Kept, names, err)
	}
	j := mustOpen(t, o)
	if j.Last() != done.Last {
		t.Errorf("the log ends at %d, the repair said %d", j.Last(), done.Last)
	}
	there := map[journal.Seq]bool{}
	for next := j.Oldest(); next <= j.Last(); {
		records, err := j.Read(t.Context(), next, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) == 0 {
			break
		}
		for _, r := range records {
			if want := journaltest.Event(fmt.Sprint(r.Seq)).CloudEvent.ID(); r.Event.CloudEvent.ID() != want {
				t.Fatalf("event %d is %s, want %s", r.Seq, r.Event.CloudEvent.ID(), want)
			}
			there[r.Seq], next = true, r.Seq+1
		}
	}
	if len(there) != done.Events {
		t.Errorf("%d events are there, the repair said %d", len(there), done.Events)
	}
	lost := 0
	for _, l := range done.Lost {
		lost += l.Len()
		for s := l.From; s <= l.To; s++ {
			if there[s] {
				t.Errorf("event %d is said to be lost, and there", s)
			}
		}
	}
	if int(done.Last) != len(there)+lost {
		t.Errorf("of %d events, %d are there and %d are said to be lost", done.Last, len(there), lost)
	}
	// A sink goes on with the first event that it has not been given; one whose
	// position was lost too begins at the start.
	if len(there) == 0 {
		return
	}
	c, err := j.Reader(t.Context(), "slow", journal.Latest)
	if err != nil {
		t.Fatal(err)
	}
	records, err := c.Next(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for s := waits; s < records[0].Seq; s++ {
		if there[s] {
			t.Errorf("event %d is there, and the sink goes on at %d", s, records[0].Seq)
		}
	}
	// What comes in stands behind everything there ever was.
	r, err := j.Append(t.Context(), journaltest.Event("new"))
	if err != nil || r[0].Seq != done.Last+1 {
		t.Errorf("Append = %v, %v; want place %d", r, err, done.Last+1)
	}
}

// TestIndexIsRebuilt: a log that has every change makes the whole index anew.
func TestIndexIsRebuilt(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	o.segment = 64 << 10
	filled(t, o, true, 300, 1<<10)
	if err := o.FS.RemoveAll("data/" + indexDir); err != nil {
		t.Fatal(err)
	}
	if err := o.FS.MkdirAll("data/"+indexDir, 0o700); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, o)
	positions, err := j.Cursors(t.Context())
	want := []journal.Position{{Name: "quick", Committed: 200, Lag: 100}, {Name: "slow", Committed: 100, Lag: 200}}
	if diff := cmp.Diff(want, positions); err != nil || diff != "" {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	if d, err := j.DeadLetter(t.Context(), journal.DeliveryID{Sink: "slow", Seq: 1}); err != nil || d.Event.CloudEvent.ID() != "1" {
		t.Errorf("the dead letter is %+v, %v", d, err)
	}
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil || string(r.Body) != "?" {
			t.Errorf("the request is %+v, %v", r, err)
		}
	}
	for v, err := range j.Values(t.Context(), "") {
		if err != nil || string(v.Value) != "text" {
			t.Errorf("the value is %+v, %v", v, err)
		}
	}
	for i := range 300 {
		r, err := j.Append(t.Context(), journaltest.Event(fmt.Sprint(i+1)))
		if err != nil || !r[0].Duplicate || r[0].Seq != journal.Seq(i+1) {
			t.Fatalf("event %d again: %+v, %v", i+1, r, err)
		}
	}
	if u := j.Usage(); u.Events != 300 || u.Keys != 300 {
		t.Errorf("usage: %+v", u)
	}
}

// TestRepairIsResumed cuts a repair short at every change of the disk.
func TestRepairIsResumed(t *testing.T) {
	for cut := 1; ; cut += 2 {
		mem := vfs.NewCrashableMem()
		o := options(t, mem, "data", newClock())
		o.segment = 256 << 10
		o.Log = nil
		filled(t, o, true, 600, 1<<10)
		name := files(t, mem, logDir, segmentSuffix)[0]
		rewrite(t, mem, name, spoil(0.5))
		left := cut
		o.FS = &renames{FS: mem, left: &left}
		if _, err := Repair(t.Context(), o); err == nil {
			if cut < 10 {
				t.Errorf("a repair renames %d times", cut)
			}
			return
		}
		o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
		if names, err := o.FS.List("data"); err != nil {
			t.Fatal(err)
		} else if interrupted(names) {
			wantOpen(t, o, "interrupted", false)
		}
		done, err := Repair(t.Context(), o)
		if err != nil {
			t.Fatalf("after cut %d: %v", cut, err)
		}
		verifyRepaired(t, o, done, 201)
		if t.Failed() {
			t.Fatalf("after cut %d", cut)
		}
	}
}

// renames is a disk that fails at one of the renames.
type renames struct {
	vfs.FS
	left *int
}

func (r *renames) Rename(from, to string) error {
	if *r.left--; *r.left <= 0 {
		return errors.New("cut")
	}
	return r.FS.Rename(from, to)
}

// TestFormat opens a journal that was written when its format was fixed.
func TestFormat(t *testing.T) {
	const fixture = "testdata/format-4"
	if os.Getenv("POSTWIRE_WRITE_FIXTURE") != "" { // once, when the format is changed
		o := options(t, vfs.Default, fixture, newClock())
		o.segment = 16 << 10
		if err := os.RemoveAll(fixture); err != nil {
			t.Fatal(err)
		}
		filled(t, o, true, 300, 100)
		j, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := j.Reader(t.Context(), "holes", journal.Earliest)
		if err == nil {
			err = c.Commit(t.Context(), journal.Progress{Done: []journal.Range{{From: 1, To: 4}, {From: 6, To: 249}, {From: 251, To: 300}}})
		}
		if err == nil { // event 5 becomes a retained event
			err = j.trim(t.Context(), 1)
		}
		if err := errors.Join(err, j.Close()); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(fixture)); err != nil {
		t.Fatal(err)
	}
	o := options(t, vfs.Default, dir, newClock())
	found, err := Inspect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := Contents{
		Oldest: 81, Last: 300, Events: 221, Dead: 1, Quarantined: 1, Bytes: found.Bytes,
		Positions: []Position{{Name: "holes", Committed: 4, Pending: 2}, {Name: "quick", Committed: 200, Pending: 100}, {Name: "slow", Committed: 100, Pending: 200}},
	}
	if diff := cmp.Diff(want, found, cmp.AllowUnexported(Damage{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	j := mustOpen(t, o)
	if r, err := j.Append(t.Context(), journaltest.Event("300")); err != nil || !r[0].Duplicate {
		t.Errorf("an event that is there: %+v, %v", r, err)
	}
	if records, err := j.Read(t.Context(), 1, 300); err != nil || len(records) != 221 || records[0].Seq != 5 || records[220].Event.SourceName != "test" {
		t.Errorf("%d records, %v", len(records), err)
	}
}
