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
		Short: "Show or set the log level of a running relay",
		Long: `Show the log level of a running relay, or set the level at once. The change lasts
until the relay stops, or a reload changes log.level.`,
		Args: cobra.MaximumNArgs(1),
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
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
