package forwarded

import (
	"net/http"
	"net/netip"
	"testing"
)

func proxied() Proxies {
	return Proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ffff::/48")}
}

// Who sent a request is what the proxies say of it; where they say nothing that
// can be read, nobody did, and never the proxy.
func TestRemote(t *testing.T) {
	const unknown = "invalid IP"
	for _, tt := range []struct {
		name, peer   string
		list, fields []string // X-Forwarded-For, Forwarded
		want         string
	}{
		{"no proxy", "192.0.2.1", nil, nil, "192.0.2.1"},
		{"a stranger's word", "192.0.2.1", []string{"203.0.113.7"}, []string{"for=203.0.113.7"}, "192.0.2.1"},
		{"a proxy that asks itself", "10.1.1.1", nil, nil, "10.1.1.1"},
		{"an address", "10.1.1.1", []string{"203.0.113.7"}, nil, "203.0.113.7"},
		{"a port, as Azure writes it", "10.1.1.1", []string{"203.0.113.7:41234"}, nil, "203.0.113.7"},
		{"IPv6", "10.1.1.1", []string{"2001:db8::7"}, nil, "2001:db8::7"},
		{"IPv6 in brackets", "10.1.1.1", []string{"[2001:db8::7]"}, nil, "2001:db8::7"},
		{"IPv6 with a port", "10.1.1.1", []string{"[2001:db8::7]:41234"}, nil, "2001:db8::7"},
		{"IPv4 in IPv6", "10.1.1.1", []string{"::ffff:203.0.113.7"}, nil, "203.0.113.7"},
		{"quotes", "10.1.1.1", []string{`"203.0.113.7:41234"`}, nil, "203.0.113.7"},
		{"quotes around IPv6", "10.1.1.1", []string{`"[2001:db8::7]:1"`}, nil, "2001:db8::7"},
		{"white space", "10.1.1.1", []string{"  203.0.113.7\t"}, nil, "203.0.113.7"},
		{"a trailing comma", "10.1.1.1", []string{"203.0.113.7, "}, nil, "203.0.113.7"},
		{"commas alone between", "10.1.1.1", []string{"203.0.113.7,,, 10.2.2.2:80 ,"}, nil, "203.0.113.7"},
		{"several proxies", "10.1.1.1", []string{"198.51.100.9, 203.0.113.7:1, 10.3.3.3, [2001:db8:ffff::1]:443"}, nil, "203.0.113.7"},
		{"several lines", "10.1.1.1", []string{"198.51.100.9, 203.0.113.7", "10.3.3.3"}, nil, "203.0.113.7"},
		{"the proxies alone", "10.1.1.1", []string{"10.9.9.9, 10.3.3.3"}, nil, "10.9.9.9"},
		{"before the sender anything may stand", "10.1.1.1", []string{"garbage, 203.0.113.7"}, nil, "203.0.113.7"},
		{"unknown", "10.1.1.1", []string{"unknown"}, nil, unknown},
		{"unknown behind proxies", "10.1.1.1", []string{"203.0.113.7, unknown, 10.3.3.3"}, nil, unknown},
		{"a name", "10.1.1.1", []string{"sender.example.com"}, nil, unknown},
		{"an empty header", "10.1.1.1", []string{""}, nil, unknown},
		{"nothing but commas", "10.1.1.1", []string{" , ,"}, nil, unknown},
		{"a port that is none", "10.1.1.1", []string{"203.0.113.7:99999"}, nil, unknown},
		{"a port without digits", "10.1.1.1", []string{"203.0.113.7:"}, nil, unknown},
		{"brackets that do not close", "10.1.1.1", []string{"[2001:db8::7"}, nil, unknown},
		{"behind the brackets", "10.1.1.1", []string{"[2001:db8::7]41234"}, nil, unknown},
		{"IPv4 in brackets", "10.1.1.1", []string{"[203.0.113.7]"}, nil, unknown},
		{"a quote that does not close", "10.1.1.1", []string{`"203.0.113.7`}, nil, unknown},
		{"octal", "10.1.1.1", []string{"203.0.113.007"}, nil, unknown},

		{"Forwarded", "10.1.1.1", nil, []string{"for=203.0.113.7"}, "203.0.113.7"},
		{"Forwarded in any case, with other parameters", "10.1.1.1", nil, []string{"By=10.1.1.1;FOR=203.0.113.7 ; proto=https;host=x"}, "203.0.113.7"},
		{"Forwarded with a port", "10.1.1.1", nil, []string{`for="203.0.113.7:41234"`}, "203.0.113.7"},
		{"Forwarded with a port without quotes", "10.1.1.1", nil, []string{`for=203.0.113.7:41234`}, "203.0.113.7"},
		{"Forwarded with a hidden port", "10.1.1.1", nil, []string{`for="203.0.113.7:_hidden.1"`}, "203.0.113.7"},
		{"Forwarded with IPv6", "10.1.1.1", nil, []string{`for="[2001:db8::7]:4711"`}, "2001:db8::7"},
		{"Forwarded with an escape", "10.1.1.1", nil, []string{`for="203.0.113\.7"`}, "203.0.113.7"},
		{"Forwarded over proxies", "10.1.1.1", nil, []string{"for=198.51.100.9, for=203.0.113.7", `for="10.2.2.2:1";by="a,b;for=192.0.2.9"`}, "203.0.113.7"},
		{"Forwarded of an unknown one", "10.1.1.1", nil, []string{"for=203.0.113.7, for=unknown"}, unknown},
		{"Forwarded of a hidden one", "10.1.1.1", nil, []string{"for=_secret"}, unknown},
		{"Forwarded without for", "10.1.1.1", nil, []string{"proto=https"}, unknown},
		{"Forwarded with for twice", "10.1.1.1", nil, []string{"for=203.0.113.7;for=198.51.100.9"}, unknown},
		{"Forwarded with a quote that does not close", "10.1.1.1", nil, []string{`for="203.0.113.7, for=198.51.100.9`}, unknown},
		{"Forwarded that is empty", "10.1.1.1", nil, []string{""}, unknown},
		// A stranger opens a quote that would swallow what the proxy appends.
		{"Forwarded with a quote across lines", "10.1.1.1", nil, []string{`for=1.2.3.4;x="`, `for="[2001:db8::1]"`}, unknown},
		{"Forwarded with a quote across elements", "10.1.1.1", nil, []string{`for=1.2.3.4;x=", for="203.0.113.9:4711"`}, unknown},
		{"Forwarded with an escaped quote across elements", "10.1.1.1", nil, []string{`for=1.2.3.4;x="\", for="203.0.113.9:4711"`}, unknown},
		{"Forwarded with two quotes across elements", "10.1.1.1", nil, []string{`for=1.2.3.4;x="", for="203.0.113.9:4711"`}, "203.0.113.9"},
		{"Forwarded with text behind a quote", "10.1.1.1", nil, []string{`for=1.2.3.4;x="a"b"c"`}, unknown},
		{"Forwarded with an escape at the end", "10.1.1.1", nil, []string{`for=1.2.3.4;x="a\"`}, unknown},
		{"a list with a quote across items", "10.1.1.1", []string{`1.2.3.4, ", 203.0.113.9`}, nil, unknown},
		{"a list with a quote across lines", "10.1.1.1", []string{`1.2.3.4, "`, `203.0.113.9, "`}, nil, unknown},

		{"both, and they agree", "10.1.1.1", []string{"203.0.113.7, 10.2.2.2"}, []string{"for=203.0.113.7"}, "203.0.113.7"},
		{"both, and the stranger wrote one of them", "10.1.1.1", []string{"203.0.113.7"}, []string{"for=198.51.100.9"}, unknown},
		{"both, and one cannot be read", "10.1.1.1", []string{"203.0.113.7"}, []string{"for=unknown"}, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			if tt.list != nil {
				h["X-Forwarded-For"] = tt.list
			}
			if tt.fields != nil {
				h["Forwarded"] = tt.fields
			}
			if got := proxied().Remote(netip.MustParseAddr(tt.peer), &http.Request{Header: h}); got.String() != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func TestOriginOfForwarded(t *testing.T) {
	for name, tt := range map[string]struct {
		header       http.Header
		scheme, host string
	}{
		"Forwarded":                          {http.Header{"Forwarded": {"for=1.2.3.4;host=evil, for=1.2.3.4;proto=HTTPS;host=\"hooks.example.com:8443\""}}, "https", "hooks.example.com:8443"},
		"Forwarded beside X-Forwarded-For":   {http.Header{"Forwarded": {"proto=https;host=evil"}, "X-Forwarded-For": {"1.2.3.4"}}, "http", "relay"},
		"Forwarded beside X-Forwarded-Proto": {http.Header{"Forwarded": {"host=evil"}, "X-Forwarded-Proto": {"https"}}, "https", "relay"},
		"Forwarded without them":             {http.Header{"Forwarded": {"for=1.2.3.4"}}, "http", "relay"},
	} {
		if scheme, host := proxied().Origin(netip.MustParseAddr("10.1.1.1"), &http.Request{Host: "relay", Header: tt.header}); scheme != tt.scheme || host != tt.host {
			t.Errorf("%s: %s://%s, want %s://%s", name, scheme, host, tt.scheme, tt.host)
		}
		if scheme, host := proxied().Origin(netip.MustParseAddr("192.0.2.1"), &http.Request{Host: "relay", Header: tt.header}); scheme != "http" || host != "relay" {
			t.Errorf("%s of a stranger: %s://%s", name, scheme, host)
		}
	}
}

// FuzzRemote: no header makes the sender be the proxy, unless the proxies say so.
func FuzzRemote(f *testing.F) {
	f.Add("203.0.113.7:41234", `for="[2001:db8::7]:1";by=x`)
	f.Add(`"`, `for="\`)
	f.Add(",", ";")
	peer := netip.MustParseAddr("10.1.1.1")
	f.Fuzz(func(t *testing.T, list, element string) {
		s := proxied()
		for _, h := range []http.Header{{"X-Forwarded-For": {list}}, {"Forwarded": {element}}, {"X-Forwarded-For": {list}, "Forwarded": {element}}} {
			got := s.Remote(peer, &http.Request{Header: h})
			if got == peer && len(h) == 1 && parseHop(list) != peer && !containsPeer(list+element) {
				t.Errorf("%v makes the proxy the sender", h)
			}
			_, _ = s.Origin(peer, &http.Request{Header: h})
		}
	})
}

// containsPeer reports whether a text names the proxy itself.
func containsPeer(text string) bool {
	for _, item := range items([]string{text}) {
		if parseHop(item) == netip.MustParseAddr("10.1.1.1") || parseHop(parameters(item)["for"]) == netip.MustParseAddr("10.1.1.1") {
			return true
		}
	}
	return false
}
