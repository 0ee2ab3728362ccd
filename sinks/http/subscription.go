package http

import (
	"cmp"
	"maps"
	"net/url"
	"slices"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Route implements sinks.Config.
func (c Config) Route() sinks.Route {
	u, err := url.Parse(c.URL.Reveal())
	if err != nil {
		return sinks.Route{} // Validate has parsed the template
	}
	return sinks.Route{Noun: "receiver", Template: event.Literal(u.Scheme + "://" + u.Host)}
}

// Subscription implements sinks.Config. The query of the URL is omitted,
// because the query may contain a token.
func (c Config) Subscription() sinks.Subscription {
	d := sinks.Subscription{Protocol: "http", ContentMode: c.ContentMode}
	u, err := url.Parse(c.URL.Reveal())
	if err != nil {
		return sinks.Subscription{} // Validate has checked the value
	}
	d.Address = cmp.Or(u.EscapedPath(), "/")
	d.Servers = []sinks.Server{{Protocol: u.Scheme, Host: u.Host, TLS: u.Scheme == "https"}}
	if c.Basic.Username != "" {
		d.Security = append(d.Security, sinks.Security{Type: "http", Name: "basic"})
	}
	if c.Bearer != "" {
		d.Security = append(d.Security, sinks.Security{Type: "http", Name: "bearer"})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		d.Security = append(d.Security, sinks.Security{Type: "httpApiKey", Name: name})
	}
	if c.TLS.CertFile != "" {
		d.Security = append(d.Security, sinks.Security{Type: "X509"})
	}
	return d
}
