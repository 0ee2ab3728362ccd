package config

import (
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

const byteOrderMark = '\uFEFF'

// Stray says what stands around a secret and can hardly be part of it: white
// space, line breaks, a byte order mark, quotes. A secret with such an end
// passes every other check, and then no signature and no login fits. Stray
// returns two empty texts where there is nothing, and shows nothing of the
// secret itself.
func Stray(text string) (what, hint string) {
	if text == "" {
		return "", ""
	}
	if strings.TrimFunc(text, isStray) == "" {
		return "is nothing but white space", "write the secret"
	}
	first, _ := utf8.DecodeRuneInString(text)
	last, _ := utf8.DecodeLastRuneInString(text)
	switch {
	case isStray(first):
		return "begins with " + strayName(first, text), "remove it"
	case isStray(last):
		return "ends with " + strayName(last, text), "remove it"
	}
	for _, pair := range []struct {
		open, shut rune
		name       string
	}{
		{'"', '"', "double quotes"},
		{'\'', '\'', "single quotes"},
		{'`', '`', "backquotes"},
		{'“', '”', "typographic quotes"},
		{'„', '“', "typographic quotes"},
		{'‘', '’', "typographic quotes"},
		{'«', '»', "angle quotes"},
	} {
		if first == pair.open && last == pair.shut && utf8.RuneCountInString(text) > 1 {
			return "is in " + pair.name + ", which would be part of the secret", "remove the quotes inside of the value"
		}
	}
	return "", ""
}

// isStray reports whether a rune is white space or invisible.
func isStray(r rune) bool {
	return unicode.IsSpace(r) || unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Cf, r)
}

// strayName names a stray rune at an end of text.
func strayName(r rune, text string) string {
	switch r {
	case byteOrderMark:
		return "a byte order mark (BOM)"
	case ' ':
		return "a space"
	case '\t':
		return "a tab"
	case '\r':
		return "a carriage return (CR)"
	case '\n':
		if strings.HasSuffix(text, "\r\n") {
			return "a line break (CR LF)"
		}
		return "a line break (LF)"
	}
	if unicode.IsSpace(r) {
		return fmt.Sprintf("white space (%U)", r)
	}
	return fmt.Sprintf("an invisible character (%U)", r)
}

// ReadSecret reads a secret from a file as ${file:…} does: without one line
// break at the end. The error names the file and shows nothing of the secret.
func ReadSecret(path string) (Secret, error) {
	data, err := readRegular(path, maxFile)
	if err != nil {
		return "", fmt.Errorf("file %s %s", path, fileReason(err))
	}
	secret := Secret(withoutLineBreak(string(data)))
	if err := secret.check(); err != nil {
		return "", fmt.Errorf("the secret in file %s %w", path, err)
	}
	return secret, nil
}

// LookupSecret returns the secret in an environment variable, which is empty
// where the variable is not set. The error shows nothing of the secret.
func LookupSecret(variable string) (Secret, error) {
	secret := Secret(os.Getenv(variable))
	if err := secret.check(); err != nil {
		return "", fmt.Errorf("the secret in environment variable %s %w", variable, err)
	}
	return secret, nil
}
