package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSecretsAreWrittenForTheirOwner: whatever exists at the path, writeSecret creates a
// new file with mode 0600, and writes no other file.
func TestSecretsAreWrittenForTheirOwner(t *testing.T) {
	const secret, others = "whsec_of_the_tests\n", "somebody else's"
	for name, prepare := range map[string]func(path, other string) error{
		"nothing":              func(string, string) error { return nil },
		"a file for everybody": func(path, _ string) error { return os.WriteFile(path, nil, 0o666) },
		"a link":               func(path, other string) error { return os.Symlink(other, path) },
		"a link to be":         func(path, other string) error { return os.Symlink(other, path+".new") },
		"a hard link":          func(path, other string) error { return os.Link(other, path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, other := filepath.Join(dir, "secret"), filepath.Join(t.TempDir(), "other")
			if err := os.WriteFile(other, []byte(others), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := prepare(path, other); err != nil {
				t.Fatal(err)
			}
			if err := writeSecret(path, []byte(secret)); err != nil {
				t.Fatal(err)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != secret {
				t.Errorf("the file has %q, %v", text, err)
			}
			if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("the file's mode is %v, %v", info.Mode(), err)
			}
			if text, err := os.ReadFile(other); err != nil || string(text) != others {
				t.Errorf("another file has %q, %v", text, err)
			}
		})
	}
	if err := writeSecret(filepath.Join(t.TempDir(), "missing", "secret"), []byte(secret)); err == nil {
		t.Error("a secret was written to a missing folder")
	}
}
