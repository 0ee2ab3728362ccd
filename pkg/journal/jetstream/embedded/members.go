package embedded

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Member is a relay of the cluster.
type Member struct {
	Name     string `json:"name" doc:"Name of the relay."`
	Online   bool   `json:"online" doc:"True if the leader of the cluster reaches the relay."`
	Leader   bool   `json:"leader" doc:"True for the leader of the cluster."`
	Replica  bool   `json:"replica" doc:"True if the relay has a replica of the journal."`
	Complete bool   `json:"complete" doc:"True if the relay has all data that it is to have: the membership of the cluster, and its replica of the journal."`
	Lag      uint64 `json:"lag" doc:"Number of changes that the replica of the journal lacks."`
}

// ClusterStatus is the state of the cluster, as its leaders see it.
type ClusterStatus struct {
	Cluster string   `json:"cluster" doc:"Name of the cluster."`
	Quorum  int      `json:"quorum" doc:"Number of relays that must be online for the cluster to accept events."`
	Relays  []Member `json:"relays" doc:"Relays of the cluster, sorted by name."`
}

// Errors of Remove.
var (
	ErrUnknownPeer = errors.New("the cluster has no relay of this name")
	// ErrRefused is wrapped by errors about a removal that would make the cluster less safe.
	ErrRefused = errors.New("the relay cannot be removed")
)

// minPeers is the number of relays that remain after a removal, at least.
const minPeers = 3

