package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
)

func reloadCommand() *cobra.Command {
	var a adminFlags
	var out output
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Reload the configuration of a running relay",
		Long: `Reload the configuration of a running relay, and the files named in the
configuration. A relay also reloads when a file changes, and on SIGHUP. The relay
refuses the complete change if the configuration has an error, or if a changed key
needs a restart.`,
		Args: cobra.NoArgs,
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			r, err := c.Reload(cmd.Context())
			switch {
			case err != nil:
				return err
			case out == "json":
				return printJSON(cmd.OutOrStdout(), r)
			case len(r.Changed) == 0:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "reloaded; no change")
			default:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "reloaded; changed:", strings.Join(r.Changed, ", "))
			}
			return err
		}),
	}
	a.register(cmd)
	out.register(cmd, "text")
	return cmd
}
