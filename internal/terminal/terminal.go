// Package terminal makes text from outside harmless for a terminal: text that a
// sender, a broker or a server wrote cannot move the cursor, color the screen,
// set a title, answer for the keyboard or turn the direction of what follows.
//
// What is not shown as it is appears as an escape: \u001b for a character, \xff
// for a byte that is not UTF-8. The escape of a character is the one of JSON, so
// that JSON stays the JSON that it was.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Text returns text of several lines: line feeds and tabs stay.
func Text(text string) string {
	var b strings.Builder
	escape(&b, text, func(r rune) bool { return r != '\n' && r != '\t' && unsafe(r) })
	return b.String()
}

// Line returns text as one line: a line feed or a tab in it is escaped, too.
func Line(text string) string {
	var b strings.Builder
	escape(&b, text, unsafe)
	return b.String()
}

// unsafe reports whether a terminal may do something else with a rune than show
// it: control characters (C0, DEL, C1), line and paragraph separators, and what
// sets or overrides the direction of text.
func unsafe(r rune) bool {
	switch {
	case r < ' ', r >= 0x7f && r <= 0x9f:
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}

func escape(b *strings.Builder, text string, unsafe func(rune) bool) {
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(b, `\x%02x`, text[0])
		case r == '\r' && strings.HasPrefix(text, "\r\n") && !unsafe('\n'):
			// The line feed behind it does all that it does.
		case unsafe(r):
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			b.WriteString(text[:n])
		}
		text = text[n:]
	}
}

// Writer is a Writer to a terminal. All that is written to it passes Text. It may
// be used by one goroutine at a time.
type Writer struct {
	to   io.Writer
	rest []byte // of a rune whose end is not written yet
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{to: w} }

// Write implements io.Writer. A rune that is cut off at the end waits for the
// next Write, or for Flush.
func (w *Writer) Write(p []byte) (int, error) {
	text := append(w.rest, p...)
	whole := len(text)
	for i := 1; i < utf8.UTFMax && i <= len(text); i++ {
		if last := text[len(text)-i:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				whole -= i
			}
			break
		}
	}
	w.rest = append([]byte(nil), text[whole:]...)
	if _, err := io.WriteString(w.to, Text(string(text[:whole]))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what has no end.
func (w *Writer) Flush() error {
	rest := string(w.rest)
	w.rest = nil
	if rest == "" {
		return nil
	}
	_, err := io.WriteString(w.to, Text(rest))
	return err
}
