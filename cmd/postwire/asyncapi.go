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
		Short: "Print an AsyncAPI document of a configuration",
		Long: `Print an AsyncAPI 3.0 document of a configuration, for consumers: the servers,
subjects and topics of the sinks, and the events with schemas. The document
contains no secret. A running relay serves the document at /api/asyncapi.`,
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
