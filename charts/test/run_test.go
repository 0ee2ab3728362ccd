package charts

import (
	"bytes"
	"crypto/tls"
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

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	corev1 "k8s.io/api/core/v1"
)

// What helm test does in a cluster passes: the product runs on what was rendered, answers
// where the probes ask, and the container of the test ends well after the delivery.
func TestTest(t *testing.T) {
	binary, err := product()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"minimal", "local-ephemeral"} {
		t.Run(name, func(t *testing.T) {
			said, err := runTest(t, binary, sets(t)[name])
			if err != nil || !strings.Contains(said, `"status":"accepted"`) || !strings.Contains(said, "is delivered to every sink") {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
	values := func(text string) map[string]any {
		values, err := loader.LoadValues(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return values
	}
	t.Run("secrets in files", func(t *testing.T) {
		said, err := runTest(t, binary, values(`
config:
  admin: {token: "${file:/run/secrets/relay/token}"}
  sources: [{name: upload-post, type: uploadpost, paths: [/hook], auth: {signature: {secrets: ["${file:/run/secrets/relay/webhook}"]}}}]
existingSecret: ""
files: {relay: {secret: relay}}`))
		if err != nil || !strings.Contains(said, "is delivered to every sink") {
			t.Errorf("%v\n%s", err, said)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		said, err := runTest(t, binary, values(`
config:
  server: {tls: {cert_file: /run/secrets/tls/tls.crt, key_file: /run/secrets/tls/tls.key}}
  admin: {tls: {cert_file: /run/secrets/tls/tls.crt, key_file: /run/secrets/tls/tls.key}}
files: {tls: {secret: relay-tls}}`))
		if err != nil || !strings.Contains(said, "is delivered to every sink") {
			t.Errorf("%v\n%s", err, said)
		}
	})
	t.Run("a sink that cannot deliver", func(t *testing.T) {
		said, err := runTest(t, binary, values(`
config:
  sinks: [{name: dead, type: http, url: "http://127.0.0.1:1/events", retry: {max: 200ms}}]
tests: {timeoutSeconds: 3}`))
		if err == nil || !strings.Contains(said, "is not delivered after 3s") || !strings.Contains(said, "dead:pending") || !strings.Contains(said, "sink dead is failing") {
			t.Errorf("%v\n%s", err, said)
		}
	})
}

// runTest runs the relay of the rendered chart and then the container of the test, and returns
// what the container prints.
func runTest(t *testing.T, binary string, values map[string]any) (said string, err error) {
	dir := t.TempDir()
	webhooks, admin := freePort(t), freePort(t)
	config, env := surround(t, dir, rendered(t, values))
	config = strings.NewReplacer("listen: :8080", "listen: "+webhooks, "listen: :9090", "listen: "+admin, "/var/lib/postwire", dir).Replace(config)
	path := filepath.Join(dir, "postwire.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("/etc/postwire/postwire.yaml", path, "//postwire:80/", "//"+webhooks+"/", "//postwire-admin:9090", "//"+admin)
	all := objects(t, mustRender(t, "postwire", values))
	var relay, tester pod
	for _, p := range pods(all) {
		switch {
		case p.isRelay():
			relay = p
		case kind(p.of) == "Pod":
			tester = p
		}
	}
	container := relay.spec.Containers[0]

	var log bytes.Buffer
	serve := exec.Command(binary, replaced(here, container.Args)...)
	serve.Env, serve.Stdout, serve.Stderr = env, &log, &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Wait() }()
	defer func() {
		_ = serve.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the relay ends with %v\n%s", err, log.String())
			}
		case <-time.After(30 * time.Second):
			_ = serve.Process.Kill()
			t.Errorf("the relay did not end: %v", <-ended)
		}
	}()
	for _, probe := range []*corev1.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		scheme := "http"
		if probe.HTTPGet.Scheme == corev1.URISchemeHTTPS {
			scheme = "https"
		}
		if err := answers(scheme + "://" + admin + probe.HTTPGet.Path); err != nil {
			t.Fatalf("%s: %v", probe.HTTPGet.Path, err)
		}
	}
	run := exec.Command(binary, replaced(here, tester.spec.Containers[0].Args)...)
	run.Env = env
	out, err := run.CombinedOutput()
	return string(out), err
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

// kubelet verifies no certificate.
var kubelet = http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// answers waits for a 200.
func answers(url string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := kubelet.Get(url)
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
