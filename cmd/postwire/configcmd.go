package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/config"
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
	var allowMissing bool
	cmd := &cobra.Command{
		Use:   "validate [FILE | -]",
		Short: "Report every error and every warning of a configuration",
		Long: `Report every error and every warning of a configuration. With - the command reads
standard input: a configuration, or Kubernetes objects such as the output of helm
template. Of Kubernetes objects the command validates the key postwire.yaml of every
ConfigMap, with the environment variables that the objects give a container as text.`,
		Example: `  postwire config validate postwire.yaml
  helm template postwire charts/postwire -f values.yaml | postwire config validate --allow-missing -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if cmd.Flags().Changed("config") {
					return fmt.Errorf("%w: name the configuration as an argument or with -c, not with both", errUsage)
				}
				path = args[0]
			}
			documents, err := readDocuments(cmd, path)
			if err != nil {
				return err
			}
			var errs []error
			for _, d := range documents {
				errs = append(errs, validate(cmd, d, allowMissing))
			}
			return config.Merge(errs...)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&allowMissing, "allow-missing", false, "report environment variables and files that are missing on this machine as warnings")
	return cmd
}

// readDocuments reads the configuration at path, or standard input.
func readDocuments(cmd *cobra.Command, path string) ([]app.Document, error) {
	if path != "-" {
		d, err := app.ReadDocument(path)
		return []app.Document{d}, err
	}
	documents, err := app.ReadDocuments(cmd.InOrStdin())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	return documents, nil
}

// validate reports the warnings of a configuration, and returns its errors.
func validate(cmd *cobra.Command, d app.Document, allowMissing bool) error {
	if allowMissing {
		missing, wrong, err := d.ParseWithoutSecrets()
		if err != nil {
			return err
		}
		if err := printWarnings(cmd, missing); err != nil {
			return err
		}
		if len(wrong) > 0 {
			return wrong
		}
		if len(missing) > 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid; not checked because missing: %d values\n", d.Name, len(missing))
			return err
		}
	}
	plan, err := d.Parse()
	if err != nil {
		return err
	}
	if err := printWarnings(cmd, plan.Warnings); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid; sources: %d, sinks: %d\n", d.Name, len(plan.Sources), len(plan.Sinks))
	return err
}

func printWarnings(cmd *cobra.Command, warnings config.Problems) error {
	for _, w := range warnings {
		if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w); err != nil {
			return err
		}
	}
	return nil
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
