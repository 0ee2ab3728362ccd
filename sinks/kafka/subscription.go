package kafka

import (
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Route implements sinks.Config.
func (c Config) Route() sinks.Route {
	topic, _ := event.ParseTemplate(c.Topic) // Validate has parsed the template
	return sinks.Route{Noun: "topic", Key: "topic", Template: topic, Safe: safeTopic}
}

// Subscription implements sinks.Config.
func (c Config) Subscription() sinks.Subscription {
	d := sinks.Subscription{Protocol: "kafka", ContentMode: c.ContentMode, Address: c.Topic}
	if c.Create {
		d.Partitions, d.Replicas = c.Partitions, c.ReplicationFactor
	}
	protocol := "kafka"
	if c.TLS.Enabled {
		protocol = "kafka-secure"
	}
	for _, broker := range c.Brokers {
		d.Servers = append(d.Servers, sinks.Server{Protocol: protocol, Host: broker, TLS: c.TLS.Enabled})
	}
	if scheme := map[string]string{"plain": "plain", "scram-sha-256": "scramSha256", "scram-sha-512": "scramSha512"}[c.SASL.Mechanism]; scheme != "" {
		d.Security = append(d.Security, sinks.Security{Type: scheme})
	}
	if c.SASL.Mechanism == bearerSASL {
		d.Security = append(d.Security, sinks.Security{Type: "http", Name: "bearer"})
	}
	if c.TLS.Enabled && c.TLS.CertFile != "" {
		d.Security = append(d.Security, sinks.Security{Type: "X509"})
	}
	return d
}
