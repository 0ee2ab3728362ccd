// Package embedded runs the NATS servers of the journal inside the relays. The servers of
// all relays form one JetStream cluster, so that a group of relays is highly available
// without another system. The engine jetstream uses the server of its own process.
package embedded

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/natsclient"
)

// Options of a server. All are needed, except Listen and Secret with one peer, TLS and Log.
type Options struct {
	Name    string   // name of the relay, stable over restarts
	Cluster string   // name of the cluster
	Peers   []string // host:port of all relays, including this relay; a single peer runs without a cluster
	Listen  string   // host:port of the listener for the other relays
	Dir     string   // folder of the store
	Stream  string   // stream of the journal

	Secret config.Secret  // shared by all relays
	TLS    config.PeerTLS // certificates; the zero value derives certificates from Secret

	MaxBytes uint64      // size of the journal
	Log      *zap.Logger // nil logs nothing
}

const (
	// startTimeout bounds the start after the stored data was read.
	startTimeout = 10 * time.Second
	// requestTimeout bounds one request to the cluster.
	requestTimeout = 2 * time.Second
	// leaveTimeout bounds the wait for new leaders at the shutdown.
	leaveTimeout = 5 * time.Second
)

// Accounts of a server, with the names that NATS gives them.
const (
	globalAccount = "$G"
	systemAccount = "$SYS"
)

// Server is a running NATS server. Its methods may be called concurrently.
type Server struct {
	opts   Options
	log    *zap.Logger
	server *server.Server
	lock   io.Closer
	marker marker // changed by SetCarried
	login  natsclient.Login

	system, journal *nats.Conn // connections of the two accounts

	end  context.CancelFunc
	done sync.WaitGroup
	left atomic.Bool // Remove removed this relay

	// Owned by watch.
	members   int       // relays of the cluster
	compacted int       // members at the last compact
	offSince  time.Time // when the storage was turned off or tried last; zero while it is on

	mu          sync.Mutex
	state       replicaState
	behindSince time.Time // zero unless the replicas are behind
	behind      error     // why the replicas are behind
	closed      bool
}

// Start starts a server. The server finds its peers in the background: Check says when its
// replicas are complete. Start returns an error for a store that was written by another
// relay, for another cluster, or without a cluster.
func Start(opts Options) (_ *Server, err error) {
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
	s := &Server{opts: opts, log: opts.Log}
	if s.lock, s.marker, err = claim(opts); err != nil {
		return nil, fmt.Errorf("embedded cluster: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("embedded cluster: %w", err), s.stop())
		}
	}()
	users := &users{client: randomText(), system: randomText()}
	settings, routes, err := opts.settings()
	if err != nil {
		return nil, err
	}
	settings.CustomClientAuthentication = users
	if s.server, err = server.NewServer(settings); err != nil {
		return nil, err
	}
	users.server = s.server
	log := newLogger(opts.Log, users.client.Reveal(), users.system.Reveal(), routes.Reveal())
	s.server.SetLoggerV2(log, opts.Log.Core().Enabled(zap.DebugLevel), false, false)
	s.server.Start()
	for end := time.Now().Add(startTimeout); !s.server.ReadyForConnections(50 * time.Millisecond); {
		if err := log.fatal(); err != nil {
			return nil, err
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the server is not ready after %v", startTimeout)
		}
	}
	if err := log.fatal(); err != nil {
		return nil, err
	}
	s.login = natsclient.Login{User: clientUser, Password: users.client}
	for _, c := range []struct {
		conn     **nats.Conn
		user     string
		password config.Secret
	}{{&s.system, systemUser, users.system}, {&s.journal, clientUser, users.client}} {
		if *c.conn, err = nats.Connect("", nats.InProcessServer(s.server), nats.UserInfo(c.user, c.password.Reveal()), nats.Name("postwire"), nats.MaxReconnects(-1)); err != nil {
			return nil, fmt.Errorf("connecting: %w", err)
		}
	}
	ctx, end := context.WithCancel(context.Background())
	s.end = end
	s.done.Go(func() { s.watch(ctx) })
	return s, nil
}

// Users of a server.
const (
	clientUser = "journal"
	systemUser = "operator"
	routeUser  = "relay"
)

// users authenticates the clients of a server: the journal, and this package. Only this
// process knows the passwords.
type users struct {
	client, system config.Secret
	server         *server.Server
}

func randomText() config.Secret { return config.Secret(rand.Text()) }

// Check implements server.Authentication.
func (u *users) Check(c server.ClientAuthentication) bool {
	account, password := globalAccount, u.client
	if c.GetOpts().Username == systemUser {
		account, password = systemAccount, u.system
	}
	if subtle.ConstantTimeCompare([]byte(c.GetOpts().Password), []byte(password.Reveal())) != 1 {
		return false
	}
	own, err := u.server.LookupAccount(account)
	if err != nil {
		return false
	}
	c.RegisterUser(&server.User{Username: c.GetOpts().Username, Account: own})
	return true
}

