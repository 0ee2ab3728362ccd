// Package app assembles the five steps: ingress, source, journal, relay, sinks. The
// commands, the end-to-end tests and the benchmarks share this assembly.
package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/handover"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/ingress"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// App is an assembled relay: the journal is open and the ports are bound.
type App struct {
	log     *Log
	grace   time.Duration // time for the whole shutdown
	delay   time.Duration // part of grace in which load balancers notice the shutdown
	journal journal.Journal
	relay   *relay.Relay
	ingress *ingress.Server
	admin   *admin.Server

	ingressListener, adminListener net.Listener
	configured                     *config.Config  // configuration of the start
	handover                       *handover.Offer // nil if no process can take over

	plan        atomic.Pointer[Plan] // plan of the current files
	reloading   sync.Mutex
	stamp       stamps        // stamp of the read files; guarded by reloading
	refused     bool          // the current text was refused; guarded by reloading
	checkFiles  chan struct{} // requests a check of the files
	metrics     *prometheus.Registry
	reloads     *prometheus.CounterVec
	applied     prometheus.Gauge // 1 unless the last reload was refused
	renewing    sync.Mutex       // held while sources are renewed
	sources     *sourceSet
	reconcilers *reconcilers // missed webhooks of Upload-Post
	secrets     *secrets
	mismatches  *mismatches

	credentials *admin.Credentials // of the admin API

	history   *admin.MetricsRing
	last      atomic.Pointer[admin.LastReload]     // nil before the first reload
	secretUse atomic.Pointer[map[string]secretUse] // by source
	began     time.Time
	now       func() time.Time

	ready   readiness
	cleanup []func() error // in the order of assembly; called in reverse
}

// New assembles the relay of a plan; Run starts it. The function shows the order of the
// steps: an event enters at the bottom and leaves at the top.
func New(ctx context.Context, p *Plan, log *Log) (_ *App, err error) {
	grace := p.Config.Server.ShutdownTimeout
	a := &App{
		log: log, grace: grace, delay: min(p.Config.Server.ShutdownDelay, grace/2),
		stamp: stamps{p.stamp, p.Config.Stamp()}, sources: &sourceSet{sources: map[string]source.Source{}},
		checkFiles: make(chan struct{}, 1),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postwire_config_reloads_total", Help: "Reloads of the configuration, because of a changed file, a signal or a request. applied: the relay applied the complete change. refused: the relay applied nothing.",
		}, []string{"outcome"}),
		applied: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postwire_config_last_reload_successful", Help: "0 while the last change of the configuration is refused and the previous configuration is in effect, otherwise 1.",
		}),
	}
	a.applied.Set(1)
	a.plan.Store(p)
	a.credentials = admin.NewCredentials(credentials(p)...)
	log.scrubbed(p.scrub)
	defer func() {
		if err != nil {
			err = p.scrub.Error(errors.Join(err, a.close()))
		}
	}()
	now := p.Clock
	if now == nil {
		now = time.Now
	}
	a.began, a.now = now().UTC(), now
	a.trackSecrets(p)
	metrics := prometheus.NewRegistry()
	a.metrics, a.history = metrics, admin.NewMetricsRing(metrics, now)
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(), a.reloads, a.applied,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "postwire_log_lines_dropped_total", Help: "Log lines that were dropped because too many lines with an equal message were logged in one second.",
		}, func() float64 { return float64(log.dropped.Load()) }))
	for _, outcome := range []string{"applied", "refused"} {
		a.reloads.WithLabelValues(outcome)
	}

	for _, w := range p.Warnings {
		log.Warn("the configuration is valid and hardly meant", zap.String("warning", w.String()))
	}
	name, err := processName(*p.Config)
	if err != nil {
		return nil, err
	}
	// Close traces after all steps have ended.
	traces, err := telemetry.Open(ctx, p.Config.Telemetry.Traces, telemetry.Process{Name: name, Version: ReadVersion().Version}, log.Named("traces"))
	if err != nil {
		return nil, err
	}
	a.cleanup = append(a.cleanup, func() error { return closeTraces(traces, log) }) //nolint:contextcheck // has its own timeout

	// 3: the journal.
	cluster, err := startCluster(p.Config, name, log.Named("cluster")) //nolint:contextcheck // runs until Close
	if err != nil {
		return nil, err
	}
	if cluster != nil {
		a.cleanup = append(a.cleanup, cluster.Close)
	}
	if err := a.found(ctx, p, name, cluster, log.Named("cluster")); err != nil {
		return nil, err
	}
	a.journal, err = openJournal(ctx, p, name, cluster, metrics, log.Named("journal"))
	if err != nil {
		return nil, err
	}
	a.configured = p.Config
	if p.Config.Journal.Engine != engineJetStream && p.Disk == nil {
		a.openHandover()
	}
	a.cleanup = append(a.cleanup, a.journal.Close)
	measureJournal(metrics, a.journal, now) //nolint:contextcheck // a scrape has its own timeout

	// 5 and 4: the sinks, each with a pump.
	a.relay, err = relay.New(ctx, relay.Options{
		Journal: a.journal, Sinks: p.Sinks, Log: log.Named("relay"), Metrics: relay.NewMetrics(metrics), Traces: traces,
		Redirect: func(sink string, keys map[string]string) (sinks.Opener, error) {
			return a.plan.Load().redirect(sink, keys)
		},
		Now: now,
	})
	if err != nil {
		return nil, err
	}
	a.cleanup = append(a.cleanup, a.relay.Close)

	// 2: the sources.
	apis, err := apisOf(p)
	if err != nil {
		return nil, err
	}
	a.mismatches = newMismatches(metrics)
	a.secrets = newSecrets(now, log.Named("secrets"))
	a.secrets.change, a.secrets.scrub = a.renew, p.scrub
	a.secrets.setSources(apis)
	routes, err := a.routes(p)
	if err != nil {
		return nil, err
	}
	a.sources.replace(routes)
	a.mismatches.setSources(routes)
	a.reconcilers = newReconcilers(a.journal, now, metrics, log.Named("reconcile"))
	a.reconcilers.setSources(apis, a.sources)

	// 1: the ingress.
	server := p.Config.Server
	server.MaxConnections = maxConnections(server.MaxConnections, log.Named("ingress"))
	a.ingress, err = ingress.New(ingress.Options{
		Config: server, Routes: routes, Journal: a.journal,
		Log: log.Named("ingress"), Metrics: ingress.NewMetrics(metrics), Traces: traces, Now: now, OnUnknownSecret: a.requestRefresh,
	})
	if err != nil {
		return nil, err
	}
	if a.ingressListener == nil {
		if a.ingressListener, err = a.listen("server.listen", p.Config.Server.Listen); err != nil {
			return nil, err
		}
	}

	// The admin port.
	var members admin.Cluster
	if j, ok := a.journal.(*jetstream.Journal); ok && cluster != nil {
		members = &embeddedCluster{cluster, j, name}
	}
	checks := []admin.Check{{Name: "journal", Run: func() error { return p.scrub.Error(a.journal.Check()) }}, {Name: "sources", Run: a.ready.check}}
	if cluster != nil {
		checks = append(checks, admin.Check{Name: "cluster", Run: cluster.Check})
	}
	adminMetrics := admin.NewMetrics(metrics)
	a.admin, err = admin.New(admin.Options{ //nolint:contextcheck // requests end with Shutdown
		Checks:   checks,
		Gatherer: metrics, Log: log.Named("admin"),
		TLS: p.Config.Admin.TLS, MaxConnectionAge: p.Config.Admin.MaxConnectionAge, Metrics: adminMetrics,
		Schemas: schema.Handler(func() *schema.Library { return a.plan.Load().Schemas }),
		API: &admin.API{
			Journal: a.journal, Engine: p.Config.Journal.Engine, Name: name, Relay: a.relay, Renormalize: a.sources.Renormalize, Attributes: func() []string { return a.plan.Load().attributes.Names }, Reconcile: a.reconcilers.compare,
			Configuration: a.configuration, Sources: a.inspect, Registration: a.registration, Series: a.history,
			Credentials: a.credentials, Proxies: p.Config.Server.TrustedProxies, Metrics: adminMetrics,
			Version: ReadVersion().Version, Level: log.level, Reload: a.Reload, Now: now, Log: log.Named("admin"), Scrub: p.scrub,
			Cluster:  members,
			AsyncAPI: func() (map[string]any, error) { return a.plan.Load().AsyncAPI(ReadVersion().Version) },
		},
	})
	if err != nil {
		return nil, err
	}
	if a.adminListener == nil {
		if a.adminListener, err = a.listen("admin.listen", p.Config.Admin.Listen); err != nil {
			return nil, err
		}
	}
	if p.inherited != nil {
		return a, p.inherited.Close()
	}
	return a, nil
}

