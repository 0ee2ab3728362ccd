package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
)

func sinksCommand() *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use:   "sinks",
		Short: "Pause, resume, adopt or delete sinks",
		Long:  `Manage the sinks of a running relay. 'postwire status' shows the state of every sink.`,
		Args:  cobra.NoArgs,
	}
	f.register(cmd)
	cmd.AddCommand(
		sinkSteerCommand(&f, "pause", "Pause delivery to a sink",
			`Events stay pending in the journal, and replays to the sink stop, too. The pause
survives a restart of the relay, and applies to every relay of the journal. Batches
in flight still complete. If the sink has discard.after or discard.beyond, events
beyond the limit are discarded on resume.`),
		sinkSteerCommand(&f, "resume", "Resume delivery to a sink",
			`Delivery continues at the cursor, so no event is skipped, except events discarded by
discard.after or discard.beyond of the sink. For a sink without a pause, the command
has no effect.`),
		sinkAdoptCommand(&f), sinkDeleteCommand(&f))
	return cmd
}

func sinkAdoptCommand(a *adminFlags) *cobra.Command {
	var out output
	request := admin.AdoptRequest{}
	cmd := &cobra.Command{
		Use:   "adopt NAME --as SINK",
		Short: "Deliver the pending events of a removed sink to a configured sink",
		Long: `Deliver the events that were pending for a removed or renamed sink to a configured
sink, and delete the cursor of the removed sink. The relay delivers the events as a
replay, which survives a restart ('postwire replay --list'). The filter of the removed
sink is no longer known, so events that the configured sink already got are delivered
again. Events that the filter of the configured sink does not match are discarded.
Dead letters of the removed sink stay. 'postwire status' lists removed sinks.`,
		Example: "  postwire sinks adopt kafka-old --as kafka",
		Args:    cobra.ExactArgs(1),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			if request.As == "" {
				return fmt.Errorf("%w: --as: name the configured sink that gets the events", errUsage)
			}
			re, err := c.AdoptSink(cmd.Context(), args[0], request)
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), re)
			}
			text := fmt.Sprintf("sink %s adopts %d events of %s, as replay %s", oneLine(re.Sink), re.Total, oneLine(args[0]), re.ID)
			if re.Skipped > 0 {
				text += fmt.Sprintf("; discards %d events that the filter does not match", re.Skipped)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		}),
	}
	cmd.Flags().StringVar(&request.As, "as", "", "name of the configured sink that gets the events")
	cmd.Flags().IntVar(&request.Rate, "rate", 1000, "maximum number of events per second")
	out.register(cmd, "text")
	return cmd
}

func sinkDeleteCommand(a *adminFlags) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Discard the pending events of a removed sink",
		Long: `Discard the events that were pending for a sink when the sink was removed from the
configuration, and delete the cursor of the sink. Dead letters of the sink stay. To
deliver the events instead, use 'postwire sinks adopt'.`,
		Example: "  postwire sinks delete kafka-old",
		Args:    cobra.ExactArgs(1),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			d, err := c.DeleteSink(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "sink %s deleted; pending events discarded: %d\n", oneLine(d.Sink), d.Discarded)
			return err
		}),
	}
	out.register(cmd, "text")
	return cmd
}

func sinkSteerCommand(a *adminFlags, word, short, long string) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     word + " NAME...",
		Short:   short,
		Long:    short + ". " + long,
		Example: "  postwire sinks " + word + " kafka",
		Args:    cobra.MinimumNArgs(1),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			all := []relay.SinkStatus{}
			for _, name := range args {
				s, err := c.SteerSink(cmd.Context(), name, word)
				if err != nil {
					return err
				}
				if all = append(all, s); out == "json" {
					continue
				}
				if err := printPause(cmd, s); err != nil {
					return err
				}
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return nil
		}),
	}
	out.register(cmd, "text")
	return cmd
}

func printPause(cmd *cobra.Command, s relay.SinkStatus) error {
	state := "is not paused"
	if s.Paused != nil {
		state = "is paused since " + clockTime(s.Paused)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s; pending events: %d\n", oneLine(s.Sink), state, s.LagEvents)
	return err
}
