package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/ingress"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/transfer"
	"github.com/postwire/postwire/pkg/relay"
)

const (
	// foundInterval is the interval between two looks at the cluster while a relay waits for
	// the journal.
	foundInterval = 500 * time.Millisecond
	// carryInterval is the interval between two attempts to carry the journal.
	carryInterval = 5 * time.Second
	// foundTimeout bounds one look at the founder.
	foundTimeout = 2 * time.Second
)

// founding is the start of a relay in an embedded cluster, before the cluster has the journal.
//
// | relay | cluster | does | ready |
// |---|---|---|---|
// | founder with a local journal | none yet, or with a part of the journal | carries its journal, answers 503 | no |
// | founder without a local journal | any | nothing: the engine creates the stream | |
// | other relay, has seen the founder alone | none, or with a part of the journal | passes webhooks on; 503 while the founder is away | yes |
// | other relay | any without the complete journal | passes webhooks on | no |
//
// The founder is alone if it takes webhooks and runs no server of the cluster. A rolling
// update of Kubernetes replaces the founder last, and only after the other relays are ready,
// so they have to be ready while the founder is alone. A relay that has lost its disk is not
// ready, because the founder is not alone. The
// end of the migration is durable in the stream, which is complete or not, and then in the
// store of each relay: no relay opens the journal before.
type founding struct {
	plan    *Plan
	name    string // of this relay
	alone   bool   // the journal is that of a single relay with an embedded server
	cluster *embedded.Server
	log     *zap.Logger
	state   atomic.Pointer[error] // why the relay is not ready; a pointer to nil is ready
}

// found returns when the journal may be opened. Meanwhile it serves the two ports.
func (a *App) found(ctx context.Context, p *Plan, name string, cluster *embedded.Server, log *zap.Logger) error {
	if cluster == nil {
		return nil
	}
	alone, err := wasAlone(p.Config, name)
	if err != nil {
		return err
	}
	if !cluster.Carried() {
		if err := a.awaitJournal(ctx, &founding{plan: p, name: name, alone: alone, cluster: cluster, log: log}); err != nil {
			return err
		}
	}
	if !alone {
		return nil
	}
	return embedded.Leave(p.Config.Journal.JetStream.Embedded.Dir)
}

// awaitJournal is found for a relay that has not seen the journal of the cluster.
func (a *App) awaitJournal(ctx context.Context, f *founding) error {
	founder := f.plan.Config.Journal.JetStream.Embedded.Founder
	wait, to, has := f.await, founder.URL, founder.Relay != ""
	if founder.Relay == f.name {
		wait, to = f.carry, ""
		var err error
		if has, err = f.hasJournal(); err != nil {
			return err
		}
	}
	if has {
		if err := a.serveWhile(ctx, f, to, wait); err != nil {
			return fmt.Errorf("waiting for the journal of the cluster: %w", err)
		}
	}
	return f.cluster.SetCarried()
}

// serveWhile serves the two ports until wait returns. The ports stay bound for the relay.
func (a *App) serveWhile(ctx context.Context, f *founding, to string, wait func(context.Context) error) (err error) {
	c := f.plan.Config
	f.set(errors.New("starting"))
	forwarder, err := ingress.NewForwarder(c.Server, to, f.log.Named("ingress"))
	if err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	health, err := admin.New(admin.Options{ //nolint:contextcheck // requests end with Shutdown
		Checks:   []admin.Check{{Name: "journal", Run: func() error { return f.plan.scrub.Error(*f.state.Load()) }}},
		Gatherer: metrics, Log: f.log.Named("admin"), TLS: c.Admin.TLS, MaxConnectionAge: c.Admin.MaxConnectionAge, Metrics: admin.NewMetrics(metrics),
	})
	if err != nil {
		return err
	}
	if a.ingressListener, err = a.listen("server.listen", c.Server.Listen); err != nil {
		return err
	}
	if a.adminListener, err = a.listen("admin.listen", c.Admin.Listen); err != nil {
		return err
	}
	hooks, probes := lend(a.ingressListener), lend(a.adminListener)
	var served sync.WaitGroup
	var failed [2]error
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, serve := range []func() error{func() error { return forwarder.Serve(hooks) }, func() error { return health.Serve(probes) }} {
		served.Go(func() {
			defer cancel()
			failed[i] = serve()
		})
	}
	err = wait(waiting)
	stopping, done := context.WithTimeout(context.WithoutCancel(ctx), a.grace)
	defer done()
	err = errors.Join(err, forwarder.Shutdown(stopping), health.Shutdown(stopping))
	served.Wait()
	return errors.Join(err, failed[0], failed[1], hooks.giveBack(), probes.giveBack())
}

