package pebble

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

// sums are the sums of a folder's files.
func sums(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		text, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %x\n", n.Name(), sha256.Sum256(text))
	}
	return b.String()
}

func stored(t *testing.T, o Options, n int) {
	t.Helper()
	j := mustOpen(t, o)
	for i := range n {
		if _, err := j.Append(t.Context(), journaltest.Event(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestASourceIsOnlyRead(t *testing.T) {
	o := options(t, vfs.Default, t.TempDir(), newClock())
	stored(t, o, 10)
	before := sums(t, o.Dir)
	src, err := OpenSource(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "another process uses this folder") {
		t.Errorf("a relay opened what is being carried: %v", err)
	}
	n := 0
	for _, err := range src.Events(t.Context(), 0) {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	if after := sums(t, o.Dir); n != 10 || after != before {
		t.Errorf("%d events; the files were\n%sand are\n%s", n, before, after)
	}
}

func TestASourceInUseIsRefused(t *testing.T) {
	o := options(t, vfs.Default, t.TempDir(), newClock())
	mustOpen(t, o)
	if _, err := OpenSource(o); err == nil || !strings.Contains(err.Error(), "another process uses this folder") {
		t.Errorf("OpenSource = %v", err)
	}
}

func TestATargetWithEventsOfItsOwnIsRefused(t *testing.T) {
	o := options(t, vfs.Default, t.TempDir(), newClock())
	j := mustOpen(t, o)
	if _, err := j.Reader(t.Context(), "sink", journal.Latest); err != nil { // a relay that was only started
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	state := func() error {
		dst, err := OpenTarget(o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = dst.State(t.Context())
		if err := dst.Close(); err != nil {
			t.Fatal(err)
		}
		return err
	}
	if err := state(); err != nil {
		t.Errorf("one that has taken nothing: %v", err)
	}
	stored(t, o, 1)
	if err := state(); err == nil || !strings.Contains(err.Error(), "were not carried into it") {
		t.Errorf("one with an event: %v", err)
	}
}

// An event that is missing without a repair having said so is an error; those that
// are known to be lost are told of.
func TestASourceWithHoles(t *testing.T) {
	o := options(t, vfs.Default, t.TempDir(), newClock())
	stored(t, o, 10)
	change := func(f func(g *group) error) {
		t.Helper()
		j := mustOpen(t, o)
		if err := j.do(t.Context(), 1, f); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read := func() (places []journal.Seq, src transfer.Source, err error) {
		t.Helper()
		if src, err = OpenSource(o); err != nil {
			t.Fatal(err)
		}
		for e, err := range src.Events(t.Context(), 0) {
			if err != nil {
				return places, src, err
			}
			places = append(places, e.Seq)
		}
		return places, src, nil
	}
	change(func(g *group) error { return g.batch.DeleteRange(eventKey(4), eventKey(6), nil) })
	_, src, err := read()
	if err == nil || !strings.Contains(err.Error(), "event 4 is missing, the next one is 6") {
		t.Errorf("the error is %v", err)
	}
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	change(func(g *group) error { return g.batch.Set(lostKey(4), eventKey(5)[1:], nil) })
	places, src, err := read()
	defer src.Close()
	oldest, last, events := src.Range()
	if err != nil || fmt.Sprint(places) != "[1 2 3 6 7 8 9 10]" || oldest != 1 || last != 10 || events != 8 {
		t.Errorf("events %v, %v; from %d through %d, %d of them", places, err, oldest, last, events)
	}
	if m := src.Missing(); len(m) != 1 || m[0] != "2 events that a repair found lost" {
		t.Errorf("missing: %q", m)
	}
}
