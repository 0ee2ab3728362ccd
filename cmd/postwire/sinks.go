package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
)

func sinksCommand() *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use:   "sinks",
		Short: "Pause, resume, adopt or delete sinks, and list their blocked events",
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
		sinkBlockedCommand(&f), sinkAdoptCommand(&f), sinkDeleteCommand(&f))
	return cmd
}

func sinkBlockedCommand(a *adminFlags) *cobra.Command {
	var out output
	var limit int
	var retry, deadLetter, discard uint64
	var wholeKey bool
	cmd := &cobra.Command{
		Use:   "blocked NAME",
		Short: "List the failed events of a sink that wait, or decide about one",
		Long: `List the failed events of a sink that wait for their next attempt, and the destinations
that fail. An event that fails holds back only the later events of its partition key; a
destination that fails, such as a topic partition, holds back only its own events.

With --retry, --dead-letter or --discard, decide about one of the events instead. A
discarded event is not delivered and does not become a dead letter. Ask the relay that
delivers to the sink: 'postwire status' names the relay.`,
		Example: "  postwire sinks blocked kafka\n  postwire sinks blocked kafka --dead-letter 4711 --whole-key",
		Args:    cobra.ExactArgs(1),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			if err := out.check("table"); err != nil {
				return err
			}
			var decisions []relay.BlockedDecision
			var seq uint64
			for decision, of := range map[relay.BlockedDecision]uint64{relay.BlockedRetry: retry, relay.BlockedDeadLetter: deadLetter, relay.BlockedDiscard: discard} {
				if of > 0 {
					decisions, seq = append(decisions, decision), of
				}
			}
			switch {
			case len(decisions) > 1:
				return fmt.Errorf("%w: --retry, --dead-letter and --discard exclude each other: use one", errUsage)
			case len(decisions) == 0 && wholeKey:
				return fmt.Errorf("%w: --whole-key: use it with --dead-letter or --discard", errUsage)
			case len(decisions) == 0:
				b, err := c.Blocked(cmd.Context(), args[0], limit)
				if err != nil {
					return err
				}
				if out == "json" {
					return printJSON(cmd.OutOrStdout(), b)
				}
				return printBlocked(cmd.OutOrStdout(), b)
			}
			request := admin.BlockedRequest{Decision: decisions[0], WholeKey: wholeKey}
			if err := c.ResolveBlocked(cmd.Context(), args[0], seq, request); err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), request)
			}
			done := map[relay.BlockedDecision]string{
				relay.BlockedRetry: "is tried again", relay.BlockedDeadLetter: "becomes a dead letter", relay.BlockedDiscard: "is discarded and not delivered",
			}[request.Decision]
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "event %d of sink %s %s\n", seq, oneLine(args[0]), done)
			return err
		}),
	}
	p := cmd.Flags()
	p.IntVar(&limit, "limit", 100, "maximum number of listed events, at most 1000")
	p.Uint64Var(&retry, "retry", 0, "sequence of the event to try again at once")
	p.Uint64Var(&deadLetter, "dead-letter", 0, "sequence of the event to turn into a dead letter")
	p.Uint64Var(&discard, "discard", 0, "sequence of the event to discard; a discarded event is not delivered")
	p.BoolVar(&wholeKey, "whole-key", false, "with --dead-letter or --discard: decide also about the later events of its partition key that are stored now")
	out.register(cmd, "table")
	return cmd
}

func printBlocked(w io.Writer, b relay.Blocked) error {
	if len(b.Destinations) > 0 {
		err := table(w, "DESTINATION PARTITION SINCE NEXT ERROR", func(row func(...any)) error {
			for _, d := range b.Destinations {
				row(oneLine(d.Name), d.Partition, clockTime(&d.Since), clockTime(&d.Next), oneLine(d.Error))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	err := table(w, "SEQ KEY ATTEMPTS FIRST NEXT EVENT ERROR", func(row func(...any)) error {
		for _, e := range b.Events {
			row(e.Seq, oneLine(e.PartitionKey), e.Attempts, clockTime(&e.First), clockTime(e.Next), oneLine(e.ID), oneLine(e.Error))
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "blocked keys: %d; events that are read again later: %d\n", b.Keys, b.Deferred)
	return err
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
