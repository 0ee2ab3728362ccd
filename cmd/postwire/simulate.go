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

// simulation holds the flags of simulate and dev.
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
		Short: "Simulate Upload-Post: webhooks, and the API with a history of uploads",
		Long: `Simulate Upload-Post with successful and failed uploads, and with connected and
disconnected accounts. The simulator sends a signed webhook for every event once. As
Upload-Post does, the simulator pauses after five failed webhooks in a row, and sends
no webhook for the events of the pause. The history of the API contains every upload.`,
		Example: `  postwire simulate --url http://127.0.0.1:8080/webhooks/upload-post
  postwire simulate --rate 50 --failures 0.1 --per-profile-webhooks --breaker-pause 10s
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
	f.StringVar(&s.listen, "listen", "127.0.0.1:8090", "address to listen on for the API")
	f.StringVar(&s.url, "url", "http://127.0.0.1:8080/webhooks/upload-post", "URL of the account's webhook; empty for no webhook until 'postwire register' sets a URL")
	f.StringVar(&s.secret, "secret", os.Getenv("UPLOAD_POST_WEBHOOK_SECRET"), "sign with this secret (default $UPLOAD_POST_WEBHOOK_SECRET or a random secret, available from the API)")
	f.Lookup("secret").DefValue = "" // the help must not show the secret
	f.StringVar(&s.apiKey, "api-key", "", "required API key; empty accepts any key")
	s.register(cmd)
	f.IntVar(&s.piece.Count, "count", 0, "number of events; 0 for no limit until Ctrl-C")
	f.DurationVar(&s.breaker.Timeout, "breaker-timeout", simulator.DefaultBreaker().Timeout, "maximum time until the answer to a webhook")
	f.IntVar(&s.breaker.Failures, "breaker-failures", simulator.DefaultBreaker().Failures, "number of failed webhooks in a row before a pause")
	f.DurationVar(&s.breaker.Pause, "breaker-pause", simulator.DefaultBreaker().Pause, "duration of a pause")
	f.StringVar(&s.level, "log-level", "info", "minimum log level: debug, info, warn or error")
	return cmd
}

// register registers the flags for events, shared by simulate and dev.
func (s *simulation) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Float64Var(&s.piece.Rate, "rate", 1, "number of events per second")
	f.IntVar(&s.piece.Burst, "burst", 1, "number of concurrent events per burst")
	f.Float64Var(&s.piece.Failures, "failures", 0.1, "share of failed uploads, 0 to 1")
	f.Float64Var(&s.piece.Accounts, "accounts", 0.05, "share of account events, 0 to 1")
	f.BoolVar(&s.piece.TwoHooks, "per-profile-webhooks", false, "register a webhook per profile, in addition to the account's webhook and with an equal URL, so that every webhook arrives twice")
}

func (s *simulation) check() error {
	what, hint := config.Stray(s.secret)
	switch {
	case what != "":
		return fmt.Errorf("--secret %s; %s", what, hint)
	case s.secret != "" && len(s.secret) < config.MinProof:
		return fmt.Errorf("--secret has %d bytes, and a relay refuses a secret of less than %d bytes; create a secret by openssl rand -hex 32", len(s.secret), config.MinProof)
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

// run sends the events and serves the API, until ctx is done or every event is sent.
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
	if _, err := fmt.Fprintf(out, "The API listens at http://%s/api; webhooks go to %s\n", l.Addr(), s.url); err != nil {
		return err
	}
	played := service.Play(ctx, s.piece)
	if errors.Is(played, context.Canceled) {
		played = nil // Ctrl-C is the normal end
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = server.Shutdown(closing)
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		err = errors.Join(err, failed)
	}
	c := service.Counts()
	_, printed := fmt.Fprintf(out, "%7d  events\n%7d  webhooks accepted\n%7d  webhooks refused, or not answered in time\n%7d  webhooks lost in %d pauses\n",
		c.Events, c.Delivered, c.Failed, c.Dropped, c.Pauses)
	return errors.Join(played, err, printed)
}
