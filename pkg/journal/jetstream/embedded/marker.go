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
}

// checkMarker refuses a store that the server would damage. A clustered NATS server deletes
// the streams of a store that was written without a cluster, as no peer knows them. The
// name of a relay is its identity in the cluster, so another relay must not use the store.
func checkMarker(o Options) error {
	own := marker{markerFormat, o.Name, o.Cluster, len(o.Peers) > 1}
	path := filepath.Join(o.Dir, markerFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return createMarker(o.Dir, own)
	}
	if err != nil {
		return err
	}
	var have marker
	if err := json.Unmarshal(text, &have); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	switch {
	case have.Format != own.Format:
		return fmt.Errorf("the store %s has format %d of another version of postwire, this version reads format %d: install that version again", o.Dir, have.Format, own.Format)
	case have.Relay != own.Relay:
		return fmt.Errorf("the store %s belongs to the relay %s, and this relay is %s: set server.name to %s, or give this relay a folder of its own with journal.jetstream.embedded.dir", o.Dir, have.Relay, own.Relay, have.Relay)
	case have.Cluster != own.Cluster:
		return fmt.Errorf("the store %s belongs to the cluster %s, and this relay is in the cluster %s: set journal.jetstream.embedded.cluster to %s, or name another folder", o.Dir, have.Cluster, own.Cluster, have.Cluster)
	case own.Clustered && !have.Clustered:
		return fmt.Errorf("the store %s was written by a single relay without a cluster, and a cluster would delete its events: list only this relay in journal.jetstream.embedded.peers until all events are delivered, then start the cluster with an empty folder", o.Dir)
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

// Exists reports whether a folder has the store of an embedded cluster.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, markerFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
