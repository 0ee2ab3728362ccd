package charts

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What helm test would do in a cluster passes: the product runs on what was
// rendered, answers where the probes look, and the containers of the test end
// well, with the event stored and delivered.
func TestTest(t *testing.T) {
	binary, err := product()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"minimal", "local-ephemeral"} {
		t.Run(name, func(t *testing.T) { runTest(t, binary, sets(t)[name]) })
	}
}

func runTest(t *testing.T, binary string, values map[string]any) {
	dir := t.TempDir()
	webhooks, admin := freePort(t), freePort(t)
	config, env := surround(t, dir, rendered(t, values))
	config = strings.NewReplacer("listen: :8080", "listen: "+webhooks, "listen: :9090", "listen: "+admin, "/var/lib/postwire", dir).Replace(config)
	path := filepath.Join(dir, "postwire.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("/etc/postwire/postwire.yaml", path, "http://postwire:80/", "http://"+webhooks+"/", "http://postwire-admin:9090", "http://"+admin)
	all := objects(t, mustRender(t, "postwire", values))
	var relay, tester pod
	for _, p := range pods(all) {
		if _, isPod := p.of.(*corev1.Pod); isPod {
			tester = p
		} else {
			relay = p
		}
	}
	container := relay.spec.Containers[0]

	var out, log bytes.Buffer
	serve := exec.Command(binary, replaced(here, container.Args)...)
	serve.Env, serve.Stdout, serve.Stderr = env, &out, &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Wait() }()
	stop := func() error {
		_ = serve.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			return err
		case <-time.After(30 * time.Second):
			_ = serve.Process.Kill()
			return fmt.Errorf("it did not end: %w", <-ended)
		}
	}
	for _, probe := range []*corev1.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		if err := answers("http://" + admin + probe.HTTPGet.Path); err != nil {
			t.Errorf("%s: %v", probe.HTTPGet.Path, err)
		}
	}
	for _, c := range []struct {
		container corev1.Container
		says      string
	}{{tester.spec.InitContainers[0], `"status":"accepted"`}, {tester.spec.Containers[0], "events to send: 1;"}} {
		run := exec.Command(binary, replaced(here, c.container.Args)...)
		run.Env = env
		said, err := run.CombinedOutput()
		if err != nil || !strings.Contains(string(said), c.says) {
			t.Errorf("container %s: %v\n%s", c.container.Name, err, said)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("it ends badly: %v", err)
	}
	if !strings.Contains(out.String(), "upload_completed") {
		t.Errorf("nothing was delivered: %s\n%s", out.String(), log.String())
	}
}

func replaced(here *strings.Replacer, args []string) []string {
	var all []string
	for _, arg := range args {
		all = append(all, here.Replace(arg))
	}
	return all
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// answers waits for a 200.
func answers(url string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := http.Get(url)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("it answers %s", resp.Status)
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
