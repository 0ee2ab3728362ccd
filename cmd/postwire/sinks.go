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
		Short: "Pause a sink, and resume it",
		Long: `A sink that is paused is sent nothing, replays included; its events wait in the
journal. 'postwire status' shows how each sink is doing.`,
		Args: cobra.NoArgs,
	}
	f.register(cmd)
	cmd.AddCommand(
		sinkSteerCommand(&f, "pause", "Let nothing more be sent to a sink",
			`The pause outlives a restart of the relay, and holds for every process that
shares its journal. What is with the broker at that moment is still heard of.
Where max_age or max_events of the sink are set, they are applied when it is
resumed.`),
		sinkSteerCommand(&f, "resume", "Let a sink be sent to again, from where it stands",
			`Nothing is left out: delivery goes on behind the newest event that is done with.
A sink that is not paused is left as it is.`))
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
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s; events behind: %d\n", oneLine(s.Sink), how, s.Behind)
	return err
}
