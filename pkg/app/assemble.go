// Package app puts the five steps together: ingress, source, journal, relay,
// sinks. The commands, the end-to-end tests and the benchmarks are callers of
// one assembly.
package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/ingress"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/pebble"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/pkg/source"
)

// App is an assembled relay: its journal is open and its ports are bound.
type App struct {
	log     *zap.Logger
	grace   time.Duration
	journal journal.Journal
	relay   *relay.Relay
	ingress *ingress.Server
	admin   *admin.Server

	ingressListener, adminListener net.Listener

	ready   readiness
	cleanup []func() error // in the order of assembly; undone from the end
}

// New assembles the relay of a plan; Run sets it going. The order of the steps
// is here: an event enters at the bottom of this function and leaves at the top.
func New(ctx context.Context, p *Plan, log *zap.Logger) (_ *App, err error) {
	a := &App{log: log, grace: p.Config.Server.ShutdownTimeout}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())

	// 3: the journal, which both halves stand on.
	a.journal, err = openJournal(p, log.Named("journal"))
	if err != nil {
		return nil, err
	}
	a.cleanup = append(a.cleanup, a.journal.Close)

	// 5 and 4: the sinks, each with a pump.
	a.relay, err = relay.New(ctx, relay.Options{
		Journal: a.journal, Sinks: p.Sinks, Log: log.Named("relay"), Metrics: relay.NewMetrics(metrics),
	})
	if err != nil {
		return nil, err
	}
	a.cleanup = append(a.cleanup, a.relay.Close)

	// 2: the sources.
	routes := make([]ingress.Route, len(p.Sources))
	for i, s := range p.Sources {
		src, err := s.Open(source.Env{Name: s.Name, SchemaBase: strings.TrimRight(p.Config.Schemas.BaseURL, "/")})
		if err != nil {
			return nil, err
		}
		routes[i] = ingress.Route{Name: s.Name, Source: src, Settings: s.Settings}
	}

	// 1: the ingress.
	a.ingress, err = ingress.New(ingress.Options{
		Config: p.Config.Server, Routes: routes, Journal: a.journal,
		Log: log.Named("ingress"), Metrics: ingress.NewMetrics(metrics),
	})
	if err != nil {
		return nil, err
	}
	if a.ingressListener, err = a.listen("server.listen", p.Config.Server.Listen); err != nil {
		return nil, err
	}

	// Beside the flow: the admin port.
	a.admin = admin.New(admin.Options{
		Checks:   []admin.Check{{Name: "journal", Run: a.journal.Check}, {Name: "sources", Run: a.ready.check}},
		Gatherer: metrics, Log: log.Named("admin"),
	})
	if a.adminListener, err = a.listen("admin.listen", p.Config.Admin.Listen); err != nil {
		return nil, err
	}
	return a, nil
}

func openJournal(p *Plan, log *zap.Logger) (journal.Journal, error) {
	c := p.Config.Journal
	return pebble.Open(pebble.Options{
		Dir: c.Dir, Window: p.Config.Dedupe.Window, Retention: c.Retention, MinFree: uint64(c.MinFreeBytes), Log: log,
	})
}

// listen binds a port. The listener is closed by whoever serves it, or by the
// clean-up if nobody ever does.
func (a *App) listen(key, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: listening on %s: %w", key, addr, err)
	}
	a.cleanup = append(a.cleanup, func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}
