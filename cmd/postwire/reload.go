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
		Short: "Let a running relay read its configuration again",
		Long: `Lets a running relay read its configuration, and the files that it names,
again. The relay also does so by itself when one of them changes, and on SIGHUP.
What is not right, or takes a restart, changes nothing.`,
		Args: cobra.NoArgs,
		RunE: asking(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
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
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "nothing has changed")
			default:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "taken over:", strings.Join(r.Changed, ", "))
			}
			return err
		}),
	}
	a.register(cmd)
	out.register(cmd, "text")
	return cmd
}