// closeTraces sends the last spans if the collector answers. Traces are best effort.
func closeTraces(traces *telemetry.Traces, log *Log) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := traces.Close(ctx); err != nil {
		log.Warn("the last traces were not sent", zap.Error(err))
	}
	return nil
}

// sourceSet holds the sources by name, for quarantined requests.
type sourceSet struct {
	mu      sync.Mutex
	sources map[string]source.Source
}

// replace replaces the sources by those of the routes.
func (u *sourceSet) replace(routes []ingress.Route) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sources = map[string]source.Source{}
	for _, r := range routes {
		u.sources[r.Name] = r.Source
	}
}

func (u *sourceSet) of(name string) source.Source {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sources[name]
}

func (u *sourceSet) set(name string, src source.Source) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sources[name] = src
}

// Renormalize normalizes a quarantined request again.
func (u *sourceSet) Renormalize(r journal.QuarantinedRequest) ([]event.Event, error) {
	src := u.of(r.Source)
	if src == nil {
		return nil, fmt.Errorf("source %q is not in the configuration", r.Source)
	}
	return src.Normalize(&source.Request{
		Method: r.Method, Path: r.Path, RawQuery: r.RawQuery, Header: r.Header, Body: r.Body, Received: r.Received,
	})
}

// listen binds a port, or takes the listener of the relay that this one replaces. The server
// of the listener closes it, or the clean-up if no server serves it.
func (a *App) listen(key, addr string) (l net.Listener, err error) {
	if inherited := a.plan.Load().inherited; inherited != nil {
		l = inherited.Listener(key, addr)
	}
	if l == nil {
		if l, err = net.Listen("tcp", addr); err != nil {
			return nil, fmt.Errorf("%s: listening on %s: %w", key, addr, err)
		}
	}
	a.cleanup = append(a.cleanup, func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}
