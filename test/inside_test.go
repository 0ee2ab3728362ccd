package test

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/app"
)

// inside is a relay in this process, whose disk and clock are the test's.
type inside struct {
	endpoint
	config string
	disk   vfs.FS
	clock  func() time.Time

	stop func() error // ends it in order
}

func newInside(t *testing.T, config string, disk vfs.FS) *inside {
	t.Helper()
	return &inside{endpoint: newEndpoint(t), config: config, disk: disk}
}

// open starts the relay; its error is that of a process that does not start.
func (r *inside) open(t *testing.T) error {
	t.Helper()
	env := r.env()
	plan, err := app.Parse("test.yaml", []byte(r.config), func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	plan.Disk, plan.Clock = r.disk, r.clock
	ctx, cancel := context.WithCancel(context.Background())
	a, err := app.New(ctx, plan, app.LogTo(watched(t, r.config)))
	if err != nil {
		cancel()
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	ended := false
	r.stop = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		client.CloseIdleConnections()
		return <-ran
	}
	t.Cleanup(func() { _ = r.stop() }) // a test that cares has stopped it
	r.ready(t)
	return nil
}
