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
	signInLimited  = "limited" // not compared, or wrong, and over the limit
)

// Outcomes of a change.
const (
	changeApplied = "applied"
	changeFailed  = "failed"
	changeDenied  = "denied" // to a viewer, or to a page of another site
)

// Metrics are those of the admin port.
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
			Name: "postwire_admin_sign_ins_total", Help: "Sign-ins to the console, and wrong tokens shown to the admin API. accepted: a console session began. refused: the token was wrong. limited: the token was wrong, and its remote address had shown too many wrong tokens.",
		}, []string{"outcome"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_admin_changes_total", Help: "Changes requested of the admin API, by operation. applied: the relay made the change. failed: the request was invalid, or the relay could not make the change. denied: the caller was not an operator, or a page of another site asked.",
		}, []string{"operation", "outcome"}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_admin_busy_total", Help: "Requests that the admin API answered 429 or 503 because too many requests of the same kind were running.",
		}, []string{"kind"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postwire_admin_connections_evicted_total", Help: "Connections of the admin port that were closed to make room for a new one.",
		}),
		tails: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postwire_admin_tails", Help: "Tails that are open on the admin API.",
		}),
	}
	m.expiry = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postwire_admin_tls_certificate_expiry_timestamp_seconds", Help: "When the first certificate of the chain that the admin port serves ends, in Unix seconds; 0 without TLS.",
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

// know makes the time series of the changes that a description holds.
func (m *Metrics) know(described *huma.OpenAPI) {
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
