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
	var goOn, stop string
	cmd := &cobra.Command{
		Use:   "replay --sink NAME --from 2h [--to 1h]",
		Short: "Send stored events to one sink again",
		Long: `Send stored events to one sink again, in order and at a bounded rate, beside
live traffic. The running relay does it and remembers how far it is: Ctrl-C
stops a replay, --continue lets it go on, and a restart of the relay does not
end it. How far back it can go is journal.retention of the relay.`,
		Example: `  postwire replay --sink kafka --from 2h --to 1h --dry-run
  postwire replay --sink kafka --from 2026-01-31T12:00:00Z --filter 'platform == "instagram"' --topic repair
  postwire replay --list`,
		Args: cobra.NoArgs,
		RunE: asking(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
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
				return tellReplay(cmd, re, out)
			case goOn != "":
				re, err := c.SteerReplay(cmd.Context(), goOn, "continue")
				if err != nil {
					return err
				}
				return follow(cmd, c, re, detach, out)
			case r.Sink == "" || r.From == "":
				return fmt.Errorf("%w: --sink and --from are needed", errUsage)
			}
			plan := r
			plan.DryRun = true
			re, err := c.StartReplay(cmd.Context(), plan)
			if err != nil {
				return err
			}
			if out == "table" {
				fmt.Fprintf(cmd.OutOrStdout(), "events to send: %d; accepted from %s to %s, for sink %s, at most %d a second\n",
					re.Total, re.From.Local().Format(time.DateTime), re.To.Local().Format(time.DateTime), re.Sink, re.Rate)
			}
			if r.DryRun || re.Total == 0 {
				if out == "json" {
					return printJSON(cmd.OutOrStdout(), re)
				}
				return nil
			}
			// What was counted is what is sent, though time goes on.
			r.From, r.To = admin.When(re.From.Format(time.RFC3339Nano)), admin.When(re.To.Format(time.RFC3339Nano))
			if re, err = c.StartReplay(cmd.Context(), r); err != nil {
				return err
			}
			return follow(cmd, c, re, detach, out)
		}),
	}
	a.register(cmd)
	f := cmd.Flags()
	f.StringVar(&r.Sink, "sink", "", "name of the sink")
	f.StringVar((*string)(&r.From), "from", "", "events accepted since then: 2h, or 2026-01-31T12:00:00Z")
	f.StringVar((*string)(&r.To), "to", "", "and before then (default now)")
	f.StringVar(&r.Filter, "filter", "", "CEL expression over the attributes; the filter of the sink must match, too")
	f.StringVar(&r.Subject, "subject", "", "subject to use instead of the sink's")
	f.StringVar(&r.Topic, "topic", "", "topic to use instead of the sink's")
	f.IntVar(&r.Rate, "rate", 1000, "most events a second")
	f.BoolVar(&r.DryRun, "dry-run", false, "only say how many would be sent")
	f.BoolVar(&detach, "detach", false, "do not wait for the end")
	f.BoolVar(&list, "list", false, "list the replays there are")
	f.StringVar(&stop, "stop", "", "stop the replay with this ID")
	f.StringVar(&goOn, "continue", "", "let the stopped replay with this ID go on")
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

// follow shows how far a replay is until it ends. When the command is
// interrupted, it stops the replay.
func follow(cmd *cobra.Command, c *admin.Client, re relay.Replay, detach bool, out output) error {
	if detach {
		return tellReplay(cmd, re, out)
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
			if err := tellReplay(cmd, stopped, out); err != nil {
				return err
			}
			return fmt.Errorf("interrupted; it goes on with: postwire replay --continue %s", re.ID)
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
			fmt.Fprintf(cmd.ErrOrStderr(), "the broker: %s\n", oneLine(next.Error))
		}
		re = next
		_ = bar.Set(min(re.Sent+re.Refused, re.Total)) // only a picture
	}
	_ = bar.Clear()
	if err := tellReplay(cmd, re, out); err != nil {
		return err
	}
	if re.State == relay.ReplayFailed || re.Refused > 0 {
		return fmt.Errorf("not all was delivered: %s", re.Error)
	}
	return nil
}

func tellReplay(cmd *cobra.Command, re relay.Replay, out output) error {
	if out == "json" {
		return printJSON(cmd.OutOrStdout(), re)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "replay %s is %s: %d of %d sent, %d refused, %d expired\n",
		re.ID, re.State, re.Sent, re.Total, re.Refused, re.Expired)
	return err
}
