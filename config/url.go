package config

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
)

// URL is a URL, or several URLs separated by commas, in the format of a client
// library. Every way of printing a URL hides the user name, the password or the
// token before the host, and the values of the query. Only Reveal returns the
// whole text.
type URL string

// Reveal returns the URL with credentials.
func (u URL) Reveal() string { return string(u) }

// String returns the URL without credentials.
func (u URL) String() string {
	if end := strings.IndexAny(string(u), "?#"); end >= 0 && strings.Contains(string(u[end:]), "@") {
		return hidden // may be a password with an unescaped ? or #
	}
	list, query, queried := strings.Cut(string(u), "?")
	urls := strings.Split(list, ",")
	for i, text := range urls {
		trimmed := strings.TrimSpace(text)
		parsed, scheme, err := parseURL(trimmed)
		switch {
		case err != nil: // the parts are unknown
			trimmed = hidden
		case parsed.User != nil:
			trimmed = scheme + hidden + trimmed[strings.LastIndexByte(trimmed, '@'):]
			if strings.Contains(parsed.Path, "@") {
				trimmed = scheme + hidden + "@" + parsed.Host + parsed.EscapedPath()
			}
		}
		urls[i] = trimmed
	}
	list = strings.Join(urls, ",")
	if !queried {
		return list
	}
	query, fragment, hasFragment := strings.Cut(query, "#")
	parts := strings.Split(query, "&")
	for i, part := range parts {
		name, _, named := strings.Cut(part, "=")
		switch {
		case named:
			parts[i] = name + "=" + hidden
		case part != "":
			parts[i] = hidden
		}
	}
	list += "?" + strings.Join(parts, "&")
	if hasFragment {
		list += "#" + fragment
	}
	return list
}

// parseURL parses a single URL. A NATS client allows a URL without a scheme.
// The scheme is returned as written, with ://.
func parseURL(text string) (u *url.URL, scheme string, err error) {
	if before, _, ok := strings.Cut(text, "://"); ok {
		u, err = url.Parse(text)
		return u, before + "://", err
	}
	u, err = url.Parse("nats://" + text)
	return u, "", err
}

// minQuerySecret is the minimum length in bytes of a secret in a query: shorter
// values are versions and switches.
const minQuerySecret = 6

// secrets returns the credentials in the URL, escaped and unescaped.
func (u URL) secrets() []Secret {
	var all []Secret
	add := func(texts ...string) {
		for _, text := range texts {
			all = append(all, Secret(text))
		}
	}
	for text := range strings.SplitSeq(string(u), ",") {
		parsed, _, err := parseURL(strings.TrimSpace(text))
		if err != nil {
			continue
		}
		if user := parsed.User; user != nil {
			written := user.String()
			if password, ok := user.Password(); ok {
				_, escaped, _ := strings.Cut(written, ":")
				add(written, user.Username()+":"+password, password, escaped)
			} else {
				add(written, user.Username())
			}
		}
	}
	_, query, _ := strings.Cut(string(u), "?")
	query, _, _ = strings.Cut(query, "#")
	for part := range strings.SplitSeq(query, "&") {
		_, value, named := strings.Cut(part, "=")
		if !named {
			value = part
		}
		if meant, err := url.QueryUnescape(value); err == nil && len(value) >= minQuerySecret {
			add(value, meant)
		}
	}
	return all
}

// GoString returns the quoted text of String.
func (u URL) GoString() string { return strconv.Quote(u.String()) }

// Format prints the text of String for every verb.
func (u URL) Format(f fmt.State, verb rune) {
	text := u.String()
	if verb == 'q' || (verb == 'v' && f.Flag('#')) {
		text = u.GoString()
	}
	_, _ = io.WriteString(f, text) // fmt.State keeps the error
}

// MarshalText encodes the text of String.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }
