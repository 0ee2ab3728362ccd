package ingress

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postwire/postwire/internal/httpserver"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
)

// Metrics of the ingress.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	latency  prometheus.Histogram
	stored   *prometheus.CounterVec
	repeats  *prometheus.CounterVec
	timeless *prometheus.CounterVec
	shared   *prometheus.CounterVec
	newest   *identities
	served   atomic.Pointer[httpserver.Certificates] // the certificate; nil without TLS

	connections     prometheus.Gauge
	evicted         prometheus.Counter
	evictedRequests prometheus.Counter
	memory          atomic.Pointer[quotaPool] // nil until there is a server
}

// NewMetrics registers the metrics of the ingress.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_received_total",
			Help: "Received requests, by source and outcome. The source is empty for unknown paths.",
		}, []string{"source", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "postwire_request_seconds",
			Help:    "Time from the header of a request to its answer, by source and outcome.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10}, NativeHistogramBucketFactor: 1.1,
			NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}, []string{"source", "outcome"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postwire_journal_append_seconds",
			Help:    "Time from the append of events to the journal until the events are on stable storage.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15), NativeHistogramBucketFactor: 1.1,
			NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}),
		stored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_events_stored_total",
			Help: "New events on stable storage, by source.",
		}, []string{"source"}),
		repeats: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_dedupe_hits_total",
			Help: "Duplicate events inside the dedupe window, which are not stored, by source.",
		}, []string{"source"}),
		timeless: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_events_without_time_total",
			Help: "Events with a missing or unreadable time, by source.",
		}, []string{"source"}),
		shared: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_events_shared_id_total",
			Help: "Stored events with the CloudEvents source and id of an earlier event, among the last 16384 events of this process, by source. Consumers that compare source and id drop the second event.",
		}, []string{"source"}),
		newest: newIdentities(),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postwire_ingress_connections",
			Help: "Open connections of the webhook port.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postwire_ingress_connections_evicted_total",
			Help: "Connections that were closed at server.max_connections or server.max_buffered_bytes, the connection without data for the longest time first; strangers before authenticated senders.",
		}),
		evictedRequests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postwire_ingress_requests_evicted_total",
			Help: "Requests that were answered 503 at server.max_buffered_bytes before authentication, the request with the longest arrival first; strangers before authenticated senders.",
		}),
	}
	r.MustRegister(m.requests, m.duration, m.latency, m.stored, m.repeats, m.timeless, m.shared, m.connections, m.evicted, m.evictedRequests)
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postwire_ingress_memory_bytes",
		Help: "Memory of connections, headers and bodies that counts toward server.max_buffered_bytes.",
	}, func() float64 {
		if memory := m.memory.Load(); memory != nil {
			return float64(memory.inUse())
		}
		return 0
	}))
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postwire_tls_certificate_expiry_timestamp_seconds",
		Help: "Expiry of the TLS certificate of the webhook port, in Unix seconds: the earliest expiry in the chain. 0 without TLS.",
	}, func() float64 {
		if served := m.served.Load(); served != nil {
			return float64(served.Expiry().Unix())
		}
		return 0
	}))
	return m
}

// sourceMetrics caches the series of one source that most requests update.
type sourceMetrics struct {
	all      *Metrics
	source   string
	accepted prometheus.Counter
	duration prometheus.Observer // of accepted requests
	stored   prometheus.Counter
	repeats  prometheus.Counter
	timeless prometheus.Counter
	shared   prometheus.Counter
}

// of creates the series of a source before the first request, so that a rate is right from
// the start.
func (m *Metrics) of(source string) *sourceMetrics {
	for o := range answers {
		if o != outcomeNotFound {
			m.requests.WithLabelValues(source, string(o))
		}
	}
	return &sourceMetrics{
		all: m, source: source,
		accepted: m.requests.WithLabelValues(source, string(outcomeAccepted)),
		// Other outcomes are rare, and a histogram has many series.
		duration: m.duration.WithLabelValues(source, string(outcomeAccepted)),
		stored:   m.stored.WithLabelValues(source),
		repeats:  m.repeats.WithLabelValues(source),
		timeless: m.timeless.WithLabelValues(source),
		shared:   m.shared.WithLabelValues(source),
	}
}

// deleteSource deletes the series of a removed source.
func (m *Metrics) deleteSource(source string) {
	labels := prometheus.Labels{"source": source}
	for _, vec := range []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}{m.requests, m.duration, m.stored, m.repeats, m.timeless, m.shared} {
		vec.DeletePartialMatch(labels)
	}
}

// unrouted counts a request to an unknown path.
func (m *Metrics) unrouted(o outcome, duration time.Duration) {
	m.requests.WithLabelValues("", string(o)).Inc()
	m.duration.WithLabelValues("", string(o)).Observe(max(0, duration.Seconds()))
}

func (m *sourceMetrics) received(o outcome, duration time.Duration) {
	if o == outcomeAccepted {
		m.accepted.Inc()
		m.duration.Observe(max(0, duration.Seconds()))
		return
	}
	m.all.requests.WithLabelValues(m.source, string(o)).Inc()
	m.all.duration.WithLabelValues(m.source, string(o)).Observe(max(0, duration.Seconds()))
}

func (m *Metrics) appended(duration time.Duration) { m.latency.Observe(duration.Seconds()) }

func (m *sourceMetrics) events(events []event.Event, receipts []journal.Receipt) {
	repeats := 0
	for i, r := range receipts {
		switch {
		case r.Duplicate:
			repeats++
		case m.all.newest.stored(events[i]):
			m.shared.Inc()
		}
	}
	if repeats > 0 {
		m.repeats.Add(float64(repeats))
	}
	if repeats < len(receipts) {
		m.stored.Add(float64(len(receipts) - repeats))
	}
	for _, e := range events {
		if e.CloudEvent.Time().IsZero() {
			m.timeless.Inc()
		}
	}
}
