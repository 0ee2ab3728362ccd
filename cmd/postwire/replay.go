package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
)

func replayCommand() *cobra.Command {
	var a adminFlags
	var r admin.ReplayRequest
	var out output
	var list, detach bool
	var resume, stop string
	cmd := &cobra.Command{
		Use:   "replay --sink NAME --from 2h [--to 1h]",
		Short: "Deliver stored events to one sink again",
		Long: `Deliver stored events to one sink again, in order and at a limited rate, beside live
traffic. The relay runs the replay and stores its position: Ctrl-C stops a replay,
--continue continues a stopped replay, and a running replay survives a restart of the
relay. A replay can start as far back as journal.retention.`,
		Example: `  postwire replay --sink kafka --from 2h --to 1h --dry-run
  postwire replay --sink kafka --from 2026-01-31T12:00:00Z --filter 'platform == "instagram"' --topic repair
  postwire replay --list`,
		Args: cobra.NoArgs,
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("table"); err != nil {
				return err
			}
			switch {
			case list:
				return listReplays(cmd, c, out)
			case stop != "":
				re, err := c.SteerReplay(cmd.Context(), stop, "stop")
				if err != nil {
					return err
				}
				return printReplay(cmd, re, out)
			case resume != "":
				re, err := c.SteerReplay(cmd.Context(), resume, "continue")
				if err != nil {
					return err
				}
				return follow(cmd, c, re, detach, out)
			case r.Sink == "" || r.From == "":
				return fmt.Errorf("%w: set --sink and --from", errUsage)
			}
			plan := r
			plan.DryRun = true
			re, err := c.StartReplay(cmd.Context(), plan)
			if err != nil {
				return err
			}
			if out == "table" {
				fmt.Fprintf(cmd.OutOrStdout(), "events to send: %d; accepted from %s to %s, for sink %s, at most %d events per second\n",
					re.Total, re.From.Local().Format(time.DateTime), re.To.Local().Format(time.DateTime), re.Sink, re.Rate)
			}
			if r.DryRun || re.Total == 0 {
				if out == "json" {
					return printJSON(cmd.OutOrStdout(), re)
				}
				return nil
			}
			// Replay the counted range: an age such as 2h would now mean a later range.
			r.From, r.To = admin.When(re.From.Format(time.RFC3339Nano)), admin.When(re.To.Format(time.RFC3339Nano))
			if re, err = c.StartReplay(cmd.Context(), r); err != nil {
				return err
			}
			return follow(cmd, c, re, detach, out)
		}),
	}
	a.register(cmd)
	f := cmd.Flags()
	f.StringVar(&r.Sink, "sink", "", "name of the sink that gets the events")
	f.StringVar((*string)(&r.From), "from", "", "start of the range: events accepted from this time on; an age such as 2h, or a time such as 2026-01-31T12:00:00Z")
	f.StringVar((*string)(&r.To), "to", "", "end of the range (exclusive): an age such as 1h, or a time such as 2026-01-31T13:00:00Z (default now)")
	f.StringVar(&r.Filter, "filter", "", "select events by this CEL expression over attributes; the filter of the sink applies, too")
	f.StringVar(&r.Subject, "subject", "", "NATS subject, instead of the sink's subject")
	f.StringVar(&r.Topic, "topic", "", "Kafka topic, instead of the sink's topic")
	f.IntVar(&r.Rate, "rate", 1000, "maximum number of events per second")
	f.BoolVar(&r.DryRun, "dry-run", false, "count the events, and deliver nothing")
	f.BoolVar(&detach, "detach", false, "return at once, without waiting for the end of the replay")
	f.BoolVar(&list, "list", false, "list replays")
	f.StringVar(&stop, "stop", "", "stop the replay with this ID")
	f.StringVar(&resume, "continue", "", "continue the stopped replay with this ID")
	out.register(cmd, "table")
	cmd.MarkFlagsMutuallyExclusive("list", "stop", "continue", "sink")
	return cmd
}

func listReplays(cmd *cobra.Command, c *admin.Client, out output) error {
	all, err := c.Replays(cmd.Context())
	if err != nil {
		return err
	}
	if out == "json" {
		return printJSON(cmd.OutOrStdout(), all)
	}
	return table(cmd.OutOrStdout(), "ID SINK STATE SENT TOTAL REFUSED EXPIRED CREATED ERROR", func(row func(...any)) error {
		for _, re := range all {
			row(re.ID, re.Sink, re.State, re.Sent, re.Total, re.Refused, re.Expired, re.Created.Local().Format(time.DateTime), re.Error)
		}
		return nil
	})
}

// follow shows the progress of a replay until the end. An interrupted command stops
// the replay.
func follow(cmd *cobra.Command, c *admin.Client, re relay.Replay, detach bool, out output) error {
	if detach {
		return printReplay(cmd, re, out)
	}
	bar := progressbar.NewOptions(re.Total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
		progressbar.OptionSetDescription(re.Sink), progressbar.OptionClearOnFinish(),
		progressbar.OptionSetVisibility(term.IsTerminal(int(os.Stderr.Fd()))))
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for re.State == relay.ReplayRunning {
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			_ = bar.Clear()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 10*time.Second)
			defer cancel()
			stopped, err := c.SteerReplay(ctx, re.ID, "stop")
			if err != nil {
				return err
			}
			if err := printReplay(cmd, stopped, out); err != nil {
				return err
			}
			return fmt.Errorf("interrupted; to continue: postwire replay --continue %s", re.ID)
		}
		next, err := c.Replay(cmd.Context(), re.ID)
		if cmd.Context().Err() != nil {
			continue
		}
		if err != nil {
			return err
		}
		if next.State == relay.ReplayRunning && next.Error != "" && next.Error != re.Error {
			_ = bar.Clear()
			fmt.Fprintf(cmd.ErrOrStderr(), "delivery failed, retrying: %s\n", oneLine(next.Error))
		}
		re = next
		_ = bar.Set(min(re.Sent+re.Refused, re.Total)) // an error affects the display only
	}
	_ = bar.Clear()
	if err := printReplay(cmd, re, out); err != nil {
		return err
	}
	if re.State == relay.ReplayFailed || re.Refused > 0 {
		return fmt.Errorf("some events were not delivered: %s", re.Error)
	}
	return nil
}

func printReplay(cmd *cobra.Command, re relay.Replay, out output) error {
	if out == "json" {
		return printJSON(cmd.OutOrStdout(), re)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "replay %s is %s: %d of %d sent, %d refused, %d expired\n",
		re.ID, re.State, re.Sent, re.Total, re.Refused, re.Expired)
	return err
}
