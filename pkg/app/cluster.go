package app

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
)

// embeddedCluster is the embedded cluster for the admin API.
type embeddedCluster struct {
	server  *embedded.Server
	journal *jetstream.Journal
	name    string // of this relay
}

// Status implements admin.Cluster.
func (c *embeddedCluster) Status(ctx context.Context) (embedded.ClusterStatus, error) {
	return c.server.Status(ctx)
}

// Remove implements admin.Cluster. A relay that runs is removed by its own API, because only
// the relay itself knows when the cluster has all of its events. From then on the relay
// accepts no events until it is restarted.
func (c *embeddedCluster) Remove(ctx context.Context, name string, lost bool) error {
	if name == c.name {
		return c.leave(ctx)
	}
	st, err := c.server.Status(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(st.Relays, func(p embedded.Member) bool { return p.Name == name })
	switch {
	case i < 0:
		return fmt.Errorf("%w: %s", embedded.ErrUnknownPeer, name)
	case st.Relays[i].Online:
		return fmt.Errorf("%w: %s is running, and only %[2]s knows whether its spill is empty: send the command to the admin port of %[2]s", embedded.ErrRefused, name)
	case !lost:
		return fmt.Errorf("%w: %s is not running, and its spill may have events that the cluster does not have: start %[2]s and send the command to it; if its disk is lost, use --lost, and the events in its spill are lost", embedded.ErrRefused, name)
	}
	return c.server.Remove(ctx, name)
}

// leave removes this relay.
func (c *embeddedCluster) leave(ctx context.Context) error {
	err := c.journal.Leave(ctx)
	if err == nil {
		err = c.server.Remove(ctx, c.name)
	}
	switch {
	case errors.Is(err, embedded.ErrRefused):
		c.journal.Stay()
	case errors.Is(err, embedded.ErrUnknownPeer): // an earlier call removed this relay
		return nil
	}
	return err
}
