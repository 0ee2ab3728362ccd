// Package forwarded reads the sender and the URL of a request from the headers of trusted
// proxies: X-Forwarded-* or Forwarded (RFC 7239).
//
// A proxy that writes one of the headers passes the other header on unchanged, so a
// stranger may have written it. Therefore both headers must name one address, and Forwarded
// is used for the URL only without X-Forwarded-*.
package forwarded

import (
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Proxies are the networks of the trusted proxies.
type Proxies []netip.Prefix

// Peer returns the remote address of the connection; invalid for a connection without an
// address.
func Peer(hr *http.Request) netip.Addr { return Address(hr.RemoteAddr) }

// Address returns the address of a host and port; invalid without an address.
func Address(hostport string) netip.Addr {
	addr, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Addr().Unmap()
}

// Network returns the network that counts as one remote address: of IPv6 the /64, because
// a customer gets a whole /64. All unknown addresses share the zero prefix.
func Network(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		bits = 64
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return network
}

// Trust reports whether an address belongs to a trusted proxy.
func (p Proxies) Trust(addr netip.Addr) bool {
	return slices.ContainsFunc(p, func(network netip.Prefix) bool { return network.Contains(addr) })
}

const (
	forwardedFor   = "X-Forwarded-For"
	forwardedProto = "X-Forwarded-Proto"
	forwardedHost  = "X-Forwarded-Host"
	forwarded      = "Forwarded"
)

// NamesSender reports whether a header names a sender, true or false.
func NamesSender(h http.Header) bool { return len(h[forwardedFor])+len(h[forwarded]) > 0 }

// Remote returns the address of the sender: of the connection, or for a trusted proxy the
// last address in its headers that is not a trusted proxy. If a proxy names anything else
// than an address, the result is invalid: the sender is unknown, and never the proxy.
func (p Proxies) Remote(peer netip.Addr, hr *http.Request) netip.Addr {
	if !p.Trust(peer) {
		return peer
	}
	list, elements := hr.Header.Values(forwardedFor), hr.Header.Values(forwarded)
	byList := p.walk(peer, items(list))
	var hops []string
	for _, element := range items(elements) {
		hop, ok := parameters(element)["for"]
		if !ok {
			hop = "unknown"
		}
		hops = append(hops, hop)
	}
	byElement := p.walk(peer, hops)
	switch {
	case len(list) == 0 && len(elements) == 0:
		return peer
	case len(elements) == 0:
		return byList
	case len(list) == 0 || byList == byElement:
		return byElement
	}
	return netip.Addr{}
}

// walk goes back over the hops, from the nearest proxy to the first hop that is not a
// trusted proxy.
func (p Proxies) walk(peer netip.Addr, hops []string) netip.Addr {
	if len(hops) == 0 { // the header names no sender
		return netip.Addr{}
	}
	addr := peer
	for _, hop := range slices.Backward(hops) {
		if !p.Trust(addr) {
			break
		}
		addr = parseHop(hop)
	}
	return addr
}

// parseHop parses an address with optional port, brackets and quotes; invalid without an
// address.
func parseHop(text string) netip.Addr {
	text = strings.TrimSpace(text)
	if n := len(text); n > 1 && text[0] == '"' && text[n-1] == '"' {
		text = strings.TrimSpace(text[1 : n-1])
	}
	host, port, hasPort := text, "", false
	if inner, ok := strings.CutPrefix(text, "["); ok {
		var closed bool
		if host, port, closed = strings.Cut(inner, "]"); !closed || !strings.Contains(host, ":") {
			return netip.Addr{}
		}
		if port != "" {
			if port, hasPort = strings.CutPrefix(port, ":"); !hasPort {
				return netip.Addr{}
			}
		}
	} else if strings.Count(text, ":") == 1 { // IPv4 with a port: IPv6 has more colons and needs brackets
		host, port, hasPort = strings.Cut(text, ":")
	}
	if hasPort && !isPort(port) {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return addr.WithZone("").Unmap()
}

// isPort reports whether text is a port or an obfuscated port (RFC 7239, section 6.3).
func isPort(text string) bool {
	if name, ok := strings.CutPrefix(text, "_"); ok {
		return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
	}
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}

// items returns the items of a list header from all of its lines, or none if a line is
// malformed. A quote must end in its line: a quote that a stranger opens must not swallow
// what a proxy appends.
func items(lines []string) (all []string) {
	for _, line := range lines {
		some, ok := splitQuoted(line, ',')
		if !ok {
			return nil
		}
		all = append(all, some...)
	}
	return all
}

// splitQuoted splits a list at separators outside quotes, without empty items. It returns
// false for an open quote.
func splitQuoted(text string, separator byte) (items []string, ok bool) {
	quoted, from := false, 0
	add := func(item string) {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	for i := 0; i < len(text); i++ {
		switch {
		case quoted && text[i] == '\\':
			i++
		case text[i] == '"':
			quoted = !quoted
		case text[i] == separator && !quoted:
			add(text[from:i])
			from = i + 1
		}
	}
	add(text[from:])
	return items, !quoted
}

// parameters parses one element of Forwarded, by lower-case name. A repeated name has no
// value, because readers might use different ones. An element with a value that is neither
// a token nor a quoted string has no parameters.
func parameters(element string) map[string]string {
	all, seen := map[string]string{}, map[string]bool{}
	pairs, _ := splitQuoted(element, ';') // items has checked the quotes
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || seen[name] {
			delete(all, name)
			seen[name] = true
			continue
		}
		seen[name] = true
		if all[name], ok = unquote(strings.TrimSpace(value)); !ok {
			return nil
		}
	}
	return all
}

// unquote decodes a token or a quoted string, and reports whether the text is one of them.
func unquote(text string) (string, bool) {
	if !strings.Contains(text, `"`) {
		return text, true
	}
	n := len(text)
	if n < 2 || text[0] != '"' || text[n-1] != '"' {
		return "", false
	}
	var b strings.Builder
	for i := 1; i < n-1; i++ {
		switch {
		case text[i] == '"':
			return "", false
		case text[i] == '\\' && i+1 == n-1: // the closing quote is escaped
			return "", false
		case text[i] == '\\':
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String(), true
}

// Origin returns the scheme and host of the request: of the connection, or from the headers
// of a trusted proxy. Of several values the last one is valid, because the nearest proxy
// wrote it.
func (p Proxies) Origin(peer netip.Addr, hr *http.Request) (scheme, host string) {
	scheme, host = "http", hr.Host
	if hr.TLS != nil {
		scheme = "https"
	}
	if !p.Trust(peer) {
		return scheme, host
	}
	proto, name := last(hr.Header[forwardedProto]), last(hr.Header[forwardedHost])
	if len(hr.Header[forwardedFor])+len(hr.Header[forwardedProto])+len(hr.Header[forwardedHost]) == 0 {
		if elements := items(hr.Header[forwarded]); len(elements) > 0 {
			said := parameters(elements[len(elements)-1])
			proto, name = said["proto"], said["host"]
		}
	}
	if told := strings.ToLower(proto); told == "http" || told == "https" {
		scheme = told
	}
	if name != "" {
		host = name
	}
	return scheme, host
}

// last returns the last item of a list header.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	list := values[len(values)-1]
	return strings.TrimSpace(list[strings.LastIndexByte(list, ',')+1:])
}
