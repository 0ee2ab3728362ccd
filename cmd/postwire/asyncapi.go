package main

import (
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/pkg/app"
)

func asyncapiCommand() *cobra.Command {
	var path string
	var out output
	cmd := &cobra.Command{
		Use:   "asyncapi",
		Short: "Describe what a configuration sends, for those who read it",
		Long: `Prints an AsyncAPI 3.0 document of a configuration: the servers, subjects and
topics of its sinks, and the events that come there, with their schemas. It
holds no secret. A running relay serves the same at /api/asyncapi.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("yaml"); err != nil {
				return err
			}
			plan, err := app.Load(path)
			if err != nil {
				return err
			}
			document, err := plan.AsyncAPI(app.ReadVersion().Version)
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), document)
			}
			e := yaml.NewEncoder(cmd.OutOrStdout())
			e.SetIndent(2)
			if err := e.Encode(document); err != nil {
				return err
			}
			return e.Close()
		},
	}
	configFlag(cmd, &path)
	out.register(cmd, "yaml")
	return cmd
}
