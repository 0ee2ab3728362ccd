package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
)

func statusCommand() *cobra.Command {
	var a adminFlags
	var out output
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the journal and of every sink",
		Long: `Show the state of the journal and of every sink. In a cluster, any relay shows the
owner of every sink, the relay that delivers to the sink. Only the owner knows the
state of the sink; other relays show the state "remote".`,
		Args: cobra.NoArgs,
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
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

// unconfiguredLine formats a sink with a cursor in the journal that is not configured.
func unconfiguredLine(u relay.UnconfiguredSink) string {
	name := oneLine(u.Sink)
	switch {
	case u.Replay != "":
		return fmt.Sprintf("%s is not in the configuration; replay %s delivers its %d pending events to another sink\n", name, oneLine(u.Replay), u.LagEvents)
	case u.LagEvents > 0:
		return fmt.Sprintf("%s is not in the configuration, its %d pending events are not delivered; 'postwire sinks adopt %[1]s --as NAME' delivers them, 'postwire sinks delete %[1]s' discards them\n", name, u.LagEvents)
	}
	return ""
}

// filterLine formats a problem of a filter: no match, or failed evaluations.
func filterLine(sink string, f relay.FilterCounts) string {
	switch {
	case f.Errors > 0:
		return fmt.Sprintf("%s: the filter could not be evaluated for %d events; these events are not delivered: %s\n", oneLine(sink), f.Errors, oneLine(f.LastError))
	case f.NeverMatched():
		return fmt.Sprintf("%s: the filter has matched none of %d events\n", oneLine(sink), f.Filtered)
	}
	return ""
}

func showStatus(cmd *cobra.Command, s admin.Status) error {
	w := cmd.OutOrStdout()
	j := s.Journal
	fmt.Fprintf(w, "%s, version %s\njournal: %s, %d events in %.1f MiB", oneLine(s.Name), oneLine(s.Version), j.Engine, j.Events, float64(j.Bytes)/(1<<20))
	if j.MaxBytes > 0 {
		fmt.Fprintf(w, " of %.1f MiB", float64(j.MaxBytes)/(1<<20))
	}
	if j.Spilled > 0 {
		fmt.Fprintf(w, "; %d events in the spill", j.Spilled)
		if j.SpilledSince != nil {
			fmt.Fprintf(w, ", since %s", j.SpilledSince.Local().Format(time.DateTime))
		}
	}
	fmt.Fprintln(w)
	if j.Problem != "" {
		fmt.Fprintf(w, "journal: refuses events: %s\n", oneLine(j.Problem))
	}
	fmt.Fprintln(w)
	err := table(w, "SINK STATE LAG OLDEST DELIVERED_BY SINCE", func(row func(...any)) error {
		for _, sink := range s.Sinks {
			owner := sink.Owner
			if sink.Local {
				owner += " (this relay)"
			}
			row(sink.Sink, sink.State, sink.LagEvents, ago(sink.Oldest), owner, clockTime(sink.Since))
		}
		return nil
	})
	for _, u := range s.UnconfiguredSinks {
		if err == nil {
			_, err = fmt.Fprint(w, unconfiguredLine(u))
		}
	}
	for _, sink := range s.Sinks {
		if f := sink.FilterCounts; f != nil && err == nil {
			_, err = fmt.Fprint(w, filterLine(sink.Sink, *f))
		}
		if sink.Error != "" && err == nil {
			_, err = fmt.Fprintf(w, "%s has been failing since %s: %s\n", oneLine(sink.Sink), clockTime(sink.Failing), oneLine(sink.Error))
		}
		if err == nil {
			_, err = fmt.Fprint(w, blockedLine(sink))
		}
		if sink.Paused != nil && err == nil {
			_, err = fmt.Fprintf(w, "%s is paused since %s; 'postwire sinks resume %[1]s' resumes delivery\n", oneLine(sink.Sink), clockTime(sink.Paused))
		}
	}
	return err
}

// blockedLine says what waits at a sink because of a failure, or is empty.
func blockedLine(s relay.SinkStatus) (text string) {
	name := oneLine(s.Sink)
	if s.BlockedKeys > 0 {
		text += fmt.Sprintf("%s: failed events of %d partition keys wait, with the later events of these keys; 'postwire sinks blocked %[1]s' lists them\n", name, s.BlockedKeys)
	}
	if s.BlockedDestinations > 0 {
		text += fmt.Sprintf("%s: %d destinations fail, their events wait\n", name, s.BlockedDestinations)
	}
	if s.ReadLimit != "" {
		text += fmt.Sprintf("%s: reading ahead has stopped at the limit %s\n", name, s.ReadLimit)
	}
	return text
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
