package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/app"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Validate, test, describe or print a configuration",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(validateCommand(), testCommand(), schemaCommand(), printCommand())
	return cmd
}

func validateCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Report every error and every warning of a configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := app.Load(path)
			if err != nil {
				return err
			}
			for _, w := range plan.Warnings {
				if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid; sources: %d, sinks: %d\n", path, len(plan.Sources), len(plan.Sinks))
			return err
		},
	}
	configFlag(cmd, &path)
	return cmd
}

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			schema, err := app.Schema()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(schema)
			return err
		},
	}
}

func printCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print a configuration with every default and without secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := app.Load(path)
			if err != nil {
				return err
			}
			text, err := plan.YAML()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	configFlag(cmd, &path)
	return cmd
}