// settings returns the configuration of the server and the password of its routes.
func (o Options) settings() (*server.Options, config.Secret, error) {
	settings := &server.Options{
		ServerName: o.Name, NoSigs: true, DisableJetStreamBanner: true,
		// The server starts no routes without a port for clients (DontListen). This port is on
		// the loopback interface, and only this process knows a password.
		Host: "127.0.0.1", Port: server.RANDOM_PORT,
		JetStream: true, StoreDir: o.Dir, SyncAlways: true,
		JetStreamMaxMemory: maxMemory, JetStreamMaxStore: o.maxStore(),
		// Memory for a peer that catches up.
		JetStreamMaxCatchup: 16 << 20,
		LameDuckDuration:    time.Second, LameDuckGracePeriod: time.Millisecond,
	}
	if len(o.Peers) == 1 {
		return settings, "", nil
	}
	host, text, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, "", err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, "", fmt.Errorf("port of %s: %w", o.Listen, err)
	}
	password, err := derive(o.Secret, "route password "+o.Cluster)
	if err != nil {
		return nil, "", err
	}
	routes := config.Secret(fmt.Sprintf("%x", password))
	encryption, err := o.encryption()
	if err != nil {
		return nil, "", err
	}
	settings.Cluster = server.ClusterOpts{
		Name: o.Cluster, Host: host, Port: port, Username: routeUser, Password: routes.Reveal(),
		TLSConfig: encryption, NoAdvertise: true,
		// Close a connection to a machine that is gone within ten seconds. Elections do not wait
		// for this.
		PingInterval: 2 * time.Second, MaxPingsOut: 4,
	}
	// The first election needs more than half of the routes: list this relay, too.
	for _, peer := range o.Peers {
		settings.Routes = append(settings.Routes, &url.URL{Scheme: "nats", Host: peer, User: url.UserPassword(routeUser, routes.Reveal())})
	}
	return settings, routes, nil
}

// storage returns the configuration of the storage, as the server derives it from settings.
func (o Options) storage() *server.JetStreamConfig {
	return &server.JetStreamConfig{
		StoreDir: o.Dir, SyncAlways: true, Strict: true, CompressOK: true,
		MaxMemory: maxMemory, MaxStore: o.maxStore(),
	}
}

// maxMemory is the limit of streams in memory. The journal has none, and 0 is no limit.
const maxMemory = 1 << 20

// maxStore returns the limit of all streams. The journal bounds its stream itself; a limit
// from the free space of the disk would refuse a stream that fills the disk.
func (o Options) maxStore() int64 { return int64(2*o.MaxBytes + 1<<30) }

// InProcessConn implements nats.InProcessConnProvider.
func (s *Server) InProcessConn() (net.Conn, error) { return s.server.InProcessConn() }

// Login returns the login of the journal.
func (s *Server) Login() natsclient.Login { return s.login }

// Carried reports whether SetCarried was called on the store, also before a restart. A single
// relay has its journal.
func (s *Server) Carried() bool { return s.marker.Carried || !s.marker.Clustered }

// SetCarried records durably that the cluster has the complete journal: from then on the
// relay uses the journal whenever it starts. SetCarried is not called concurrently with
// Carried.
func (s *Server) SetCarried() error {
	s.marker.Carried = true
	if err := writeMarker(s.opts.Dir, s.marker); err != nil {
		return fmt.Errorf("embedded cluster: recording that the cluster has the journal: %w", err)
	}
	return nil
}

// HasLeader reports whether the server knows a leader of the cluster. Servers with empty
// disks have none before all of them run.
func (s *Server) HasLeader() (bool, error) {
	info, err := s.server.Jsz(nil)
	if err != nil {
		return false, fmt.Errorf("embedded cluster: %w", err)
	}
	return info.Meta != nil && info.Meta.Leader != "", nil
}

// Close hands the leaderships of this server to its peers, and stops the server. The
// journal must be closed before. A second call does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	if err := s.stop(); err != nil {
		return fmt.Errorf("embedded cluster: %w", err)
	}
	return nil
}

func (s *Server) stop() error {
	if s.end != nil {
		s.end()
		s.done.Wait()
	}
	if s.server != nil {
		s.handOver()
		for _, conn := range []*nats.Conn{s.system, s.journal} {
			if conn != nil {
				conn.Close()
			}
		}
		s.server.Shutdown()
		s.server.WaitForShutdown()
	}
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// handOver steps down as a leader and waits for new leaders, so that peers do not wait for
// the timeout of an election.
func (s *Server) handOver() {
	if s.system == nil || !s.server.JetStreamIsClustered() {
		return
	}
	leads := func() bool {
		return s.server.JetStreamIsLeader() || s.server.JetStreamIsStreamLeader(globalAccount, s.opts.Stream)
	}
	if !leads() {
		return
	}
	if err := s.server.JetStreamStepdownStream(globalAccount, s.opts.Stream); err != nil {
		s.log.Debug("handing over the stream", zap.Error(err))
	}
	if s.server.JetStreamIsLeader() {
		if _, err := s.system.Request(server.JSApiLeaderStepDown, nil, requestTimeout); err != nil {
			s.log.Debug("handing over the cluster", zap.Error(err))
		}
	}
	for end := time.Now().Add(leaveTimeout); leads() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
}

// claim locks the store, and checks or writes its marker.
func claim(o Options) (io.Closer, marker, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, marker{}, err
	}
	lock, err := vfs.Default.Lock(filepath.Join(o.Dir, "LOCK"))
	if err != nil {
		return nil, marker{}, fmt.Errorf("the folder %s is in use by another process: %w", o.Dir, err)
	}
	m, err := checkMarker(o)
	if err != nil {
		return nil, marker{}, errors.Join(err, lock.Close())
	}
	return lock, m, nil
}
