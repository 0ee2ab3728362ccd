package natstest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// configVariable is the environment variable with the configuration of the NATS server that
// the test binary runs instead of tests.
const configVariable = "POSTWIRE_TEST_NATS_SERVER"

// Serve runs a NATS server in a process of StartCluster, and then does not return. TestMain
// calls Serve first.
func Serve() {
	path := os.Getenv(configVariable)
	if path == "" {
		return
	}
	keep, err := followClock(clockFile(path))
	var opts *server.Options
	if err == nil {
		opts, err = server.ProcessConfigFile(path)
	}
	if err == nil {
		var s *server.Server
		if s, err = server.NewServer(opts); err == nil {
			s.ConfigureLogger()
			err = server.Run(s)
			s.WaitForShutdown()
			keep()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Node is one server of a cluster, in its own process.
type Node struct {
	Name, Addr string

	config string
	cmd    *exec.Cmd
	exited chan struct{}
}

// StartCluster starts three servers with JetStream that sync before they acknowledge. Route
// returns the address by which one server reaches another; nil connects directly.
func StartCluster(t testing.TB, route func(from, to int, addr string) string) []*Node {
	t.Helper()
	const n = 3
	dir := t.TempDir()
	listens := make([]string, n)
	for i := range listens {
		listens[i] = FreeAddr(t)
	}
	nodes := make([]*Node, n)
	for i := range nodes {
		var routes []string
		for to, addr := range listens {
			if to == i {
				continue
			}
			if route != nil {
				addr = route(i, to, addr)
			}
			routes = append(routes, "nats://"+addr)
		}
		node := &Node{Name: fmt.Sprintf("n%d", i), Addr: FreeAddr(t), config: filepath.Join(dir, fmt.Sprintf("n%d.conf", i))}
		// Clients do not learn addresses that bypass the routes.
		text := fmt.Sprintf(`server_name: %s
listen: %q
log_file: %q
jetstream { store_dir: %q, sync_interval: always }
cluster { name: postwire, listen: %q, no_advertise: true, advertise: "127.0.0.1:1", routes: [%s] }
`, node.Name, node.Addr, node.config+".log", filepath.Join(dir, node.Name), listens[i], strings.Join(routes, ", "))
		if err := os.WriteFile(node.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		node.Start(t)
		t.Cleanup(func() {
			if node.cmd.ProcessState == nil {
				_ = node.cmd.Process.Kill()
				<-node.exited
			}
		})
		nodes[i] = node
	}
	return nodes
}

// URLs returns the client URLs of the cluster.
func URLs(nodes []*Node) string {
	var urls []string
	for _, n := range nodes {
		urls = append(urls, "nats://"+n.Addr)
	}
	return strings.Join(urls, ",")
}

// Start starts or restarts the server with its stored data.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.Command(self)
	n.cmd.Env = append(os.Environ(), configVariable+"="+n.config)
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.exited = make(chan struct{})
	go func() {
		defer close(n.exited)
		_ = n.cmd.Wait() // the error of a killed process
	}()
}

// Pause stops the process of the server, as a machine that hangs does, until Resume.
func (n *Node) Pause(t testing.TB) { n.send(t, syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (n *Node) Resume(t testing.TB) { n.send(t, syscall.SIGCONT) }

// ShiftClock sets the wall clock of the server ahead, or back, of the clock of the machine,
// also for later starts. The server follows a moment later. It works where ClockShifts is
// true.
func (n *Node) ShiftClock(t testing.TB, ahead time.Duration) {
	t.Helper()
	if err := os.WriteFile(clockFile(n.config), []byte(ahead.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func clockFile(config string) string { return config + ".clock" }

// Kill kills the server.
func (n *Node) Kill(t testing.TB) { n.signal(t, syscall.SIGKILL) }

// Stop stops the server and waits for its end.
func (n *Node) Stop(t testing.TB) { n.signal(t, syscall.SIGTERM) }

func (n *Node) signal(t testing.TB, s os.Signal) {
	t.Helper()
	n.send(t, s)
	<-n.exited
}

func (n *Node) send(t testing.TB, s os.Signal) {
	t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// FreeAddr returns an unused address outside the range of ephemeral ports, so that it can
// be released and used again.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}
