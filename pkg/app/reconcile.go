package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	client "github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// reconcilers backfills missed webhooks of Upload-Post, for each source with access to the API.
type reconcilers struct {
	log     *zap.Logger
	journal journal.Journal
	now     func() time.Time

	mu      sync.Mutex
	sources map[string]*reconcileJob
	start   func(name string, s *reconcileJob) // starts a comparison loop; nil while run does not run

	recovered, failed *prometheus.CounterVec
	succeeded         *prometheus.GaugeVec
}

type reconcileJob struct {
	*reconcile.Reconciler
	schedule reconcile.Schedule // an interval of 0 compares on request only
	own      uploadpost.Config
	stop     context.CancelFunc // nil before the loop runs; guarded by reconcilers.mu

	mu        sync.Mutex
	at        time.Time // time of the last comparison; zero before the first
	report    reconcile.Report
	problem   string
	recovered uint64
}

// apis are the API clients of an Upload-Post source.
type apis struct {
	own     uploadpost.Config
	history *client.Client
	secret  *client.Client // nil if the secrets are not from the API
}

// apisOf returns the clients for each source of a plan with access to the API.
func apisOf(p *Plan) (map[string]*apis, error) {
	all := map[string]*apis{}
	for _, s := range p.Sources {
		own, ok := s.Own.(uploadpost.Config)
		if !ok || own.API.Key == "" {
			continue
		}
		a := &apis{own: own}
		var err1, err2 error
		a.history, err1 = client.New(client.Options{BaseURL: own.API.URL.Reveal(), APIKey: own.API.Key})
		if _, ok := fromAPI(s); ok {
			a.secret, err2 = client.New(client.Options{BaseURL: own.API.URL.Reveal(), APIKey: own.API.Key, Timeout: askFor, Attempts: 1})
		}
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("source %s: api: %w", s.Name, err)
		}
		all[s.Name] = a
	}
	return all, nil
}

func newReconcilers(j journal.Journal, now func() time.Time, metrics prometheus.Registerer, log *zap.Logger) *reconcilers {
	g := &reconcilers{
		log: log, journal: j, now: now, sources: map[string]*reconcileJob{},
		recovered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_reconciled_total", Help: "Events backfilled from the sender's history, for which no webhook arrived.",
		}, []string{"source"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_reconcile_failures_total", Help: "Failed reconciles with the sender's history. The next successful reconcile covers the time of the failures.",
		}, []string{"source"}),
		succeeded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postwire_reconcile_last_success_seconds", Help: "Time of the last successful reconcile with the sender's history, in Unix seconds; 0 before the first.",
		}, []string{"source"}),
	}
	metrics.MustRegister(g.recovered, g.failed, g.succeeded)
	return g
}

// setSources stops the loops of removed sources, and starts the loops of new or changed
// sources.
func (g *reconcilers) setSources(apis map[string]*apis, u *sourceSet) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, s := range g.sources {
		api := apis[name]
		if api != nil && reflect.DeepEqual(api.own, s.own) {
			continue
		}
		if s.stop != nil {
			s.stop()
		}
		delete(g.sources, name)
		if api == nil {
			g.recovered.DeleteLabelValues(name)
			g.failed.DeleteLabelValues(name)
			g.succeeded.DeleteLabelValues(name)
		}
	}
	for name, api := range apis {
		if g.sources[name] != nil {
			continue
		}
		r := api.own.Reconcile
		s := &reconcileJob{
			Reconciler: reconcile.New(reconcile.Options{Source: name, Reads: u.of(name), History: api.history, Journal: g.journal, Now: g.now}),
			schedule:   reconcile.Schedule{Interval: r.Interval, Lookback: r.Lookback, Settle: r.Settle}, own: api.own,
		}
		g.sources[name] = s
		g.recovered.WithLabelValues(name)
		g.failed.WithLabelValues(name)
		g.succeeded.WithLabelValues(name)
		if g.start != nil {
			g.start(name, s)
		}
	}
}

// run compares as scheduled until ctx is done.
func (g *reconcilers) run(ctx context.Context) {
	var all sync.WaitGroup
	g.mu.Lock()
	g.start = func(name string, s *reconcileJob) {
		if s.schedule.Interval == 0 {
			return
		}
		running, stop := context.WithCancel(ctx)
		s.stop = stop
		all.Go(func() {
			defer stop()
			s.Run(running, s.schedule, func(r reconcile.Report, err error) { g.recordReport(name, s, r, err) })
		})
	}
	for name, s := range g.sources {
		g.start(name, s)
	}
	g.mu.Unlock()
	<-ctx.Done()
	g.mu.Lock()
	g.start = nil
	g.mu.Unlock()
	all.Wait()
}

// recordReport counts and logs the result of a comparison.
func (g *reconcilers) recordReport(name string, s *reconcileJob, r reconcile.Report, err error) {
	s.record(g.now(), r, err)
	log := g.log.With(zap.String("source", name), zap.Time("from", r.From), zap.Time("to", r.To))
	g.recovered.WithLabelValues(name).Add(float64(r.Recovered))
	if r.Recovered > 0 {
		log.Warn("missed uploads backfilled from the history", zap.Int("recovered", r.Recovered), zap.Int("uploads", r.Uploads))
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
func (g *reconcilers) compare(ctx context.Context, name string, from, to time.Time, dry bool) (reconcile.Report, error) {
	g.mu.Lock()
	names := slices.Collect(maps.Keys(g.sources))
	if name == "" && len(names) == 1 {
		name = names[0]
	}
	s, ok := g.sources[name]
	g.mu.Unlock()
	if !ok {
		what := "there is no source that knows the sender's API: set api.key of a source of type uploadpost"
		if len(names) > 0 {
			what = fmt.Sprintf("source %q does not know the sender's API", name)
		}
		return reconcile.Report{}, fmt.Errorf("%w: %s", admin.ErrNoHistory, what)
	}
	report, err := s.Compare(ctx, from, to, dry)
	if !dry {
		g.recordReport(name, s, report, err)
	}
	return report, err
}
