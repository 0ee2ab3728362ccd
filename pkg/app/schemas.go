package app

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/ingress"
	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/pkg/source"
)

// mismatches counts events that do not match their schema, by source.
type mismatches struct {
	count *prometheus.CounterVec
	names []string // counted sources; guarded by App.renewing
}

func newMismatches(metrics prometheus.Registerer) *mismatches {
	m := &mismatches{count: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postwire_schema_mismatches_total", Help: "Events with data that does not match the schema, of sources with schema: warn or quarantine.",
	}, []string{"source"})}
	metrics.MustRegister(m.count)
	return m
}

// setSources deletes the series of removed sources, and creates the series of the others.
func (m *mismatches) setSources(routes []ingress.Route) {
	var names []string
	for _, r := range routes {
		m.count.WithLabelValues(r.Name)
		names = append(names, r.Name)
	}
	for _, name := range m.names {
		if !slices.Contains(names, name) {
			m.count.DeleteLabelValues(name)
		}
	}
	m.names = names
}

// open opens a source of a plan with the current secrets, and checks its events against the
// schemas of the plan.
func (a *App) open(p *Plan, s source.Configured) (source.Source, error) {
	src, err := a.secrets.open(p, s)
	if err != nil {
		return nil, err
	}
	log := a.log.Named("schemas")
	return p.checked(s, src, func(m *schema.MismatchError) {
		a.mismatches.count.WithLabelValues(s.Name).Inc()
		log.Warn("an event does not fit its schema", zap.String("source", s.Name), zap.String("schema", m.Name.String()), zap.Strings("where", m.Where))
	}), nil
}
