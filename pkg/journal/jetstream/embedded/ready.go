package embedded

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
)

// replicaState says whether the replicas of this relay are complete.
//
// | state | since | Check |
// |---|---|---|
// | joining | the start | error |
// | complete | the replicas caught up with their leaders | nil |
// | cut off | the cluster has no leader for this relay | nil: the spill accepts events |
// | behind | a leader is known, and the replicas lack data | error after behindTimeout |
//
// Joining ends when the replicas are complete for the first time. A relay that cannot reach
// its peers after a start therefore stays joining, and a rolling restart does not go on to
// the next relay.
type replicaState int

const (
	joining replicaState = iota
	complete
	cutOff
	behind
)

const (
	// watchInterval is the interval between two looks at the replicas.
	watchInterval = 250 * time.Millisecond
	// behindTimeout is how long a replica may be behind: under load, a replica is behind
	// for moments.
	behindTimeout = 10 * time.Second
)

// Check returns why the replicas of this relay are not complete, or nil.
func (s *Server) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state == joining:
		return fmt.Errorf("the replicas of this relay are not complete yet: %w", cmp.Or(s.behind, errors.New("starting")))
	case s.state == behind && time.Since(s.behindSince) > behindTimeout:
		return fmt.Errorf("the replicas of this relay are behind: %w", s.behind)
	}
	return nil
}

// watch follows the state of the replicas until ctx is done.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		s.observe(s.health(ctx))
		s.compact()
		s.revive()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// compact removes the removal of a relay from the log of the cluster. A relay of the removed
// name that joins again would replay its removal, and turn its storage off.
func (s *Server) compact() {
	before := s.compacted
	s.compacted = s.members
	if s.members >= before || !s.server.JetStreamIsLeader() {
		return
	}
	if err := s.server.JetStreamSnapshotMeta(); err != nil {
		s.compacted = before // tried again
		s.log.Debug("compacting the log of the cluster", zap.Error(err))
	}
}

// reviveInterval is the interval between two attempts to turn on the storage.
const reviveInterval = 10 * time.Second

// revive turns the storage of the server on again. The server turns it off when the disk is
// full, and when it replays the removal of an earlier relay of the same name.
func (s *Server) revive() {
	switch {
	case s.server.JetStreamEnabled() || s.left.Load():
		s.offSince = time.Time{}
		return
	case s.offSince.IsZero():
		s.offSince = time.Now()
		s.log.Error("the storage of this relay in the cluster is turned off", zap.Duration("next_attempt", reviveInterval))
		return
	case time.Since(s.offSince) < reviveInterval:
		return
	}
	s.offSince = time.Now()
	if err := s.server.EnableJetStream(s.opts.storage()); err != nil {
		s.log.Error("the storage of this relay cannot be turned on", zap.Error(err), zap.Duration("next_attempt", reviveInterval))
		return
	}
	s.log.Info("the storage of this relay is turned on again")
}

// observe changes the state. Err is nil if the replicas are complete.
func (s *Server) observe(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.state
	s.behind = err
	switch {
	case err == nil:
		s.state = complete
	case s.state == joining:
	case errors.Is(err, errNoLeader):
		s.state = cutOff
	case s.state != behind:
		s.state, s.behindSince = behind, time.Now()
	}
	switch {
	case before == s.state:
	case s.state == complete:
		s.log.Info("the replicas of this relay are complete")
	case s.state == cutOff:
		s.log.Warn("the cluster has no leader that this relay can reach", zap.Error(err))
	case s.state == behind:
		s.log.Debug("the replicas of this relay are behind", zap.Error(err))
	}
}

// errNoLeader is returned while the relay knows no leader of the cluster.
var errNoLeader = errors.New("the cluster has no leader, or this relay does not reach the leader")

// health returns why the replicas of this server are not complete, or nil.
func (s *Server) health(ctx context.Context) error {
	if s.server.JetStreamIsClustered() {
		info, err := s.server.Jsz(nil)
		if err != nil {
			return err
		}
		if info.Meta == nil || info.Meta.Leader == "" {
			return errNoLeader
		}
		s.members = info.Meta.Size
	}
	var answer struct {
		Data  server.HealthStatus `json:"data"`
		Error *server.ApiError    `json:"error"`
	}
	if err := s.ask(ctx, fmt.Sprintf("$SYS.REQ.SERVER.%s.HEALTHZ", s.server.ID()), struct{}{}, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	if h := answer.Data; h.Status != "ok" {
		return errors.New(cmp.Or(h.Error, h.Status))
	}
	return nil
}

// ask sends a request to the system account and decodes the answer.
func (s *Server) ask(ctx context.Context, subject string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	m, err := s.system.RequestWithContext(ctx, subject, text)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(m.Data, answer); err != nil {
		return fmt.Errorf("reading the answer to %s: %w", subject, err)
	}
	return nil
}
