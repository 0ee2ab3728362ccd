package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/admin"
)

func clusterCommand() *cobra.Command {
	var a adminFlags
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Show the relays of the embedded cluster, or remove a relay",
		Long: `Manage the embedded cluster of the journal (journal.jetstream.embedded). For a cluster
of NATS servers, use the command nats instead.`,
		Args: cobra.NoArgs,
	}
	a.register(cmd)
	cmd.AddCommand(clusterStatusCommand(&a), clusterRemoveCommand(&a))
	return cmd
}

func clusterStatusCommand(a *adminFlags) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the relays of the embedded cluster and their replicas of the journal",
		Long: `Show the relays of the embedded cluster, from the view of the leader of the cluster.
Any relay answers. A relay without a replica of the journal is a member, too.`,
		Args: cobra.NoArgs,
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("table"); err != nil {
				return err
			}
			st, err := c.Cluster(cmd.Context())
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), st)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "cluster %s: %d relays, %d needed to accept events\n\n", oneLine(st.Cluster), len(st.Relays), st.Quorum)
			return table(cmd.OutOrStdout(), "RELAY ONLINE LEADER REPLICA COMPLETE LAG", func(row func(...any)) error {
				for _, p := range st.Relays {
					row(p.Name, p.Online, p.Leader, p.Replica, p.Complete, p.Lag)
				}
				return nil
			})
		}),
	}
	out.register(cmd, "table")
	return cmd
}

func clusterRemoveCommand(a *adminFlags) *cobra.Command {
	var lost bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a relay from the embedded cluster, before the relay is switched off for good",
		Long: `Remove a relay from the embedded cluster. The command moves the relay's replica of the
journal to another relay, waits until the copy is complete, and removes the relay.

Send the command to the relay that is to be removed. The relay accepts no events from
then on, and the command waits until the spill of the relay is forwarded. Then stop the
relay, remove its address from journal.jetstream.embedded.peers of the other relays, and
delete its folder.

The command refuses if fewer than three relays would remain, or if a remaining relay is
not complete. To remove a relay whose disk is lost, send the command to another relay,
with --lost: events in the spill of the lost relay are lost.`,
		Example: "  postwire cluster remove relay-3 --admin http://relay-3:9090",
		Args:    cobra.ExactArgs(1),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			for {
				err := c.RemoveRelay(ctx, args[0], lost)
				refused, ok := errors.AsType[*admin.RefusedError](err)
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is removed from the cluster; stop the relay\n", oneLine(args[0]))
					return err
				}
				if !ok || refused.Status != http.StatusServiceUnavailable {
					return err
				}
				if sleep.For(ctx, time.Second) != nil {
					return fmt.Errorf("the removal is not complete after %v, run the command again to continue: %w", timeout, err)
				}
			}
		}),
	}
	cmd.Flags().BoolVar(&lost, "lost", false, "remove a relay that does not run and whose disk is lost; discards the events in the spill of that relay")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "maximum time to wait for the removal")
	return cmd
}
