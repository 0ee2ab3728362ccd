// Package figures writes measured figures into pages of the documentation.
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

// Book collects the rows of tables. The methods may be called concurrently.
type Book struct {
	heads map[string]string // heads of tables in Markdown, by table
	mu    sync.Mutex
	rows  map[string][]string
}

// NewBook returns a book of tables. A head has two lines of Markdown.
func NewBook(heads map[string]string) *Book { return &Book{heads: heads, rows: map[string][]string{}} }

// Add appends a row to a table, and logs the row.
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

// Write writes the tables with rows between their marks in a page, below a line with date,
// machine and conditions.
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

// machine describes this machine.
func machine() string {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return fmt.Sprintf("%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	}
	return fmt.Sprintf("%s/%s %s, %d cores of %s, memory %s", runtime.GOOS, runtime.GOARCH, bytes.TrimSpace(kernel), runtime.NumCPU(),
		valueOf("/proc/cpuinfo", "model name"), valueOf("/proc/meminfo", "MemTotal"))
}

// valueOf returns the first value of a name in a file of /proc.
func valueOf(file, name string) string {
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
