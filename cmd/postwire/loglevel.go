package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
)

func logLevelCommand() *cobra.Command {
	var a adminFlags
	cmd := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show the level of a running relay's log, or change it",
		Long: `Asks a running relay for the level of its log, or changes it at once. The
change lasts until the process ends, or log.level of its configuration is
changed.`,
		Args: cobra.MaximumNArgs(1),
		RunE: asking(&a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			level, err := c.LogLevel(cmd.Context())
			if len(args) > 0 && err == nil {
				level, err = c.SetLogLevel(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), level.Level)
			return err
		}),
	}
	a.register(cmd)
	return cmd
}
