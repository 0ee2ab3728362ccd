package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
)

func statusCommand() *cobra.Command {
	var a adminFlags
	var out output
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the journal and each sink are doing, and who delivers",
		Long: `Asks a running relay how its journal and each of its sinks are doing. Where
several processes share a journal, any of them knows which one delivers to which
sink; how a sink takes its events, only that one.`,
		Args: cobra.NoArgs,
		RunE: asking(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("table"); err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return showStatus(cmd, s)
		}),
	}
	a.register(cmd)
	out.register(cmd, "table")
	return cmd
}

func showStatus(cmd *cobra.Command, s admin.Status) error {
	w := cmd.OutOrStdout()
	j := s.Journal
	fmt.Fprintf(w, "%s, version %s\njournal: %s, %d events in %.1f MiB", oneLine(s.Name), oneLine(s.Version), j.Engine, j.Events, float64(j.Bytes)/(1<<20))
	if j.MaxBytes > 0 {
		fmt.Fprintf(w, " of %.1f MiB", float64(j.MaxBytes)/(1<<20))
	}
	if j.Spilled > 0 {
		fmt.Fprintf(w, "; %d wait here for the cluster", j.Spilled)
		if j.SpilledSince != nil {
			fmt.Fprintf(w, ", since %s", j.SpilledSince.Local().Format(time.DateTime))
		}
	}
	fmt.Fprintln(w)
	if j.Problem != "" {
		fmt.Fprintf(w, "journal: takes nothing: %s\n", oneLine(j.Problem))
	}
	fmt.Fprintln(w)
	err := table(w, "SINK STATE BEHIND OLDEST DELIVERED_BY SINCE", func(row func(...any)) error {
		for _, sink := range s.Sinks {
			holder := sink.Holder
			if sink.Here {
				holder += " (this one)"
			}
			row(sink.Sink, sink.State, sink.Behind, ago(sink.Oldest), holder, clockTime(sink.Since))
		}
		return nil
	})
	for _, sink := range s.Sinks {
		if sink.Paused != nil && err == nil {
			_, err = fmt.Fprintf(w, "%s is paused since %s; 'postwire sinks resume %[1]s' lets it go on\n", oneLine(sink.Sink), clockTime(sink.Paused))
		}
	}
	return err
}

func ago(t *time.Time) string {
	if t == nil {
		return ""
	}
	return time.Since(*t).Round(time.Second).String()
}

func clockTime(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format(time.DateTime)
}
