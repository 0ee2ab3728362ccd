package jetstream

import (
	"context"
	"fmt"

	"github.com/postwire/postwire/pkg/journal"
)

// errLeaving is returned by appends after Leave.
var errLeaving = fmt.Errorf("%w: this relay leaves the cluster", journal.ErrUnavailable)

// begin admits an append. The caller calls done at the end.
func (j *Journal) begin() (done func(), err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.leaving {
		return nil, errLeaving
	}
	j.appends++
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.appends--; j.leaving {
			j.notify()
		}
	}, nil
}

// Leave refuses new appends, and returns when the cluster has every event of this process:
// no append is in progress, and the spill is empty. After an error the refusal stays. Stay
// undoes Leave.
func (j *Journal) Leave(ctx context.Context) error {
	j.mu.Lock()
	j.leaving = true
	j.mu.Unlock()
	if err := j.await(ctx, func() bool { return j.appends == 0 }); err != nil {
		return fmt.Errorf("leaving the cluster: waiting for appends: %w", err)
	}
	if j.spill == nil {
		return nil
	}
	if err := j.spill.awaitEmpty(ctx); err != nil {
		n, _ := j.spill.depth()
		return fmt.Errorf("leaving the cluster: %d events and requests are in the spill: %w", n, err)
	}
	return nil
}

// Stay accepts appends again after Leave.
func (j *Journal) Stay() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.leaving = false
}

// awaitEmpty waits until the cluster has every event and request of the spill.
func (s *spill) awaitEmpty(ctx context.Context) error {
	for {
		s.mu.Lock()
		changed, empty := s.changed, s.events+s.journal.QuarantineCount() == 0
		s.mu.Unlock()
		if empty {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
