// Package sleep waits no longer than is wanted.
package sleep

import (
	"context"
	"time"
)

// For waits for d, and returns nil then, or ctx's error as soon as ctx is done.
func For(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
