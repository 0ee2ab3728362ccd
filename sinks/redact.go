package sinks

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postwire/postwire/config"
)

// Redact selects the fields of event data to hide from a sink. A field is a
// name, such as user_email, at any depth; or a JSON pointer (RFC 6901), such as
// /result/error, for a single position.
type Redact struct {
	Drop []string      `yaml:"drop" doc:"Fields to remove from the data: a name such as title, at any depth, or a JSON pointer such as /result/error." example:"[title, caption]"`
	Hash []string      `yaml:"hash" doc:"Fields to replace by a keyed digest of the value, hmac-sha256: and 64 hex digits. Equal values give equal digests, and guessing a value needs the key. A field is written as in drop." example:"[user_email]"`
	Key  config.Secret `yaml:"key" doc:"Key of the digests, as a long random text from openssl rand -hex 32. A different key gives different digests." example:"${REDACT_KEY}"`
}

// minRedactKey is the minimum length of a key: a shorter key can be guessed.
const minRedactKey = 16

// Validate reports all errors.
func (r Redact) Validate() error {
	var p config.Invalids
	for _, list := range []struct {
		key    string
		fields []string
	}{{"drop", r.Drop}, {"hash", r.Hash}} {
		for i, field := range list.fields {
			switch key := fmt.Sprintf("%s[%d]", list.key, i); {
			case field == "" || field == "/":
				p.Add(key, "names no field", "use a name such as user_email, or a JSON pointer such as /result/error")
			case slices.Contains(list.fields[:i], field):
				p.Add(key, fmt.Sprintf("%s is listed twice", field), "remove one of the two")
			case list.key == "hash" && slices.Contains(r.Drop, field):
				p.Add(key, fmt.Sprintf("%s is dropped already", field), "remove it from one of the two lists")
			case strings.HasPrefix(field, "/") && !isPointer(field):
				p.Add(key, fmt.Sprintf("%s is not a JSON pointer", field), "write ~1 for a slash in a name, and ~0 for a tilde")
			}
		}
	}
	switch key := r.Key.Reveal(); {
	case len(r.Hash) > 0 && key == "":
		p.Add("key", "is missing, and hash needs one", "set it, for example ${REDACT_KEY}, to what openssl rand -hex 32 makes")
	case key != "" && len(r.Hash) == 0:
		p.Add("key", "has no effect: hash is empty", "list fields under hash, or remove it")
	case key != "" && len(key) < minRedactKey:
		p.Add("key", fmt.Sprintf("has less than %d characters, and could be found by trying", minRedactKey), "make one with openssl rand -hex 32")
	}
	return p.Err()
}

// isPointer reports whether the tildes of a JSON pointer are right.
func isPointer(text string) bool {
	for i := range len(text) {
		if text[i] == '~' && (i+1 == len(text) || text[i+1] != '0' && text[i+1] != '1') {
			return false
		}
	}
	return true
}
