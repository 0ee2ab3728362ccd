package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Scalars are expanded after the document was parsed: a value cannot add keys
// or change the structure of the document, and every node keeps its position in
// the file.

// maxFile limits the size of ${file:…}, so that a wrong path cannot exhaust the
// memory.
const maxFile = 1 << 20

// expansion is a scalar with ${…}: the expanded text, or the reason of the
// failure.
type expansion struct {
	text    string
	outside []fragment // parts of text from outside the document
	fault   *expandFault
}

// fragment is a value from outside the document, and the text to show instead.
type fragment struct{ value, written string }

// expandFault is the reason why a scalar cannot be expanded. The texts contain
// no values.
type expandFault struct {
	what, hint string
	missing    bool // the variable or the file is missing
}

// expander resolves ${…} from the environment and from files.
type expander struct {
	env    func(string) (string, bool)
	folder string            // start of relative paths
	files  map[string]string // stamps of the files in ${file:…}, from before the files were read
}

// expand resolves all ${…} in text. The fragments are the values from outside
// the document.
func (e expander) expand(text string) (string, []fragment, *expandFault) {
	var (
		b      strings.Builder
		values []fragment
	)
	for {
		at := strings.Index(text, "${")
		if at < 0 {
			b.WriteString(text)
			return b.String(), values, nil
		}
		if at > 0 && text[at-1] == '$' {
			b.WriteString(text[:at-1])
			b.WriteString("${")
			text = text[at+2:]
			continue
		}
		b.WriteString(text[:at])
		length := closing(text[at:])
		if length < 0 {
			return "", nil, &expandFault{what: "has a ${ without its }", hint: "write ${NAME}, or $${ for a plain ${"}
		}
		written := text[at : at+length]
		value, outside, fault := e.resolve(written[2 : length-1])
		if fault != nil {
			return "", nil, fault
		}
		if outside {
			values = append(values, fragment{value, written})
		}
		b.WriteString(value)
		text = text[at+length:]
	}
}