// Status asks the leaders of the cluster and of the journal for the state of the relays.
func (s *Server) Status(ctx context.Context) (ClusterStatus, error) {
	if !s.server.JetStreamIsClustered() {
		return ClusterStatus{Cluster: s.opts.Cluster, Quorum: 1, Relays: []Member{{Name: s.opts.Name, Online: true, Leader: true, Replica: true, Complete: true}}}, nil
	}
	var members struct {
		Data *server.JSInfo `json:"data"`
	}
	if err := s.ask(ctx, "$SYS.REQ.SERVER.PING.JSZ", server.JSzOptions{LeaderOnly: true}, &members); err != nil {
		return ClusterStatus{}, fmt.Errorf("asking the leader of the cluster: %w", err)
	}
	if members.Data == nil || members.Data.Meta == nil {
		return ClusterStatus{}, fmt.Errorf("asking the leader of the cluster: %w", errNoLeader)
	}
	replicas, err := s.replicas(ctx)
	if err != nil {
		return ClusterStatus{}, err
	}
	meta := members.Data.Meta
	st := ClusterStatus{Cluster: s.opts.Cluster, Quorum: meta.QuorumNeeded, Relays: []Member{{Name: meta.Leader, Online: true, Leader: true, Complete: true}}}
	for _, p := range meta.Replicas {
		st.Relays = append(st.Relays, Member{Name: p.Name, Online: !p.Offline, Complete: p.Current && !p.Offline})
	}
	for i, p := range st.Relays {
		if r, ok := replicas[p.Name]; ok {
			st.Relays[i].Replica, st.Relays[i].Lag, st.Relays[i].Complete = true, r.Lag, p.Complete && r.Current
		}
	}
	slices.SortFunc(st.Relays, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return st, nil
}

// replicas returns the replicas of the journal by relay; none before the journal exists.
func (s *Server) replicas(ctx context.Context) (map[string]server.PeerInfo, error) {
	var stream struct {
		Error   *server.ApiError    `json:"error"`
		Cluster *server.ClusterInfo `json:"cluster"`
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := s.journal.RequestWithContext(ctx, fmt.Sprintf(server.JSApiStreamInfoT, s.opts.Stream), nil)
	if err != nil {
		return nil, fmt.Errorf("asking the leader of the journal: %w", err)
	}
	if err := json.Unmarshal(m.Data, &stream); err != nil {
		return nil, fmt.Errorf("reading the answer of the leader of the journal: %w", err)
	}
	replicas := map[string]server.PeerInfo{}
	switch {
	case stream.Error != nil && stream.Error.Code == 404, stream.Error == nil && stream.Cluster == nil:
		return replicas, nil
	case stream.Error != nil:
		return nil, fmt.Errorf("asking the leader of the journal: %w", stream.Error)
	case stream.Cluster.Leader == "":
		return nil, errors.New("the journal has no leader")
	}
	replicas[stream.Cluster.Leader] = server.PeerInfo{Name: stream.Cluster.Leader, Current: true}
	for _, p := range stream.Cluster.Replicas {
		replicas[p.Name] = *p
	}
	return replicas, nil
}

// Remove moves the replica of a relay to another relay, and then removes the relay from the
// cluster. Remove refuses if fewer than three relays would remain, or if a remaining relay is
// not complete. After an error, a repeated call continues. The relay must accept no events
// during and after the call. A removed relay that starts again joins the cluster again, five
// minutes after the removal or later.
func (s *Server) Remove(ctx context.Context, name string) error {
	if err := s.checkRemoval(ctx, name); err != nil {
		return err
	}
	request := server.JSApiMetaServerRemoveRequest{Server: name}
	if err := s.meta(ctx, server.JSApiEvacuateServer, server.JSApiMetaServerEvacuateRequest{Server: name}); err != nil {
		return fmt.Errorf("moving the replica of %s: %w", name, err)
	}
	err := s.wait(ctx, func() error {
		replicas, err := s.replicas(ctx)
		if err != nil {
			return err
		}
		if _, has := replicas[name]; has {
			return errors.New("the relay still has a replica of the journal")
		}
		for _, r := range replicas {
			if !r.Current {
				return fmt.Errorf("the replica of %s is not complete yet", r.Name)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("moving the replica of %s: %w", name, err)
	}
	// A leader cannot remove itself.
	err = s.wait(ctx, func() error {
		st, err := s.Status(ctx)
		if err != nil {
			return err
		}
		for _, p := range st.Relays {
			if p.Name == name && p.Leader {
				return cmp.Or(s.meta(ctx, server.JSApiLeaderStepDown, nil), errors.New("the relay still leads the cluster"))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("moving the leadership of %s: %w", name, err)
	}
	if name == s.opts.Name {
		s.left.Store(true) // also if the answer does not arrive
	}
	if err := s.meta(ctx, server.JSApiRemoveServer, request); err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	if name != s.opts.Name {
		return nil
	}
	// The server turns its storage off when it learns of its removal.
	err = s.wait(ctx, func() error {
		if s.server.JetStreamEnabled() {
			return errors.New("the storage of this relay is still turned on")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// checkRemoval returns why a relay must not be removed, or nil.
func (s *Server) checkRemoval(ctx context.Context, name string) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(st.Relays, func(p Member) bool { return p.Name == name }) {
		return fmt.Errorf("%w: %s", ErrUnknownPeer, name)
	}
	if left := len(st.Relays) - 1; left < minPeers {
		return fmt.Errorf("%w: only %d relays would remain, and a cluster needs %d to accept events without one of them", ErrRefused, left, minPeers)
	}
	replicas := 0
	for _, p := range st.Relays {
		if p.Replica {
			replicas++
		}
		if p.Name != name && (!p.Online || !p.Complete) {
			return fmt.Errorf("%w: the relay %s is not online and complete; wait until it is, so that no other copy of the events is missing", ErrRefused, p.Name)
		}
	}
	if left := len(st.Relays) - 1; left < replicas {
		return fmt.Errorf("%w: the journal has %d replicas, and only %d relays would remain: lower journal.jetstream.replicas first", ErrRefused, replicas, left)
	}
	return nil
}

// meta sends a request to the leader of the cluster.
func (s *Server) meta(ctx context.Context, subject string, body any) error {
	var answer struct {
		Error *server.ApiError `json:"error"`
	}
	if err := s.ask(ctx, subject, body, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	return nil
}

// wait calls done until done returns nil or ctx ends.
func (s *Server) wait(ctx context.Context, done func() error) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}
