package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/app"
)

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := app.ReadVersion()
			switch output {
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			case "text":
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "postwire %s (commit %s, %s, %s)\n", v.Version, v.Commit, v.Date, v.Go)
				return err
			}
			return fmt.Errorf("%w: --output %s: use text or json", errUsage, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "output format: text or json")
	return cmd
}