// closing returns the length of the ${…} at the start of text, or -1 if the end
// is missing. Inner braces are counted, so that a default may contain a
// template.
func closing(text string) int {
	depth := 0
	for i := range len(text) {
		switch text[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// resolve returns the value of the text between ${ and }, and whether the value
// came from outside the document.
func (e expander) resolve(inner string) (value string, outside bool, fault *expandFault) {
	if path, ok := strings.CutPrefix(inner, "file:"); ok {
		value, fault = e.file(path)
		return value, true, fault
	}
	name, fallback, hasFallback := strings.Cut(inner, ":-")
	if !isVariable(name) {
		// The text is not shown, because the text may be a secret that contains
		// ${.
		return "", false, &expandFault{what: "has an invalid ${", hint: "write ${NAME}, ${NAME:-default} or ${file:/path}, or $${ for a plain ${"}
	}
	if strings.Contains(fallback, "${") {
		return "", false, &expandFault{what: "has a default of ${" + name + "} with a nested ${", hint: "write the default out"}
	}
	value, ok := e.env(name)
	switch {
	case hasFallback && value == "":
		return fallback, false, nil
	case !ok:
		return "", false, &expandFault{what: "environment variable " + name + " is not set", hint: "set the variable, or give a default: ${" + name + ":-default}", missing: true}
	}
	return value, true, nil
}

// file returns the content of a file without a final line break: LF, CR LF or
// CR.
func (e expander) file(path string) (string, *expandFault) {
	if path == "" {
		return "", &expandFault{what: "has a ${file:} without a path", hint: "write ${file:/path}"}
	}
	const hint = "check the path and the permissions of the file"
	if !filepath.IsAbs(path) {
		path = filepath.Join(e.folder, path)
	}
	if _, ok := e.files[path]; !ok {
		e.files[path] = Stamp(path)
	}
	data, err := readRegular(path, maxFile)
	if err != nil {
		return "", &expandFault{fmt.Sprintf("file %s %s", path, fileReason(err)), hint, errors.Is(err, fs.ErrNotExist)}
	}
	if !utf8.Valid(data) {
		return "", &expandFault{what: fmt.Sprintf("file %s is not text in UTF-8", path), hint: "encode it, for example as base64"}
	}
	return withoutLineBreak(string(data)), nil
}

// withoutLineBreak returns text without a final line break of any style.
func withoutLineBreak(text string) string {
	return strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
}

// readRegular reads a file of at most limit bytes. Pipes and devices are
// refused, because reading a pipe may never end.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("path is a folder")
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("path is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("file is larger than %v", Size(limit))
	}
	return data, nil
}

// isVariable reports whether name can be the name of an environment variable.
func isVariable(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// escape returns the text that expands to the given text.
func escape(text string) string { return strings.ReplaceAll(text, "${", "$${") }

// private records the values of a document that must not be shown. Validate
// methods print invalid values and cannot know the origin of a value.
type private struct {
	mu      sync.Mutex
	values  []fragment // from outside the document, the longest first
	secrets []Secret
	scrub   *Scrubber // of secrets; nil after a change
	nodes   map[*yaml.Node]bool
}

// hide marks n and everything below n as not to be shown.
func (s *private) hide(n *yaml.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes = map[*yaml.Node]bool{}
	}
	s.hideAll(n)
}

func (s *private) hideAll(n *yaml.Node) {
	if n = deref(n); n == nil || s.nodes[n] {
		return
	}
	s.nodes[n] = true
	for _, inner := range n.Content {
		s.hideAll(inner)
	}
}

// hides reports whether n must not be shown.
func (s *private) hides(n *yaml.Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[n]
}

// secret records a decoded secret.
func (s *private) secret(secrets ...Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range secrets {
		if secret != "" && !slices.Contains(s.secrets, secret) {
			s.secrets, s.scrub = append(s.secrets, secret), nil
		}
	}
}

// list returns the decoded secrets.
func (s *private) list() []Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.secrets)
}

// value records a value from outside the document, and the text to show
// instead.
func (s *private) value(value, shown string) {
	if value == "" || value == shown {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := fragment{value, shown}
	if slices.Contains(s.values, f) {
		return
	}
	s.values = append(s.values, f)
	slices.SortStableFunc(s.values, func(a, b fragment) int { return cmp.Compare(len(b.value), len(a.value)) })
}

// clean returns text without the values, the secrets and the credentials of URLs.
func (s *private) clean(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.values {
		text = replaceWhole(text, f.value, f.written)
		if quoted := strconv.Quote(f.value); quoted[1:len(quoted)-1] != f.value {
			text = replaceWhole(text, quoted[1:len(quoted)-1], f.written)
		}
	}
	if s.scrub == nil {
		s.scrub = NewScrubber(s.secrets...)
	}
	return s.scrub.Text(text)
}

// replaceWhole replaces value in text. A value of less than four bytes is
// replaced only as a whole word.
func replaceWhole(text, value, shown string) string {
	if len(value) >= 4 {
		return strings.ReplaceAll(text, value, shown)
	}
	return replaceAlone(text, value, shown)
}

// replaceAlone replaces value as a whole word: "5" does not match in "15".
func replaceAlone(text, value, shown string) string {
	var b strings.Builder
	for {
		at := strings.Index(text, value)
		if at < 0 {
			b.WriteString(text)
			return b.String()
		}
		before, _ := utf8.DecodeLastRuneInString(text[:at])
		after, _ := utf8.DecodeRuneInString(text[at+len(value):])
		b.WriteString(text[:at])
		if wordRune(before) || wordRune(after) {
			b.WriteString(value)
		} else {
			b.WriteString(shown)
		}
		text = text[at+len(value):]
	}
}

func wordRune(r rune) bool {
	return r != utf8.RuneError && (r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r))
}
