package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
)

func reconcileCommand() *cobra.Command {
	var a adminFlags
	var out output
	var r admin.ReconcileRequest
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Backfill missed webhooks from Upload-Post's history",
		Long: `Compare the stored events of a running relay with Upload-Post's history of uploads,
and store an event for every upload for which no webhook arrived. The source needs
api.key in the configuration. With reconcile.interval, the relay reconciles
periodically.`,
		Example: `  postwire reconcile --from 48h --dry-run
  postwire reconcile --from 2026-01-31T00:00:00Z --to 2026-02-01T00:00:00Z`,
		Args: cobra.NoArgs,
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			report, err := c.Reconcile(cmd.Context(), r)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if out == "json" {
				return printJSON(w, report)
			}
			verb := "backfilled"
			if r.DryRun {
				verb = "missing"
			}
			for _, id := range report.Events {
				if _, err := fmt.Fprintln(w, oneLine(id)); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(w, "from %s to %s: %d uploads, %d known, %d %s\n",
				report.From.Local().Format(time.DateTime), report.To.Local().Format(time.DateTime), report.Uploads, report.Known, report.Recovered, verb)
			if err == nil && report.Unreadable > 0 {
				_, err = fmt.Fprintf(w, "%d uploads could not be converted to events, and were skipped\n", report.Unreadable)
			}
			return err
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.Source, "source", "", "name of the source; optional if only one source has an API key")
	f.StringVar((*string)(&r.From), "from", "48h", "compare uploads from this time on: an age such as 48h, or a time such as 2026-01-31T12:00:00Z")
	f.StringVar((*string)(&r.To), "to", "", "compare uploads before this time: an age such as 24h, or a time such as 2026-02-01T12:00:00Z (default now)")
	f.BoolVar(&r.DryRun, "dry-run", false, "list missing events, and store nothing")
	a.register(cmd)
	out.register(cmd, "text")
	return cmd
}
