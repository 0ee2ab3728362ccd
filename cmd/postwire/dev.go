package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"text/template"

	_ "embed"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/dev"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

//go:embed dev.yaml
var devConfig []byte

func devCommand() *cobra.Command {
	var dir string
	var port, natsPort int
	var simulate bool
	sim := simulation{breaker: simulator.DefaultBreaker(), level: "warn"}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a relay with an embedded NATS server, for development",
		Example: `  postwire dev
  postwire dev --simulate --rate 5`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := sim.check(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			nats, err := dev.NATS(filepath.Join(dir, "nats"), natsPort)
			if err != nil {
				return err
			}
			defer func() {
				nats.Shutdown()
				nats.WaitForShutdown()
			}()
			ingress, err1 := dev.FreePort(port)
			admin, err2 := dev.FreePort(9090)
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			loopback := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
			world := map[string]string{
				"DIR": dir, "NATS": nats.ClientURL(), "INGRESS": loopback(ingress), "ADMIN": loopback(admin),
			}
			plan, err := app.Parse("dev.yaml", devConfig, func(name string) (string, bool) {
				v, ok := world[name]
				return v, ok
			})
			if err != nil {
				return err
			}
			log, err := app.NewLog(plan.Config.Log)
			if err != nil {
				return err
			}
			if err := greet(cmd.OutOrStdout(), world); err != nil {
				return err
			}
			a, err := app.New(cmd.Context(), plan, log) // the relay listens from here on
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			var g errgroup.Group
			if simulate {
				apiPort, err := dev.FreePort(8090)
				if err != nil {
					return err
				}
				sim.listen, sim.url = loopback(apiPort), "http://"+loopback(ingress)+"/webhooks/upload-post"
				g.Go(func() error { return sim.run(ctx, cmd.OutOrStdout()) })
			}
			g.Go(func() error {
				defer cancel()
				return a.Run(ctx)
			})
			return g.Wait()
		},
	}
	sim.register(cmd)
	cmd.Flags().BoolVar(&simulate, "simulate", false, "also simulate Upload-Post, as 'postwire simulate' does; the flags --rate, --burst, --failures, --accounts and --per-profile-webhooks apply")
	cmd.Flags().StringVar(&dir, "dir", ".postwire", "folder for stored events")
	cmd.Flags().IntVar(&port, "port", 8080, "port for webhooks; if the port is in use, the next free port")
	cmd.Flags().IntVar(&natsPort, "nats-port", 4222, "port of the NATS server; if the port is in use, the next free port")
	return cmd
}

// greeting lists addresses and commands to try.
const greeting = `Postwire accepts webhooks at http://{{.INGRESS}}/webhooks/upload-post
NATS with JetStream runs at  {{.NATS}}  (stream EVENTS)
The console is at            http://{{.ADMIN}}/console/
Health and metrics are at    http://{{.ADMIN}}/readyz and /metrics
Events are stored in         {{.DIR}}

Try, in another terminal:

  nats sub --server {{.NATS}} 'events.>'

  curl -i http://{{.INGRESS}}/webhooks/upload-post -H 'Content-Type: application/json' -d '{
    "event": "upload_completed", "profile_username": "demo", "platform": "instagram", "media_type": "video",
    "title": "Hello", "caption": "from curl", "created_at": "2024-03-15T14:30:00.000000",
    "result": {"success": true, "publish_id": "1", "url": "https://www.instagram.com/p/1/", "error": null}}'

  go run ./cmd/postwire send --url http://{{.INGRESS}}/webhooks/upload-post --count 20 --duplicates 0.2

Send the curl line twice: the second webhook is answered "duplicate", and is not delivered.
Every delivered event is printed below. Ctrl-C stops the relay.

`

func greet(w io.Writer, world map[string]string) error {
	t, err := template.New("greeting").Parse(greeting)
	if err != nil {
		return err
	}
	if err := t.Execute(w, world); err != nil {
		return fmt.Errorf("printing the greeting: %w", err)
	}
	return nil
}
