package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/handover"
)

// stopMargin is how much longer than server.shutdown_timeout a relay may take to stop.
const stopMargin = 10 * time.Second

// TakeOver takes the listeners of the relay that uses the journal of the plan, and waits until
// the relay has stopped. Meanwhile the kernel keeps new connections for this process. New
// uses the listeners whose addresses are in the plan. Without a running relay, TakeOver does
// nothing.
func (p *Plan) TakeOver(ctx context.Context, log *Log) error {
	c := p.Config
	if c.Journal.Engine == engineJetStream {
		return p.wrongEngine("is "+engineJetStream+", and --takeover is for the engine "+engineLocal, "run several relays with the engine jetstream, and restart one after the other")
	}
	inherited, err := handover.Take(ctx, c.Journal.Dir)
	if err != nil {
		return fmt.Errorf("taking over from the relay that uses %s: %w", c.Journal.Dir, err)
	}
	if inherited == nil {
		log.Info("no relay to take over from", zap.String("journal", c.Journal.Dir))
		return nil
	}
	log.Info("taking over from the running relay; new connections wait until it has stopped", zap.String("journal", c.Journal.Dir))
	ctx, cancel := context.WithTimeoutCause(ctx, c.Server.ShutdownTimeout+stopMargin,
		fmt.Errorf("the running relay did not stop within server.shutdown_timeout and %v: stop the relay, and start this one without --takeover", stopMargin))
	defer cancel()
	if inherited.Wait(ctx) != nil && ctx.Err() != nil {
		return errors.Join(fmt.Errorf("taking over from the relay that uses %s: %w", c.Journal.Dir, context.Cause(ctx)), inherited.Close())
	}
	p.inherited = inherited
	return nil
}

// openHandover lets another process take over. Some file systems have no sockets; the relay
// works without.
func (a *App) openHandover() {
	offer, err := handover.Open(a.configured.Journal.Dir)
	if err != nil {
		a.log.Warn("no other process can take over from this one with --takeover", zap.Error(err))
		return
	}
	a.handover = offer
	a.cleanup = append(a.cleanup, offer.Close) // after the journal, which the successor opens then
}

// listeners returns the listeners that a successor gets.
func (a *App) listeners() (all []handover.Listener) {
	c := a.configured
	for _, l := range []struct {
		key, addr string
		listener  net.Listener
	}{{"server.listen", c.Server.Listen, a.ingressListener}, {"admin.listen", c.Admin.Listen, a.adminListener}} {
		if tcp, ok := l.listener.(*net.TCPListener); ok {
			all = append(all, handover.Listener{Name: l.key, Address: l.addr, TCP: tcp})
		}
	}
	return all
}

// awaitSuccessor returns nil when another process has inherited the listeners.
func (a *App) awaitSuccessor(ctx context.Context) error {
	err := a.handover.Serve(ctx, a.listeners())
	switch {
	case err == nil:
		a.log.Info("another process takes over")
	case ctx.Err() == nil:
		a.log.Warn("no other process can take over from this one with --takeover", zap.Error(err))
	}
	return err
}
