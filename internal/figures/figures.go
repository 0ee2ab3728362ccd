// Package figures writes what long runs measured into the pages that tell it.
package figures

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Book collects the rows of tables. Its methods may be called concurrently.
type Book struct {
	heads map[string]string // by table; in Markdown
	mu    sync.Mutex
	rows  map[string][]string
}

// NewBook makes a book of tables with these heads, each two lines of Markdown.
func NewBook(heads map[string]string) *Book { return &Book{heads: heads, rows: map[string][]string{}} }

// Add puts a row behind those of a table, and into the test's log.
func (b *Book) Add(t testing.TB, table, row string) {
	t.Helper()
	if b.heads[table] == "" {
		t.Fatalf("there is no table %s", table)
	}
	t.Log(row)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows[table] = append(b.rows[table], row)
}

// Write puts the tables that have rows between their marks in the page at path,
// under a line that says when and on what they were measured, and with what
// besides.
func (b *Book) Write(path, besides string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for name, rows := range b.rows {
		begin, end := fmt.Appendf(nil, "<!-- figures: %s -->\n", name), []byte("<!-- end -->")
		before, rest, ok := bytes.Cut(page, begin)
		_, after, ok2 := bytes.Cut(rest, end)
		if !ok || !ok2 {
			return fmt.Errorf("%s has no place for the figures of %s", path, name)
		}
		text := fmt.Sprintf("%s on %s, %s\n\n%s\n%s\n", time.Now().Format("2006-01-02"), machine(), besides, b.heads[name], strings.Join(rows, "\n"))
		page = bytes.Join([][]byte{before, begin, []byte(text), end, after}, nil)
	}
	return os.WriteFile(path, page, 0o644) //nolint:gosec // a page of the documentation
}

// machine says on what this runs, as far as the system tells.
func machine() string {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return fmt.Sprintf("%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	}
	return fmt.Sprintf("%s/%s %s, %d cores of %s, memory %s", runtime.GOOS, runtime.GOARCH, bytes.TrimSpace(kernel), runtime.NumCPU(),
		said("/proc/cpuinfo", "model name"), said("/proc/meminfo", "MemTotal"))
}

// said is what a file of /proc says of a name first.
func said(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
