package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/app"
)

func serveCommand() *cobra.Command {
	var path string
	var takeOver bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the relay",
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
			app.LimitMemory(log)
			if takeOver {
				if err := plan.TakeOver(cmd.Context(), log); err != nil {
					return err
				}
			}
			a, err := app.New(cmd.Context(), plan, log)
			if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil {
				log.Info("stopped before the journal was open")
				return nil
			}
			if err != nil {
				return err
			}
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			go func() {
				for {
					select {
					case <-hangup:
						_, _ = a.Reload(cmd.Context()) // Reload logs errors
					case <-cmd.Context().Done():
						return
					}
				}
			}()
			return a.Run(cmd.Context())
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&takeOver, "takeover", false, "take over from the relay that uses the journal: new connections wait while it stops, and are not refused (engine local)")
	return cmd
}

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "postwire.yaml", "configuration file")
}
