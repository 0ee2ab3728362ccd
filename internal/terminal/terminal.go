// Package terminal escapes text from outside for a terminal, so that text of a sender,
// broker or server cannot move the cursor, color the screen, set a title, send keyboard
// input or change the direction of text.
//
// Escaped characters appear as \u001b, bytes that are not UTF-8 as \xff. The escape of a
// character is the JSON escape, so that escaped JSON stays equivalent JSON.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Text escapes text of several lines: line feeds and tabs stay.
func Text(text string) string {
	var b strings.Builder
	escape(&b, text, func(r rune) bool { return r != '\n' && r != '\t' && unsafe(r) })
	return b.String()
}

// Line escapes text of one line: line feeds and tabs are escaped, too.
func Line(text string) string {
	var b strings.Builder
	escape(&b, text, unsafe)
	return b.String()
}

// unsafe reports whether a terminal may interpret a rune: control characters (C0, DEL, C1),
// line and paragraph separators, and characters that change the direction of text.
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
			// The following line feed has the same effect.
		case unsafe(r):
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			b.WriteString(text[:n])
		}
		text = text[n:]
	}
}

// Writer escapes text for a terminal, as Text does. One goroutine at a time uses a Writer.
type Writer struct {
	to   io.Writer
	rest []byte // bytes of an incomplete rune
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{to: w} }

// Write implements io.Writer. An incomplete rune at the end waits for the next Write or
// Flush.
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

// Flush writes an incomplete rune.
func (w *Writer) Flush() error {
	rest := string(w.rest)
	w.rest = nil
	if rest == "" {
		return nil
	}
	_, err := io.WriteString(w.to, Text(rest))
	return err
}
