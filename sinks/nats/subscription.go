package nats

import (
	"net/url"
	"strings"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Route implements sinks.Config.
func (c Config) Route() sinks.Route {
	subject, _ := event.ParseTemplate(c.Subject) // Validate has parsed the template
	return sinks.Route{Noun: "subject", Key: "subject", Template: subject, Safe: safeToken}
}

// Subscription implements sinks.Config.
func (c Config) Subscription() sinks.Subscription {
	d := sinks.Subscription{Protocol: "nats", ContentMode: c.ContentMode, Address: c.Subject, Stream: c.Stream}
	inURL := false
	for text := range strings.SplitSeq(c.URL.Reveal(), ",") {
		text = strings.TrimSpace(text)
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		u, err := url.Parse(text)
		if err != nil {
			continue // Validate has checked the value
		}
		inURL = inURL || u.User != nil
		s := sinks.Server{Protocol: "nats", Host: u.Host, TLS: c.TLS.Enabled || u.Scheme == "tls" || u.Scheme == "wss"}
		if u.Scheme == "ws" || u.Scheme == "wss" {
			s.Protocol = u.Scheme
		}
		d.Servers = append(d.Servers, s)
	}
	if c.User != "" || c.Token != "" || inURL {
		d.Security = append(d.Security, sinks.Security{Type: "userPassword"})
	}
	if c.CredentialsFile != "" || c.NKeyFile != "" {
		d.Security = append(d.Security, sinks.Security{Type: "asymmetricEncryption"})
	}
	if c.TLS.Enabled && c.TLS.CertFile != "" {
		d.Security = append(d.Security, sinks.Security{Type: "X509"})
	}
	return d
}
