package admin

import (
	"sync/atomic"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/postwire/postwire/internal/httpserver"
)

// Outcomes of a sign-in.
const (
	signInAccepted = "accepted"
	signInRefused  = "refused" // a wrong token
	signInLimited  = "limited" // a wrong or weak token over the limit
)

// Outcomes of a change.
const (
	changeApplied = "applied"
	changeFailed  = "failed"
	changeDenied  = "denied" // the caller is a viewer, or a page of another site
)

// Metrics are the metrics of the admin port.
type Metrics struct {
	signIns *prometheus.CounterVec
	changes *prometheus.CounterVec
	busy    *prometheus.CounterVec
	tails   prometheus.Gauge
	evicted prometheus.Counter
	expiry  prometheus.Collector
	served  atomic.Pointer[httpserver.Certificates] // nil without TLS
}

// NewMetrics registers the metrics of the admin port.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_admin_sign_ins_total", Help: "Sign-ins to the console, and wrong tokens sent to the admin API. accepted: a console session started. refused: the token was wrong. limited: the token was wrong, and its remote address had sent too many wrong tokens.",
		}, []string{"outcome"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_admin_changes_total", Help: "Changes requested through the admin API, by operation. applied: the relay applied the change. failed: the request was invalid, or the change failed. denied: the caller was not an operator, or a page of another site sent the request.",
		}, []string{"operation", "outcome"}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_admin_busy_total", Help: "Requests that the admin API answered 429 or 503 because too many requests of this kind were running.",
		}, []string{"kind"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postwire_admin_connections_evicted_total", Help: "Connections of the admin port that were closed at the limit of 256 connections, in favor of a new connection.",
		}),
		tails: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postwire_admin_tails", Help: "Open tails of the admin API.",
		}),
	}
	m.expiry = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postwire_admin_tls_certificate_expiry_timestamp_seconds", Help: "Expiry of the TLS certificate of the admin port, in Unix seconds: the earliest expiry in the chain. 0 without TLS.",
	}, func() float64 {
		if served := m.served.Load(); served != nil {
			return float64(served.Expiry().Unix())
		}
		return 0
	})
	r.MustRegister(m.signIns, m.changes, m.busy, m.tails, m.evicted, m.expiry)
	for _, outcome := range []string{signInAccepted, signInRefused, signInLimited} {
		m.signIns.WithLabelValues(outcome)
	}
	for _, k := range kinds() {
		m.busy.WithLabelValues(string(k))
	}
	return m
}

// initChanges creates the time series of every operation that changes something, with
// the value 0.
func (m *Metrics) initChanges(described *huma.OpenAPI) {
	for _, item := range described.Paths {
		for _, o := range []*huma.Operation{item.Put, item.Post, item.Delete, item.Patch} {
			if o == nil || !accessOf(o).changes(o.Method) {
				continue
			}
			for _, outcome := range []string{changeApplied, changeFailed, changeDenied} {
				m.changes.WithLabelValues(o.OperationID, outcome)
			}
		}
	}
}
