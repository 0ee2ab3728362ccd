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
		Long: `A sink that is paused is sent nothing, replays included; its events wait in the
journal. 'postwire status' shows how each sink is doing.`,
		Args: cobra.NoArgs,
	}
	f.register(cmd)
	cmd.AddCommand(
		sinkSteerCommand(&f, "pause", "Let nothing more be sent to a sink",
			`The pause outlives a restart of the relay, and holds for every process that
shares its journal. What is with the broker at that moment is still heard of.
The discard policy of the sink is applied when it is
resumed.`),
		sinkSteerCommand(&f, "resume", "Let a sink be sent to again, from where it stands",
			`Nothing is left out: delivery goes on behind the newest event that is done with.
A sink that is not paused is left as it is.`),
		sinkAdoptCommand(&f), sinkDeleteCommand(&f))
	return cmd
}

func sinkAdoptCommand(a *adminFlags) *cobra.Command {
	var out output
	request := admin.AdoptRequest{}
	cmd := &cobra.Command{
		Use:   "adopt NAME --as SINK",
		Short: "Deliver the pending events of a sink that is no longer configured to another sink",
		Long: `Deliver the events that were pending for a sink when it was removed from the
configuration, or renamed, to a configured sink, and delete the cursor of the old
one. The running relay sends them as a replay that survives a restart ('postwire
replay --list'). Events that the configured sink got before are sent again, since
the filter of the old sink is not known any more. Events that the filter of the
configured sink does not match are discarded. Dead letters of the old sink stay.
'postwire status' lists sinks that are no longer configured.`,
		Example: "  postwire sinks adopt kafka-old --as kafka",
		Args:    cobra.ExactArgs(1),
		RunE: asking(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
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
				text += fmt.Sprintf("; discards %d events that its filter does not match", re.Skipped)
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
		Short: "Discard the pending events of a sink that is no longer configured",
		Long: `Discards the events that were pending for a sink when it was removed from the
configuration: deletes the cursor of the sink. Its dead letters stay. To deliver
the events, use 'postwire sinks adopt'.`,
		Example: "  postwire sinks delete kafka-old",
		Args:    cobra.ExactArgs(1),
		RunE: asking(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
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
		RunE: asking(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
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
				if err := tellSink(cmd, s); err != nil {
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

func tellSink(cmd *cobra.Command, s relay.SinkStatus) error {
	how := "is not paused"
	if s.Paused != nil {
		how = "is paused since " + clockTime(s.Paused)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s; events behind: %d\n", oneLine(s.Sink), how, s.LagEvents)
	return err
}
