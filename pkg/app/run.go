package app

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// readiness is the readiness of the relay.
type readiness struct{ serving atomic.Bool }

func (r *readiness) check() error {
	if !r.serving.Load() {
		return errors.New("not taking webhooks")
	}
	return nil
}

// Addr returns the address of the webhook port.
func (a *App) Addr() net.Addr { return a.ingressListener.Addr() }

// AdminAddr returns the address of the admin port.
func (a *App) AdminAddr() net.Addr { return a.adminListener.Addr() }

// Run runs the relay until ctx is done, and then shuts down without loss: it becomes not
// ready, waits for load balancers while every answer ends its connection, stops accepting
// webhooks, lets batches in flight complete, commits the cursors, and closes the journal,
// within the shutdown timeout. Run is called once.
func (a *App) Run(ctx context.Context) error {
	defer a.ready.serving.Store(false)
	// hard ends what the graceful shutdown did not end.
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	pumping, stopPumps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPumps()

	var g errgroup.Group
	run := func(f func() error) {
		g.Go(func() error {
			defer cancel() // one part that ends also ends the others
			return f()
		})
	}
	run(func() error { return a.relay.Run(pumping, hard) })
	run(func() error { return a.ingress.Serve(a.ingressListener) })
	run(func() error { return a.admin.Serve(a.adminListener) })
	var replaced atomic.Bool // by another process
	if a.handover != nil {
		g.Go(func() error {
			if a.awaitSuccessor(running) == nil {
				replaced.Store(true)
				cancel()
			}
			return nil
		})
	}
	g.Go(func() error {
		a.follow(running)
		return nil
	})
	g.Go(func() error {
		a.reconcilers.run(running)
		return nil
	})
	g.Go(func() error {
		a.secrets.run(running)
		return nil
	})
	g.Go(func() error {
		a.history.Run(running)
		return nil
	})
	a.ready.serving.Store(true)
	a.log.Info("taking webhooks", zap.Stringer("addr", a.Addr()), zap.Stringer("admin", a.AdminAddr()))

	<-running.Done()
	a.ready.serving.Store(false)
	a.log.Info("stopping", zap.Duration("timeout", a.grace))
	defer time.AfterFunc(a.grace, cut).Stop()
	if replaced.Load() || ctx.Err() != nil { // requested, not a failure
		a.ingress.Drain()
		waited := time.NewTimer(a.delay)
		defer waited.Stop()
		select {
		case <-waited.C:
		case <-hard.Done():
		}
	}
	errs := []error{a.ingress.Shutdown(hard)}
	stopPumps()
	errs = append(errs, a.admin.Shutdown(hard), g.Wait(), a.close())
	if hard.Err() != nil {
		a.log.Warn("the shutdown timeout passed; what the brokers had not acknowledged is sent again after the next start")
	}
	a.log.Info("stopped")
	return a.plan.Load().scrub.Error(errors.Join(errs...))
}

// close undoes the assembly.
func (a *App) close() error {
	var errs []error
	for _, undo := range slices.Backward(a.cleanup) {
		errs = append(errs, undo())
	}
	a.cleanup = nil
	return errors.Join(errs...)
}
