package local

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"
)

const (
	formatFile    = "FORMAT"
	formatName    = "postwire-journal"
	formatVersion = 4
)

// marker is the format marker of a journal. The index has a copy.
type marker struct {
	salt uint32 // see segment.go
	id   uuid.UUID
}

func newMarker() (m marker, err error) {
	var salt [4]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return m, fmt.Errorf("making the salt of the journal: %w", err)
	}
	m.salt = binary.BigEndian.Uint32(salt[:])
	if m.id, err = uuid.NewRandom(); err != nil {
		return m, fmt.Errorf("making the ID of the journal: %w", err)
	}
	return m, nil
}

func (m marker) String() string {
	return fmt.Sprintf("%s %d %08x %s\n", formatName, formatVersion, m.salt, m.id)
}

// errMarker is wrapped if the format marker is missing or invalid.
var errMarker = errors.New("no marker of a journal")

// checkFormat checks the format marker and that it belongs to the other files, or
// initializes a new folder.
func checkFormat(fsys vfs.FS, dir string) (m marker, err error) {
	names, err := fsys.List(dir)
	if err != nil {
		return m, fmt.Errorf("listing the folder: %w", err)
	}
	data := slices.IndexFunc(names, func(name string) bool {
		if !isData(name) {
			return false
		}
		files, err := fsys.List(fsys.PathJoin(dir, name))
		return err != nil || len(files) > 0 // a crash may leave new folders
	})
	m, err = readMarker(fsys, dir)
	switch {
	case interrupted(names):
		return m, errInterrupted
	case errors.Is(err, fs.ErrNotExist) && data >= 0:
		return m, fmt.Errorf("it holds %s and has no file %s: %s", names[data], formatFile, advice)
	case errors.Is(err, fs.ErrNotExist):
		for _, name := range names {
			// A crash may have left the lock and half of the marker.
			if name != "LOCK" && name != formatFile+".tmp" && !isData(name) {
				return m, fmt.Errorf("the folder is not empty (it holds %s) and has no file %s, so it is no journal; set journal.dir to a new folder", name, formatFile)
			}
		}
		if m, err = newMarker(); err != nil {
			return m, err
		}
		return m, writeFile(fsys, dir, formatFile, m.String())
	case err != nil:
		return m, err
	}
	if data >= 0 && (!slices.Contains(names, indexDir) || !slices.Contains(names, logDir)) {
		return m, fmt.Errorf("it holds %s, and one of the folders %s and %s is missing: %s", names[data], indexDir, logDir, advice)
	}
	return m, nil
}

// isData reports whether a file belongs to the data of a journal.
func isData(name string) bool { return name == logDir || name == indexDir || name == quarantineDir }

// readMarker reads the format marker.
func readMarker(fsys vfs.FS, dir string) (m marker, err error) {
	path := fsys.PathJoin(dir, formatFile)
	text, err := readFile(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w: %w", errMarker, err)
	}
	if err != nil {
		return m, fmt.Errorf("reading the format marker: %w", err)
	}
	if m, err = parseMarker(text); errors.Is(err, errMarker) {
		return m, fmt.Errorf("%w: %s does not hold one: restore that file, set journal.dir to a new folder, or run 'postwire journal repair'", errMarker, path)
	}
	return m, err
}

// parseMarker parses a format marker. Its error may be errMarker.
func parseMarker(text string) (m marker, err error) {
	fields := strings.Fields(text)
	if len(fields) < 2 || fields[0] != formatName {
		return m, errMarker
	}
	version, err := strconv.Atoi(fields[1])
	if err != nil {
		return m, errMarker
	}
	if version != formatVersion {
		return m, fmt.Errorf("it was written in format %d by another version of postwire, this version reads format %d: install that version again, or set journal.dir to a new folder", version, formatVersion)
	}
	if len(fields) != 4 {
		return m, errMarker
	}
	salt, err := strconv.ParseUint(fields[2], 16, 32)
	if err != nil {
		return m, errMarker
	}
	m.salt = uint32(salt)
	if m.id, err = uuid.Parse(fields[3]); err != nil || m.String() != text {
		return m, errMarker
	}
	return m, nil
}

func readFile(fsys vfs.FS, path string) (string, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return "", err
	}
	b := make([]byte, 256)
	n, err := f.ReadAt(b, 0)
	if err != nil && n == 0 {
		return "", errors.Join(err, f.Close())
	}
	return string(b[:n]), f.Close()
}

// writeFile writes a small file atomically.
func writeFile(fsys vfs.FS, dir, name, text string) error {
	tmp := fsys.PathJoin(dir, name+".tmp")
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = f.Write([]byte(text))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := fsys.Rename(tmp, fsys.PathJoin(dir, name)); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return syncDir(fsys, dir)
}
