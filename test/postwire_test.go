package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/source/auth"
)

const secret = "whsec_of_the_e2e_tests"

// endpoint is where a relay listens; it is kept over restarts.
type endpoint struct {
	addr  string // of the ingress
	admin string
	now   func() time.Time // of its senders; nil is time.Now
}

func newEndpoint(t *testing.T) endpoint {
	t.Helper()
	return endpoint{addr: natstest.FreeAddr(t), admin: natstest.FreeAddr(t)}
}

// env is the environment that configurations refer to.
func (e endpoint) env() map[string]string {
	return map[string]string{"INGRESS": e.addr, "ADMIN": e.admin, "SECRET": secret}
}

// ready waits until webhooks are taken.
func (e endpoint) ready(t *testing.T) {
	t.Helper()
	eventually(t, "the relay is ready", func() bool {
		resp, err := http.Get("http://" + e.admin + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// metric returns the value of a series.
func (e endpoint) metric(t *testing.T, series string) string {
	t.Helper()
	resp, err := http.Get("http://" + e.admin + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), series+" "); ok {
			return value
		}
	}
	return ""
}

// client posts webhooks.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// post delivers a webhook and returns the status in the answer's body. An
// error means that nobody knows what became of it.
func (e endpoint) post(body []byte) (status string, err error) {
	req, err := http.NewRequest(http.MethodPost, "http://"+e.addr+"/webhooks/upload-post", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	now := time.Now()
	if e.now != nil {
		now = e.now()
	}
	if err := auth.UploadPost.Sign(req.Header, secret, "", now, body); err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ Status string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil && resp.StatusCode < 300 {
		return "", err
	}
	if resp.StatusCode >= 300 {
		return "", fmt.Errorf("answered %s", resp.Status)
	}
	return answer.Status, nil
}

// postwire is a running binary.
type postwire struct {
	endpoint
	config string
	args   []string // of serve
	under  []string // a command and arguments under which it runs, such as a limit

	cmd    *exec.Cmd
	log    buffer
	logged chan struct{} // closed when the log has ended
	secret private       // that the log must not hold
	exited chan error
}

// start runs the binary with a configuration whose ports are ${INGRESS} and
// ${ADMIN}, and waits until it is ready.
func start(t *testing.T, config string) *postwire {
	t.Helper()
	return startUnder(t, config)
}

// startUnder is start under another command.
func startUnder(t *testing.T, config string, under ...string) *postwire {
	t.Helper()
	r := prepare(t, config, under...)
	r.start(t)
	return r
}

// prepare writes the configuration of a relay that is launched later.
func prepare(t *testing.T, config string, under ...string) *postwire {
	t.Helper()
	r := &postwire{endpoint: newEndpoint(t), config: filepath.Join(t.TempDir(), "postwire.yaml"), under: under, secret: newPrivate()}
	if err := os.WriteFile(r.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.cmd == nil {
			return
		}
		r.secret.learn(t, config)
		if r.cmd.ProcessState == nil {
			r.kill(t)
		}
		r.secret.check(t, r.log.String())
		if t.Failed() {
			t.Logf("the relay's log:\n%s", r.log.String())
		}
	})
	return r
}

func (r *postwire) start(t *testing.T) {
	t.Helper()
	r.launch(t)
	r.ready(t)
}

// launch is start for a relay that does not become ready.
func (r *postwire) launch(t *testing.T) {
	t.Helper()
	if text, err := os.ReadFile(r.config); err == nil {
		r.secret.learn(t, string(text))
	}
	line := append(slices.Clone(r.under), program, "serve", "-c", r.config)
	line = append(line, r.args...)
	r.cmd = exec.Command(line[0], line[1:]...)
	r.cmd.Env = os.Environ()
	for name, value := range r.env() {
		r.cmd.Env = append(r.cmd.Env, name+"="+value)
	}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.logged, r.exited = make(chan struct{}), make(chan error, 1)
	go func() {
		_, _ = io.Copy(&r.log, stderr)
		close(r.logged)
		r.exited <- r.cmd.Wait()
	}()
}

// kill ends the process without a chance to do anything.
func (r *postwire) kill(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-r.exited; err == nil {
		t.Error("a killed process ended well")
	}
}

// stop asks the process to end, and returns how it did.
func (r *postwire) stop(t *testing.T) error {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return <-r.exited
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(pick(90*time.Second, 10*time.Minute)); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}
