package ingress

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postwire/postwire/pkg/event"
)

// Metrics of the ingress.
type Metrics struct {
	requests *prometheus.CounterVec
	latency  prometheus.Histogram
	timeless *prometheus.CounterVec

	connections prometheus.Gauge
	evicted     prometheus.Counter
}

// NewMetrics registers the metrics of the ingress.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_received_total",
			Help: "Requests received, by source and what became of them. The source is empty for unknown paths.",
		}, []string{"source", "outcome"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postwire_journal_append_seconds",
			Help:    "Time from handing events to the journal until they were on stable storage.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		timeless: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_events_without_time_total",
			Help: "Events whose time was missing or could not be read, by source.",
		}, []string{"source"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postwire_ingress_connections",
			Help: "Connections that are open.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postwire_ingress_connections_evicted_total",
			Help: "Idle connections that were closed to make room for a new one, at server.max_connections.",
		}),
	}
	r.MustRegister(m.requests, m.latency, m.timeless, m.connections, m.evicted)
	return m
}

// declare makes the series of a source exist before its first request, so
// that a rate over them is right from the start.
func (m *Metrics) declare(source string) {
	for o := range answers {
		if o != outcomeNotFound {
			m.requests.WithLabelValues(source, string(o))
		}
	}
	m.timeless.WithLabelValues(source)
}

func (m *Metrics) received(source string, o outcome) {
	m.requests.WithLabelValues(source, string(o)).Inc()
}

func (m *Metrics) appended(took time.Duration) { m.latency.Observe(took.Seconds()) }

func (m *Metrics) events(source string, events []event.Event) {
	for _, e := range events {
		if e.CloudEvent.Time().IsZero() {
			m.timeless.WithLabelValues(source).Inc()
		}
	}
}
