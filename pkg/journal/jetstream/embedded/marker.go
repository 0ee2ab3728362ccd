package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// markerFile says by which relay and how a store was written. The file is written before
// the first start of the server.
const markerFile = "STORE"

const markerFormat = 1

// marker is the content of markerFile.
type marker struct {
	Format    int    `json:"format"`
	Relay     string `json:"relay"`
	Cluster   string `json:"cluster"`
	Clustered bool   `json:"clustered"` // false: a single relay without a cluster
	Carried   bool   `json:"carried"`   // clustered: the cluster has the complete journal; otherwise: a cluster has this journal now
}

// checkMarker refuses a store that the server would damage. A clustered NATS server deletes
// the streams of a store that was written without a cluster, as no peer knows them. The
// name of a relay is its identity in the cluster, so another relay must not use the store.
func checkMarker(o Options) (have marker, err error) {
	own := marker{Format: markerFormat, Relay: o.Name, Cluster: o.Cluster, Clustered: len(o.Peers) > 1}
	have, err = readMarker(o.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return own, createMarker(o.Dir, own)
	}
	if err != nil {
		return have, err
	}
	return have, have.check(o, own)
}

// readMarker reads the marker of a folder.
func readMarker(dir string) (m marker, err error) {
	path := filepath.Join(dir, markerFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("reading %s: %w", path, err)
	}
	return m, nil
}

// check returns why the store cannot be used with the options, or nil.
func (have marker) check(o Options, own marker) error {
	switch {
	case have.Format != own.Format:
		return fmt.Errorf("the store %s has format %d of another version of postwire, this version reads format %d: install that version again", o.Dir, have.Format, own.Format)
	case have.Relay != own.Relay:
		return fmt.Errorf("the store %s belongs to the relay %s, and this relay is %s: set server.name to %s, or give this relay a folder of its own with journal.jetstream.embedded.dir", o.Dir, have.Relay, own.Relay, have.Relay)
	case have.Cluster != own.Cluster:
		return fmt.Errorf("the store %s belongs to the cluster %s, and this relay is in the cluster %s: set journal.jetstream.embedded.cluster to %s, or name another folder", o.Dir, have.Cluster, own.Cluster, have.Cluster)
	case own.Clustered && !have.Clustered:
		return fmt.Errorf("the store %s was written by a single relay without a cluster, and a cluster would delete its events: name this relay in journal.jetstream.embedded.founder of all relays, so that it carries its journal into the cluster; or list only this relay in journal.jetstream.embedded.peers", o.Dir)
	case !have.Clustered && have.Carried:
		return fmt.Errorf("the journal in the store %s was carried into a cluster, and this relay would deliver its events again: list all relays in journal.jetstream.embedded.peers again, or name an empty folder", o.Dir)
	case have.Clustered && !own.Clustered:
		return fmt.Errorf("the store %s is the replica of a relay in a cluster, and cannot be used without the cluster: list all relays in journal.jetstream.embedded.peers again, or name an empty folder", o.Dir)
	}
	return nil
}

// createMarker writes the marker of an empty store.
func createMarker(dir string, m marker) error {
	if found, err := os.ReadDir(filepath.Join(dir, "jetstream")); err == nil && len(found) > 0 {
		return fmt.Errorf("the folder %s has the store of another NATS server, and a cluster would delete its streams: name an empty folder with journal.jetstream.embedded.dir", dir)
	}
	return writeMarker(dir, m)
}

// writeMarker replaces the marker of a folder.
func writeMarker(dir string, m marker) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	// A torn file would refuse the next start: write a second file and rename it.
	path := filepath.Join(dir, markerFile)
	if err := writeSynced(path+".new", text); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// Store is what a folder has.
type Store int

// The stores of a folder.
const (
	NoStore   Store = iota
	NewStore        // of a relay of a cluster, from before the cluster had the journal
	InUse           // of a relay of a cluster that has the journal
	Alone           // of a relay without a cluster
	LeftAlone       // of a relay without a cluster, whose journal is in a cluster now
)

// Inspect returns which store a folder has.
func Inspect(dir string) (Store, error) {
	m, err := readMarker(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return NoStore, nil
	case err != nil:
		return NoStore, err
	}
	return map[marker]Store{{Clustered: true}: NewStore, {Clustered: true, Carried: true}: InUse, {}: Alone, {Carried: true}: LeftAlone}[marker{Clustered: m.Clustered, Carried: m.Carried}], nil
}

// Leave records durably that the journal of the store of a single relay is in a cluster now:
// Start refuses the store from then on. No server uses the store.
func Leave(dir string) error {
	m, err := readMarker(dir)
	if err == nil {
		m.Carried = true
		err = writeMarker(dir, m)
	}
	if err != nil {
		return fmt.Errorf("embedded cluster: recording that the journal in %s is in a cluster now: %w", dir, err)
	}
	return nil
}
