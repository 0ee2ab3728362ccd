package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/local"
)

// engines is a configuration of the two engines.
type engines struct {
	dir, url string
}

func (e engines) plan(t *testing.T, engine string) *Plan {
	t.Helper()
	p, err := Parse("postwire.yaml", fmt.Appendf(nil, `
journal:
  engine: %s
  dir: %s/journal
  min_free_bytes: 0
  jetstream: {url: %q, replicas: 1, embedded: {dir: %s/cluster}}
  spill: {dir: %s/spill}
sources: [{name: all, type: uploadpost, paths: [/a], auth: none}]
sinks:
  - {name: first, type: stdout}
  - {name: second, type: stdout}
`, engine, e.dir, e.url, e.dir, e.dir), env)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open opens the journal as a start does.
func (e engines) open(t *testing.T, engine string) (journal.Journal, error) {
	t.Helper()
	return openJournal(t.Context(), e.plan(t, engine), "relay-1", nil, prometheus.NewRegistry(), zap.NewNop())
}

// store stores an event that is pending for the sink second.
func (e engines) store(t *testing.T, engine string) {
	t.Helper()
	j, err := e.open(t, engine)
	if err != nil {
		t.Fatal(err)
	}
	e.do(t, j, "a", "first")
}

// deliver delivers all events to all sinks.
func (e engines) deliver(t *testing.T, engine, id string) {
	t.Helper()
	j, err := e.open(t, engine)
	if err != nil {
		t.Fatal(err)
	}
	e.do(t, j, id, "first", "second")
}

// do stores an event, delivers all events to some sinks, and closes the journal.
func (engines) do(t *testing.T, j journal.Journal, id string, delivered ...string) {
	t.Helper()
	ctx := t.Context()
	cursors := map[string]journal.Cursor{}
	for _, sink := range []string{"first", "second"} {
		c, err := j.Reader(ctx, sink, journal.Earliest)
		if err != nil {
			t.Fatal(err)
		}
		cursors[sink] = c
	}
	receipts, err := j.Append(ctx, journaltest.Event(id))
	if err != nil {
		t.Fatal(err)
	}
	for _, sink := range delivered {
		if _, err := cursors[sink].Next(ctx, 100); err != nil {
			t.Fatal(err)
		}
		if err := cursors[sink].Commit(ctx, journal.UpTo(receipts[0].Seq)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cursors {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// starts fails the test unless a start with the engine succeeds.
func (e engines) starts(t *testing.T, engine, when string) {
	t.Helper()
	j, err := e.open(t, engine)
	if err != nil {
		t.Errorf("the start %s: %v", when, err)
		return
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

// refuses fails the test unless a start with the engine is refused with the texts.
func (e engines) refuses(t *testing.T, engine, when string, texts ...string) {
	t.Helper()
	j, err := e.open(t, engine)
	if err == nil {
		t.Errorf("the relay starts %s", when)
		_ = j.Close()
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the start %s: %v; the error lacks %q", when, err, text)
		}
	}
}

func (e engines) migrate(t *testing.T, to string) {
	t.Helper()
	if _, err := Migrate(t.Context(), e.plan(t, engineLocal), to, zap.NewNop(), func(string, uint64, uint64) {}); err != nil {
		t.Fatal(err)
	}
}

func TestUndeliveredEventsOfTheLocalEngineKeepJetStreamFromStarting(t *testing.T) {
	e := engines{dir: t.TempDir(), url: natstest.Start(t).URL()}
	e.starts(t, engineJetStream, "without a folder")

	e.store(t, engineLocal)
	e.refuses(t, engineJetStream, "beside an undelivered event", "postwire.yaml:3", "journal.engine: is jetstream",
		e.dir+"/journal has events that are not delivered to second", "postwire journal migrate --from local --to jetstream", "journal.engine: local")

	e.deliver(t, engineLocal, "b")
	e.starts(t, engineJetStream, "after the delivery")

	if err := os.Remove(filepath.Join(e.dir, "journal", "FORMAT")); err != nil {
		t.Fatal(err)
	}
	e.refuses(t, engineJetStream, "beside a journal that cannot be read", "cannot be checked for undelivered events", "move the folder away")
}

func TestAMigratedJournalKeepsNoEngineFromStarting(t *testing.T) {
	e := engines{dir: t.TempDir(), url: natstest.Start(t).URL()}
	e.store(t, engineLocal)
	e.migrate(t, engineJetStream)
	e.starts(t, engineJetStream, "after the migration")
	e.migrate(t, engineJetStream) // reports that the migration is complete
	e.starts(t, engineJetStream, "after a second migration")

	// The local engine takes an event, which is in no other journal.
	folder := e.plan(t, engineLocal).folderOptions()
	j, err := local.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	e.do(t, j, "b")
	e.refuses(t, engineJetStream, "beside an event that came after the migration", "not delivered to first, second")
}

func TestUndeliveredEventsInTheStreamKeepTheLocalEngineFromStarting(t *testing.T) {
	e := engines{dir: t.TempDir(), url: natstest.Start(t).URL()}
	e.starts(t, engineLocal, "without a stream")

	e.store(t, engineJetStream)
	e.refuses(t, engineLocal, "beside an undelivered event", "postwire.yaml:3", "journal.engine: is local",
		"the stream postwire at "+e.url, "not delivered to second", "postwire journal migrate --from jetstream --to local", "journal.engine: jetstream", "remove journal.jetstream.url")

	if err := os.RemoveAll(filepath.Join(e.dir, "journal")); err != nil {
		t.Fatal(err)
	}
	e.migrate(t, engineLocal)
	e.starts(t, engineLocal, "after the migration")

	e = engines{dir: t.TempDir(), url: natstest.Start(t).URL()}
	e.store(t, engineJetStream)
	e.deliver(t, engineJetStream, "b")
	e.starts(t, engineLocal, "after the delivery")
}

func TestALocalEngineStartsWithoutTheCluster(t *testing.T) {
	e := engines{dir: t.TempDir(), url: "nats://127.0.0.1:1"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := checkOtherJournal(ctx, e.plan(t, engineLocal), "relay-1", zap.NewNop()); err != nil {
		t.Error(err)
	}
}

func TestASpillKeepsTheLocalEngineFromStarting(t *testing.T) {
	e := engines{dir: t.TempDir()}
	spill := local.Options{Dir: filepath.Join(e.dir, "spill"), Window: time.Hour}
	j, err := local.Open(spill)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	e.refuses(t, engineLocal, "on the disk of a relay with a cluster", "is of a relay with the engine jetstream", "journal.jetstream.url", "remove the folder "+spill.Dir)

	if j, err = local.Open(spill); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), journaltest.Event("a")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	e.refuses(t, engineLocal, "beside events in the spill", "has 1 events and requests that the cluster has not stored", "journal.engine: jetstream", "postwire_journal_spilled")
}

func TestTheStoreOfAnEmbeddedClusterKeepsTheLocalEngineFromStarting(t *testing.T) {
	e := engines{dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(e.dir, "cluster"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(e.dir, "cluster", "STORE"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := e.open(t, engineLocal)
	if err == nil {
		err = j.Close()
		t.Fatalf("the engine local was started beside the store, %v", err)
	}
	for _, part := range []string{"journal.engine", filepath.Join(e.dir, "cluster"), "set journal.engine: jetstream"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error is %q, without %q", err, part)
		}
	}
}
