package local

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
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

// A damaged journal is not carried; the events that a repair found lost are told of.
func TestASourceWithHoles(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	stored(t, o, 10)
	name := files(t, o.FS, logDir, segmentSuffix)[0]
	rewrite(t, o.FS, name, spoil(0.35))
	read := func() (places []journal.Seq, src transfer.Source, err error) {
		t.Helper()
		if src, err = OpenSource(o); err != nil {
			return nil, nil, err
		}
		for e, err := range src.Events(t.Context(), 0) {
			if err != nil {
				return places, src, err
			}
			places = append(places, e.Seq)
		}
		return places, src, nil
	}
	if _, _, err := read(); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("the error is %v", err)
	}
	done, err := Repair(t.Context(), o)
	if err != nil || len(done.Lost) != 1 {
		t.Fatalf("Repair = %+v, %v", done, err)
	}
	lost := done.Lost[0].Len()
	places, src, err := read()
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	oldest, last, events := src.Range()
	if len(places) != 10-lost || oldest != 1 || last != 10 || int(events) != 10-lost {
		t.Errorf("events %v; from %d through %d, %d of them; %d are lost", places, oldest, last, events, lost)
	}
	want := []string{fmt.Sprintf("%d events that a repair found lost", lost), "the note of a repair that positions of sinks were lost: a sink that has none begins where its key start says"}
	if m := src.Missing(); !slices.Equal(m, want) {
		t.Errorf("missing: %q", m)
	}
}

// A quarantined request that is carried twice keeps its body.
func TestATargetReplacesRequests(t *testing.T) {
	o := options(t, vfs.NewMem(), "data", newClock())
	dst, err := OpenTarget(o)
	if err != nil {
		t.Fatal(err)
	}
	r := journal.QuarantinedRequest{ID: "of-its-own", Source: "s", Received: newClock().Now(), Body: []byte("body")}
	for range 2 {
		if err := dst.Put(t.Context(), transfer.Metadata{Quarantined: []journal.QuarantinedRequest{r}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(dst.Finish(t.Context()), dst.Close()); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, o)
	if got, err := j.QuarantinedRequest(t.Context(), r.ID); err != nil || string(got.Body) != "body" {
		t.Errorf("the request is %+v, %v", got, err)
	}
}
