package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// simulation is what simulate and dev play.
type simulation struct {
	listen, url    string
	secret, apiKey string
	piece          simulator.Piece
	breaker        simulator.Breaker
	level          string
}

func simulateCommand() *cobra.Command {
	s := simulation{}
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Play Upload-Post: webhooks as it sends them, and its API with a history",
		Long: `Uploads end, well and badly, and accounts come and go. Each is told of to the
webhook, signed, once: five failures in a row are a pause, in which everything is
lost to the webhook. The history, at the API, has it all.`,
		Example: `  postwire simulate --url http://127.0.0.1:8080/webhooks/upload-post
  postwire simulate --rate 50 --failures 0.1 --two-hooks --breaker-pause 10s
  curl -H 'Authorization: Apikey any' 'http://127.0.0.1:8090/api/uploadposts/history?limit=10'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return s.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.listen, "listen", "127.0.0.1:8090", "where the API is")
	f.StringVar(&s.url, "url", "http://127.0.0.1:8080/webhooks/upload-post", "the account's webhook; empty leaves it to 'postwire register'")
	f.StringVar(&s.secret, "secret", os.Getenv("UPLOAD_POST_WEBHOOK_SECRET"), "sign with this secret (default $UPLOAD_POST_WEBHOOK_SECRET, else one is made, which the API tells)")
	f.Lookup("secret").DefValue = "" // the help must not show it
	f.StringVar(&s.apiKey, "api-key", "", "key that callers of the API must show; empty takes any")
	s.register(cmd)
	f.IntVar(&s.piece.Count, "count", 0, "how many events; 0 is until Ctrl-C")
	f.DurationVar(&s.breaker.Timeout, "breaker-timeout", simulator.DefaultBreaker().Timeout, "how long an answer is waited for")
	f.IntVar(&s.breaker.Failures, "breaker-failures", simulator.DefaultBreaker().Failures, "failures in a row before the pause")
	f.DurationVar(&s.breaker.Pause, "breaker-pause", simulator.DefaultBreaker().Pause, "how long the pause is")
	f.StringVar(&s.level, "log-level", "info", "least important level that is logged: debug, info, warn, error")
	return cmd
}

// register registers the flags that say what is played.
func (s *simulation) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Float64Var(&s.piece.Rate, "rate", 1, "events a second")
	f.IntVar(&s.piece.Burst, "burst", 1, "events at once")
	f.Float64Var(&s.piece.Failures, "failures", 0.1, "share of uploads that fail, 0 to 1")
	f.Float64Var(&s.piece.Accounts, "accounts", 0.05, "share of events that are of accounts, 0 to 1")
	f.BoolVar(&s.piece.TwoHooks, "two-hooks", false, "each profile has a webhook of its own at the same URL: everything arrives twice")
}

func (s *simulation) check() error {
	what, hint := config.Stray(s.secret)
	switch {
	case what != "":
		return fmt.Errorf("--secret %s; %s", what, hint)
	case s.secret != "" && len(s.secret) < config.MinProof:
		return fmt.Errorf("--secret has %d bytes, and a relay refuses a secret of less than %d; make one with openssl rand -hex 32", len(s.secret), config.MinProof)
	case s.piece.Rate <= 0:
		return errors.New("--rate: use more than 0")
	case s.piece.Burst < 1:
		return errors.New("--burst: use 1 or more")
	case s.piece.Count < 0:
		return errors.New("--count: use 0 or more")
	case s.piece.Failures < 0 || s.piece.Failures > 1:
		return errors.New("--failures: use a share from 0 to 1")
	case s.piece.Accounts < 0 || s.piece.Accounts > 1:
		return errors.New("--accounts: use a share from 0 to 1")
	case s.breaker.Timeout <= 0 || s.breaker.Failures < 1 || s.breaker.Pause < 0:
		return errors.New("--breaker-…: use times longer than 0, and 1 failure or more")
	}
	return nil
}

// run plays, and serves the API, until ctx is done or all is played.
func (s *simulation) run(ctx context.Context, out io.Writer) error {
	log, err := app.NewLog(config.Log{Level: s.level, Format: "console"})
	if err != nil {
		return fmt.Errorf("%w: --log-level: %w", errUsage, err)
	}
	service := simulator.New(simulator.Options{APIKey: config.Secret(s.apiKey), Breaker: s.breaker, Log: log.Logger})
	defer service.Close()
	if s.url != "" {
		service.SetWebhook(s.url, config.Secret(s.secret))
	}
	l, err := net.Listen("tcp", s.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	server := &http.Server{Handler: service.Handler(), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if _, err := fmt.Fprintf(out, "The API is at http://%s/api; webhooks go to %s\n", l.Addr(), s.url); err != nil {
		return err
	}
	played := service.Play(ctx, s.piece)
	if errors.Is(played, context.Canceled) {
		played = nil // Ctrl-C is how it ends
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = server.Shutdown(closing)
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		err = errors.Join(err, failed)
	}
	c := service.Counts()
	_, printed := fmt.Fprintf(out, "%7d  events\n%7d  webhooks taken\n%7d  webhooks refused, or not answered in time\n%7d  lost to %d pauses\n",
		c.Events, c.Delivered, c.Failed, c.Dropped, c.Pauses)
	return errors.Join(played, err, printed)
}
