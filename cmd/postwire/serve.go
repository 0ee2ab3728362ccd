package main

import (
	"context"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/app"
)

func serveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Take webhooks and relay them, as a configuration says",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := app.Load(path)
			if err != nil {
				return err
			}
			log, err := app.NewLog(plan.Config.Log)
			if err != nil {
				return err
			}
			log.Info("starting", zap.String("config", path), zap.String("version", app.ReadVersion().Version))
			return run(cmd.Context(), plan, log)
		},
	}
	configFlag(cmd, &path)
	return cmd
}

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "postwire.yaml", "configuration file")
}

// run assembles a relay and carries until ctx is done.
func run(ctx context.Context, plan *app.Plan, log *app.Log) error {
	a, err := app.New(ctx, plan, log)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
