package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	client "github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// gaps finds what Upload-Post's webhooks have not told, for each source that
// knows the service's API.
type gaps struct {
	log     *zap.Logger
	sources map[string]*gap

	recovered, failed *prometheus.CounterVec
	succeeded         *prometheus.GaugeVec
}

type gap struct {
	*reconcile.Reconciler
	schedule reconcile.Schedule // an interval of 0 is by hand only
}

func newGaps(p *Plan, j journal.Journal, u *understanding, now func() time.Time, metrics prometheus.Registerer, log *zap.Logger) (*gaps, error) {
	g := &gaps{
		log: log, sources: map[string]*gap{},
		recovered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_reconciled_total", Help: "Events that no webhook has told of and that were found in the sender's history.",
		}, []string{"source"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_reconcile_failures_total", Help: "Comparisons with the sender's history that failed; the next one makes up for it.",
		}, []string{"source"}),
		succeeded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postwire_reconcile_last_success_seconds", Help: "When a comparison with the sender's history last succeeded, in Unix seconds; 0 is never.",
		}, []string{"source"}),
	}
	metrics.MustRegister(g.recovered, g.failed, g.succeeded)
	for _, s := range p.Sources {
		own, ok := s.Own.(uploadpost.Config)
		if !ok || own.API.Key == "" {
			continue
		}
		history, err := client.New(client.Options{BaseURL: own.API.URL, APIKey: own.API.Key})
		if err != nil {
			return nil, fmt.Errorf("source %s: api: %w", s.Name, err)
		}
		g.sources[s.Name] = &gap{
			reconcile.New(reconcile.Options{Source: s.Name, Reads: u.sources[s.Name], History: history, Journal: j, Now: now}),
			reconcile.Schedule{Interval: own.Reconcile.Interval, Lookback: own.Reconcile.Lookback, Settle: own.Reconcile.Settle},
		}
		g.recovered.WithLabelValues(s.Name)
		g.failed.WithLabelValues(s.Name)
		g.succeeded.WithLabelValues(s.Name)
	}
	return g, nil
}

// run compares as scheduled until ctx is done.
func (g *gaps) run(ctx context.Context) {
	var all sync.WaitGroup
	for name, s := range g.sources {
		if s.schedule.Interval > 0 {
			all.Go(func() { s.Run(ctx, s.schedule, func(r reconcile.Report, err error) { g.found(name, r, err) }) })
		}
	}
	all.Wait()
}

// found counts what a comparison has found, and says so where it is something.
func (g *gaps) found(name string, r reconcile.Report, err error) {
	log := g.log.With(zap.String("source", name), zap.Time("from", r.From), zap.Time("to", r.To))
	g.recovered.WithLabelValues(name).Add(float64(r.Recovered))
	if r.Recovered > 0 {
		log.Warn("uploads that no webhook has told of were found in the history, and entered", zap.Int("recovered", r.Recovered), zap.Int("uploads", r.Uploads))
	}
	if r.Unreadable > 0 {
		log.Warn("uploads of the history make no event and were passed over", zap.Int("unreadable", r.Unreadable))
	}
	if err != nil {
		g.failed.WithLabelValues(name).Inc()
		log.Error("comparing with the history failed; the next time makes up for it", zap.Error(err))
		return
	}
	g.succeeded.WithLabelValues(name).SetToCurrentTime()
	log.Debug("compared with the history", zap.Int("uploads", r.Uploads), zap.Int("known", r.Known))
}

// compare compares once, for an operator.
func (g *gaps) compare(ctx context.Context, name string, from, to time.Time, dry bool) (reconcile.Report, error) {
	if names := slices.Collect(maps.Keys(g.sources)); name == "" && len(names) == 1 {
		name = names[0]
	}
	s, ok := g.sources[name]
	if !ok {
		what := "there is no source that knows the sender's API: set api.key of a source of type uploadpost"
		if len(g.sources) > 0 {
			what = fmt.Sprintf("source %q does not know the sender's API", name)
		}
		return reconcile.Report{}, fmt.Errorf("%w: %s", admin.ErrNoHistory, what)
	}
	report, err := s.Compare(ctx, from, to, dry)
	if !dry {
		g.found(name, report, err)
	}
	return report, err
}

// replace takes over the key of a source's API.
func (g *gaps) replace(s source.Configured) error {
	own, ok := s.Own.(uploadpost.Config)
	known := g.sources[s.Name]
	if !ok || known == nil {
		return nil
	}
	history, err := client.New(client.Options{BaseURL: own.API.URL, APIKey: own.API.Key})
	if err != nil {
		return errors.Join(fmt.Errorf("source %s: api", s.Name), err)
	}
	known.Use(history)
	return nil
}