func (f *founding) set(err error) { f.state.Store(&err) }

// options returns the options of the journal in the cluster, without a spill.
func (f *founding) options() jetstream.Options {
	opts := clusterOptions(f.plan.Config, f.name, f.log, f.plan.Clock)
	opts.Server, opts.Login, opts.Spill = f.cluster, f.cluster.Login(), nil
	return opts
}

// await waits until the cluster has the complete journal.
func (f *founding) await(ctx context.Context) error {
	f.log.Info("waiting for the journal of the cluster; webhooks are passed on to the founder", zap.String("founder", f.plan.Config.Journal.JetStream.Embedded.Founder.Relay))
	for alone := false; ; {
		_, complete, err := jetstream.Migration(ctx, f.options())
		switch {
		case err == nil && complete:
			f.log.Info("the cluster has the journal")
			return nil
		case alone:
		case err == nil:
			f.set(errors.New("the founder has not created the journal of the cluster yet, or carries its own journal into the cluster"))
		default:
			f.log.Debug("asking for the journal of the cluster", zap.Error(err))
			err := f.founderAlone(ctx)
			alone = err == nil
			f.set(err)
		}
		if err := sleep.For(ctx, foundInterval); err != nil {
			return err
		}
	}
}

// founderAlone returns nil if the founder takes webhooks and runs no server of the cluster.
func (f *founding) founderAlone(ctx context.Context) error {
	e := f.plan.Config.Journal.JetStream.Embedded
	leader, err := f.cluster.HasLeader()
	if err != nil {
		return err
	}
	if leader {
		return errors.New("the cluster has a leader, and the journal of the cluster does not answer")
	}
	dial := func(addr string) error {
		ctx, cancel := context.WithTimeout(ctx, foundTimeout)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	if err := dial(e.FounderAddr()); err != nil {
		return fmt.Errorf("the founder of the cluster takes no webhooks: %w", err)
	}
	switch err := dial(e.FounderPeer()); {
	case err == nil:
		return errors.New("the founder runs a server of the cluster, and the cluster has no leader yet")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("whether the founder runs a server of the cluster is not known: %w", err)
	}
	return nil
}

// folder returns the options of the founder's local journal.
func (f *founding) folder() local.Options {
	o := f.plan.folderOptions()
	o.Retention, o.Name, o.Log = f.plan.Config.Journal.Retention, f.name, f.log
	return o
}

// hasJournal reports whether the founder has a journal to carry.
func (f *founding) hasJournal() (bool, error) {
	if f.alone {
		return true, nil
	}
	found, err := local.Exists(f.folder())
	if err != nil || !found {
		return false, err
	}
	migrated, err := local.Migrated(f.folder())
	return !migrated, err
}

// carry carries the local journal into the cluster, until it is complete.
func (f *founding) carry(ctx context.Context) error {
	f.log.Info("the journal of this relay goes into the cluster; no relay accepts events before the cluster has the journal")
	for {
		for {
			_, _, err := jetstream.Migration(ctx, f.options())
			if err == nil {
				break
			}
			f.set(fmt.Errorf("the journal of this relay waits for the other relays of the cluster: %w", err))
			if err := sleep.For(ctx, foundInterval); err != nil {
				return err
			}
		}
		err := f.attempt(ctx)
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		f.set(fmt.Errorf("the journal of this relay is not carried into the cluster yet: %w", err))
		f.log.Error("the journal is not carried into the cluster yet, retrying", zap.Error(err), zap.Duration("next_attempt", carryInterval), zap.String("advice", "the journal of this relay is unchanged; journal.max_bytes and the disk need room for a second copy"))
		if err := sleep.For(ctx, carryInterval); err != nil {
			return err
		}
	}
}

// attempt carries the journal of the founder, or continues an earlier attempt.
func (f *founding) attempt(ctx context.Context) error {
	if f.alone {
		return f.carryAlone(ctx)
	}
	src, err := local.OpenSource(f.folder())
	if err != nil {
		return err
	}
	carried, err := f.carryFrom(ctx, src)
	if err = errors.Join(err, src.Close()); err != nil || !carried { // Close unlocks the folder
		return err
	}
	j := f.plan.Config.Journal.JetStream
	return local.MarkMigrated(f.folder(), fmt.Sprintf("the stream %s of the embedded cluster %s", j.Stream, j.Embedded.Cluster))
}

// carryAlone carries the journal of the time when the founder was alone.
func (f *founding) carryAlone(ctx context.Context) (err error) {
	c := f.plan.Config
	from := serverOptions(c, f.name, f.log.Named("alone"))
	from.Peers = from.Peers[:1]
	server, err := embedded.Start(from) //nolint:contextcheck // runs until Close
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	opts := clusterOptions(c, f.name, f.log, f.plan.Clock)
	opts.Server, opts.Login, opts.Replicas = server, server.Login(), 1
	src, err := jetstream.OpenSource(ctx, opts)
	if errors.Is(err, journal.ErrNotFound) { // the relay had never stored an event
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	carried, err := f.carryFrom(ctx, src)
	if err == nil && !carried {
		err = fmt.Errorf("the stream of the cluster has another journal than %s: stop the relays, and move the folders of the cluster away", from.Dir)
	}
	return err
}

// carryFrom carries a journal, and reports whether the cluster has it now. The cluster may
// have the journal of another relay.
func (f *founding) carryFrom(ctx context.Context, src transfer.Source) (carried bool, err error) {
	state, complete, err := jetstream.Migration(ctx, f.options())
	if err != nil {
		return false, err
	}
	if complete { // an earlier attempt ended before SetCarried, and the relays may use the stream
		return transfer.Complete(ctx, src, state)
	}
	dst, err := jetstream.OpenTarget(ctx, f.options())
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	logged := time.Now()
	r, err := transfer.Run(ctx, src, dst, transfer.Options{MoveEntry: relay.MoveEntry, Progress: func(what string, done, total uint64) {
		f.set(fmt.Errorf("the journal of this relay is being carried into the cluster: %s, %d of %d", what, done, max(done, total)))
		if time.Since(logged) > 10*time.Second {
			logged = time.Now()
			f.log.Info("carrying the journal into the cluster", zap.String("item", what), zap.Uint64("done", done), zap.Uint64("total", max(done, total)))
		}
	}})
	if err != nil {
		return false, err
	}
	f.log.Info("the journal is in the cluster", zap.Uint64("events", r.Events), zap.Uint64("keys", r.Keys), zap.Uint64("dead_letters", r.Dead), zap.Strings("not_carried", r.Missing))
	return true, nil
}

// lent is a listener that a server closes, and whose socket stays bound.
type lent struct {
	*net.TCPListener
	ended atomic.Bool
}

func lend(l net.Listener) *lent { return &lent{TCPListener: l.(*net.TCPListener)} } //nolint:forcetypeassert // listen listens on TCP

// Accept implements net.Listener.
func (l *lent) Accept() (net.Conn, error) {
	conn, err := l.TCPListener.Accept()
	if err != nil && l.ended.Load() {
		return nil, net.ErrClosed
	}
	return conn, err
}

// Close implements net.Listener: it ends Accept.
func (l *lent) Close() error {
	l.ended.Store(true)
	return l.SetDeadline(time.Unix(1, 0))
}

// giveBack lets another server use the socket.
func (l *lent) giveBack() error { return l.SetDeadline(time.Time{}) }
