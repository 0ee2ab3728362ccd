package config

import (
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

const bom = '\uFEFF'

// Stray finds characters around a secret that can hardly be part of the secret:
// white space, line breaks, a byte order mark, quotes. Such a secret passes
// every other check, and then every signature and login fails. Stray returns
// two empty texts if there is nothing to report. The returned texts contain no
// part of the secret.
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
	case bom:
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

// ReadSecret reads a secret from a file like ${file:…}: without a final line
// break. The error contains the name of the file and no part of the secret.
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

// LookupSecret returns the secret in an environment variable, or an empty
// secret if the variable is unset. The error contains no part of the secret.
func LookupSecret(variable string) (Secret, error) {
	secret := Secret(os.Getenv(variable))
	if err := secret.check(); err != nil {
		return "", fmt.Errorf("the secret in environment variable %s %w", variable, err)
	}
	return secret, nil
}
