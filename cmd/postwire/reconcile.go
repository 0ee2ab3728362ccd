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
		Short: "Enter what Upload-Post's history has and no webhook has told of",
		Long: `Lets a running relay compare the history of uploads with what it has stored, and
enter what is missing as a webhook would have. The source needs api.key in the
configuration; with reconcile.interval the relay does it by itself.`,
		Example: `  postwire reconcile --from 48h --dry-run
  postwire reconcile --from 2026-01-31T00:00:00Z --to 2026-02-01T00:00:00Z`,
		Args: cobra.NoArgs,
		RunE: asking(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
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
			what := "recovered"
			if r.DryRun {
				what = "missing"
			}
			for _, id := range report.Events {
				if _, err := fmt.Fprintln(w, oneLine(id)); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(w, "from %s to %s: %d uploads, %d known, %d %s\n",
				report.From.Local().Format(time.DateTime), report.To.Local().Format(time.DateTime), report.Uploads, report.Known, report.Recovered, what)
			if err == nil && report.Unreadable > 0 {
				_, err = fmt.Fprintf(w, "%d make no event and were passed over\n", report.Unreadable)
			}
			return err
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.Source, "source", "", "which source; may be left out where there is one")
	f.StringVar((*string)(&r.From), "from", "48h", "uploads from then on: 48h, or 2026-01-31T12:00:00Z")
	f.StringVar((*string)(&r.To), "to", "", "and before then (default now)")
	f.BoolVar(&r.DryRun, "dry-run", false, "only show what is missing")
	a.register(cmd)
	out.register(cmd, "text")
	return cmd
}
