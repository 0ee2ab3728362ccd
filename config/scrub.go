package config

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// shortSecret is the length in bytes below which a secret is replaced only
	// as a whole word: "nats" must not match in "nats.go".
	shortSecret = 8
	// minSecretForm is the length in bytes below which a text is not hidden: a
	// password of two letters occurs in every message.
	minSecretForm = 3
	// keptGenerations is the number of configurations with known secrets. A
	// connection opened with a rotated secret may still fail with an error that
	// quotes the secret.
	keptGenerations = 16
)

// Scrubber hides secrets in texts of other packages, such as errors of client
// libraries, which quote their arguments. A Scrubber knows the secrets of the
// current configuration and of previous configurations, as written and in the
// forms in which libraries print secrets: quoted, escaped for URLs and JSON, in
// hex and in base64, also inside a longer base64 text such as HTTP basic
// authentication.
//
// A nil Scrubber knows no secret and only hides the credentials of URLs. The
// methods may be called concurrently.
type Scrubber struct {
	mu          sync.Mutex
	generations [][]Secret // the newest last
	current     atomic.Pointer[secretForms]
}

// secretForms are the texts that a Scrubber replaces.
type secretForms struct {
	anywhere *strings.Replacer
	alone    []string // replaced only as a whole word
}

// NewScrubber returns a Scrubber for the given secrets.
func NewScrubber(secrets ...Secret) *Scrubber {
	s := &Scrubber{}
	s.Add(secrets...)
	return s
}

// Add adds the secrets of another configuration.
func (s *Scrubber) Add(secrets ...Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := len(s.generations) - 1; last >= 0 && slices.Equal(s.generations[last], secrets) {
		return
	}
	s.generations = append(s.generations, slices.Clone(secrets))
	s.generations = s.generations[max(0, len(s.generations)-keptGenerations):]

	forms := &secretForms{}
	var all []string
	for _, generation := range s.generations {
		for _, secret := range generation {
			for _, form := range printedForms(secret.Reveal()) {
				if len(form) < shortSecret {
					forms.alone = append(forms.alone, form)
				} else {
					all = append(all, form)
				}
			}
			all = append(all, base64Forms(secret.Reveal())...)
		}
	}
	forms.alone = longestFirst(forms.alone)
	var pairs []string
	for _, form := range longestFirst(all) {
		pairs = append(pairs, form, hidden)
	}
	forms.anywhere = strings.NewReplacer(pairs...)
	s.current.Store(forms)
}

// Text returns text without the secrets, and without the credentials of URLs.
func (s *Scrubber) Text(text string) string {
	if s != nil {
		if forms := s.current.Load(); forms != nil {
			text = forms.anywhere.Replace(text)
			for _, form := range forms.alone {
				text = replaceAlone(text, form, hidden)
			}
		}
	}
	return redactURLs(text)
}

// Error returns an error with the text of err without the secrets. The returned
// error wraps err, so that errors.Is and errors.As work as before; the text of
// an unwrapped error is not scrubbed. Error returns nil for nil.
func (s *Scrubber) Error(err error) error {
	if err == nil {
		return nil
	}
	if text := s.Text(err.Error()); text != err.Error() {
		return &scrubbedError{text, err}
	}
	return err
}

// scrubbedError is an error with a text without secrets.
type scrubbedError struct {
	text string
	err  error
}

func (e *scrubbedError) Error() string { return e.text }

func (e *scrubbedError) Unwrap() error { return e.err }

// printedForms returns the forms of a text in the output of fmt, net/url,
// encoding/json and encoding/hex.
func printedForms(text string) []string {
	quoted, ascii := strconv.Quote(text), strconv.QuoteToASCII(text)
	all := []string{
		text, quoted[1 : len(quoted)-1], ascii[1 : len(ascii)-1],
		url.QueryEscape(text), url.PathEscape(text), url.UserPassword("", text).String()[1:],
		hex.EncodeToString([]byte(text)), strings.ToUpper(hex.EncodeToString([]byte(text))),
	}
	for _, escapeHTML := range []bool{true, false} {
		var out bytes.Buffer
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(escapeHTML)
		if e.Encode(text) == nil {
			written := strings.TrimSuffix(out.String(), "\n")
			all = append(all, written[1:len(written)-1])
		}
	}
	if trimmed := strings.TrimSpace(text); trimmed != text {
		all = append(all, trimmed)
	}
	return slices.DeleteFunc(longestFirst(all), func(form string) bool { return len(form) < minSecretForm })
}

// base64Forms returns the text in base64, and the part of the base64 text that
// is independent of the offset inside a longer text.
func base64Forms(text string) []string {
	const minCore = 6 // characters of base64; shorter ones stand in other words by chance
	var all []string
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			core := encoding.EncodeToString(append(make([]byte, before), text...))
			// These characters also contain bits of the bytes before and after
			// the text.
			core = core[(before*8+5)/6:]
			if (before+len(text))%3 != 0 {
				core = core[:max(0, len(core)-1)]
			}
			if len(core) >= minCore {
				all = append(all, core)
			}
		}
		if whole := encoding.EncodeToString([]byte(text)); len(whole) >= minCore {
			padding := strings.Repeat("=", (4-len(whole)%4)%4)
			all = append(all, whole, whole+padding)
		}
	}
	return all
}

// longestFirst sorts texts, so that the longest text with a common prefix is
// replaced, and removes repeats.
func longestFirst(texts []string) []string {
	slices.SortFunc(texts, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b)) })
	return slices.Compact(texts)
}

var (
	// urlCredentials finds the text before the host of a URL.
	urlCredentials = regexp.MustCompile(`://[^/?#\s"'<>]*@`)
	// urlQuery finds the query of a URL.
	urlQuery = regexp.MustCompile(`(://[^?\s"'<>]*)\?[^#\s"'<>]+`)
)

// redactURLs hides the credentials and the queries of the URLs in text.
func redactURLs(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	text = urlCredentials.ReplaceAllString(text, "://"+hidden+"@")
	return urlQuery.ReplaceAllString(text, "${1}?"+hidden)
}
