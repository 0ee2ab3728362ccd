package test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the image may take, of a registry's space and of a node's.
const (
	imagePulled   = 32 << 20
	imageUnpacked = 80 << 20
)

// imageUser is who the image runs as; a Pod Security Standard and the chart want a
// number.
const imageUser = 65532

// image is a container image that has been unpacked.
type image struct {
	Config struct {
		User         string
		Env          []string
		Entrypoint   []string
		Cmd          []string
		WorkingDir   string
		ExposedPorts map[string]struct{}
		Volumes      map[string]struct{}
		Labels       map[string]string
	}
	root             string                 // folder with its files
	files            map[string]os.FileMode // of all that are in it, by path
	pulled, unpacked int64
}

// descriptor names a blob of an OCI layout.
type descriptor struct {
	MediaType string
	Digest    string
	Size      int64
	Platform  struct{ OS, Architecture string }
}

// readImage unpacks an OCI layout: what deploy/image-build leaves, or what docker
// save writes from Docker 25 on.
func readImage(t *testing.T, layout string) *image {
	t.Helper()
	read := func(path string, v any) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(layout, path))
		if err == nil {
			err = json.Unmarshal(text, v)
		}
		if err != nil {
			t.Fatalf("%s is no OCI layout: %v", layout, err)
		}
	}
	blob := func(d descriptor) string { return filepath.Join("blobs", strings.Replace(d.Digest, ":", "/", 1)) }
	var manifest struct {
		Config            descriptor
		Layers, Manifests []descriptor
	}
	for read("index.json", &manifest); manifest.Manifests != nil; {
		i := slices.IndexFunc(manifest.Manifests, func(d descriptor) bool {
			return d.Platform.OS == "" || d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH
		})
		if i < 0 {
			t.Fatalf("there is no image of linux/%s in %s", runtime.GOARCH, layout)
		}
		next := manifest.Manifests[i]
		manifest.Manifests = nil
		read(blob(next), &manifest)
	}
	m := &image{root: filepath.Join(t.TempDir(), "root"), files: map[string]os.FileMode{}}
	read(blob(manifest.Config), m)
	if err := os.Mkdir(m.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, layer := range manifest.Layers {
		m.pulled += layer.Size
		if err := m.unpack(filepath.Join(layout, blob(layer))); err != nil {
			t.Fatalf("layer %s: %v", layer.Digest, err)
		}
	}
	return m
}

// unpack adds a layer, with owners.
func (m *image) unpack(layer string) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = bufio.NewReader(f)
	if head, err := r.(*bufio.Reader).Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		if r, err = gzip.NewReader(r); err != nil {
			return err
		}
	}
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(m.root, filepath.Join("/", h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		case tar.TypeReg:
			text, err := io.ReadAll(files)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				return err
			}
			m.unpacked += h.Size
		default:
			return fmt.Errorf("%s is neither a file nor a folder", h.Name)
		}
		if err := errors.Join(os.Chown(path, h.Uid, h.Gid), os.Chmod(path, h.FileInfo().Mode())); err != nil {
			return err
		}
		m.files[filepath.Join("/", h.Name)] = h.FileInfo().Mode()
	}
}

// TestImage judges the image at POSTWIRE_TEST_IMAGE, and runs it as a careful cluster
// does: as nobody, without a capability, on a root file system that cannot be
// written to.
func TestImage(t *testing.T) {
	layout := os.Getenv("POSTWIRE_TEST_IMAGE")
	if layout == "" {
		t.Skip("POSTWIRE_TEST_IMAGE names no image; deploy/image-build makes one")
	}
	if os.Geteuid() != 0 {
		t.Fatal("only root can unpack an image with its owners, and run it")
	}
	m := readImage(t, layout)
	t.Run("what is in it", m.contents)
	t.Run("what it says", m.labels)
	t.Run("how it runs", m.runs)
}

func (m *image) contents(t *testing.T) {
	t.Logf("%.1f MiB to pull, %.1f MiB unpacked", float64(m.pulled)/(1<<20), float64(m.unpacked)/(1<<20))
	if m.pulled > imagePulled || m.unpacked > imageUnpacked {
		t.Errorf("at most %d and %d MiB are wanted", imagePulled>>20, imageUnpacked>>20)
	}
	// All that there is: no shell, no package, nothing with rights of its own.
	want := map[string]os.FileMode{
		"/etc/passwd": 0o644, "/etc/group": 0o644, "/etc/ssl/certs/ca-certificates.crt": 0o644, "/usr/local/bin/postwire": 0o755,
	}
	got := maps.Clone(m.files)
	maps.DeleteFunc(got, func(name string, mode os.FileMode) bool {
		return mode.IsDir() || strings.HasPrefix(name, licenses) && mode.Perm()&0o133 == 0
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the files (- want, + are there):\n%s", diff)
	}
	err := filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		own, name := info.Sys().(*syscall.Stat_t), strings.TrimPrefix(path, m.root)
		who := [2]uint32{}
		if name == "/var/lib/postwire" {
			who = [2]uint32{imageUser, imageUser}
		}
		if [2]uint32{own.Uid, own.Gid} != who || info.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s belongs to %d:%d, with mode %v", name, own.Uid, own.Gid, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	if text := m.text(t, "/etc/passwd"); !strings.HasPrefix(text, fmt.Sprintf("nonroot:x:%d:%[1]d:", imageUser)) || strings.Count(text, "\n") != 1 {
		t.Errorf("the users are %s", text)
	}
	certificates, rest := 0, []byte(m.text(t, "/etc/ssl/certs/ca-certificates.crt"))
	for ; ; certificates++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Errorf("certificate %d: %v", certificates, err)
		}
	}
	if certificates < 50 {
		t.Errorf("there are %d certificate authorities", certificates)
	}
	m.notices(t)
	binary, err := elf.Open(filepath.Join(m.root, "usr/local/bin/postwire"))
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	if slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC }) {
		t.Error("the binary needs libraries")
	}
}

// licenses is where the licenses are of all that is built in.
const licenses = "/usr/share/licenses/postwire/"

// notices holds the licenses to what the binary says it is made of.
func (m *image) notices(t *testing.T) {
	t.Helper()
	info, err := buildinfo.ReadFile(filepath.Join(m.root, "usr/local/bin/postwire"))
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Deps) < 50 {
		t.Errorf("the binary is made of %d modules", len(info.Deps))
	}
	for _, dep := range append(info.Deps, &debug.Module{Path: "../go"}) {
		var found bool
		for name := range m.files {
			rest, ok := strings.CutPrefix(name, filepath.Join(licenses, "modules", dep.Path))
			found = found || ok && strings.Contains(strings.ToUpper(rest), "LICENSE")
		}
		if !found {
			t.Errorf("there is no license of %s", dep.Path)
		}
	}
	if _, ok := m.files[licenses+"LICENSE"]; !ok {
		t.Error("there is no license of this project")
	}
	if os.Getenv("CI_LONG") != "" && !strings.HasPrefix(info.GoVersion, "go1.27") {
		t.Errorf("it is built with %s", info.GoVersion)
	}
}

func (m *image) text(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (m *image) labels(t *testing.T) {
	c := m.Config
	if want := fmt.Sprintf("%d:%[1]d", imageUser); c.User != want {
		t.Errorf("the user is %q, want %s", c.User, want)
	}
	if got, want := slices.Concat(c.Entrypoint, c.Cmd), []string{"postwire", "serve", "-c", "/etc/postwire/postwire.yaml"}; !slices.Equal(got, want) || len(c.Entrypoint) != 1 {
		t.Errorf("it runs %q, of which %q is the entry point; want %q", got, c.Entrypoint, want)
	}
	if want := []string{"PATH=/usr/local/bin"}; !slices.Equal(c.Env, want) {
		t.Errorf("the environment is %q, want %q", c.Env, want)
	}
	_, volume := c.Volumes["/var/lib/postwire"]
	_, hooks := c.ExposedPorts["8080/tcp"]
	_, admin := c.ExposedPorts["9090/tcp"]
	if !volume || !hooks || !admin || c.WorkingDir != "/var/lib/postwire" {
		t.Errorf("volumes %v, ports %v, folder %s", c.Volumes, c.ExposedPorts, c.WorkingDir)
	}
	for _, label := range []string{"title", "description", "source", "licenses", "version"} {
		if c.Labels["org.opencontainers.image."+label] == "" {
			t.Errorf("it has no label org.opencontainers.image.%s: %v", label, c.Labels)
		}
	}
}

// container is the image, running.
type container struct {
	endpoint
	image  *image
	volume string // its journal's folder, the one place it can write to
	etc    string // folder of its configuration
	state  string // the run-time's
	runs   int

	cmd *exec.Cmd
	log bytes.Buffer
	pid int
}

// command is what runs the image with arguments: all that the image does not need is
// taken from it. Only the network is the machine's, where the brokers are.
func (c *container) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	type mount = map[string]any
	env := slices.Clone(c.image.Config.Env)
	for name, value := range c.env() {
		env = append(env, name+"="+value)
	}
	bundle := t.TempDir()
	spec, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": imageUser, "gid": imageUser}, "args": slices.Concat(c.image.Config.Entrypoint, args), "env": env,
			"cwd": c.image.Config.WorkingDir, "capabilities": map[string]any{}, "noNewPrivileges": true,
		},
		"root": map[string]any{"path": c.image.root, "readonly": true},
		"mounts": []mount{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/etc/postwire", "type": "bind", "source": c.etc, "options": []string{"rbind", "ro"}},
			{"destination": "/var/lib/postwire", "type": "bind", "source": c.volume, "options": []string{"rbind", "rw", "nosuid", "nodev", "noexec"}},
		},
		"linux": map[string]any{"namespaces": []map[string]string{{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}}},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.runs++
	return exec.Command("runc", "--root", c.state, "run", "--bundle", bundle,
		"--pid-file", c.pidFile(), fmt.Sprintf("postwire-%d-%d", os.Getpid(), c.runs))
}

// start runs the image as it says that it is run, and waits until it is ready.
func (c *container) start(t *testing.T) {
	t.Helper()
	c.cmd = c.command(t, c.image.Config.Cmd...)
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container runs", func() bool {
		text, err := os.ReadFile(c.pidFile())
		if err == nil {
			c.pid, err = strconv.Atoi(string(text))
		}
		return err == nil
	})
	c.ready(t)
}

func (c *container) pidFile() string { return filepath.Join(c.state, fmt.Sprint("pid-", c.runs)) }

// end ends the process in the container by a signal, and returns how it did.
func (c *container) end(t *testing.T, how syscall.Signal) error {
	t.Helper()
	if err := syscall.Kill(c.pid, how); err != nil {
		t.Fatal(err)
	}
	c.pid = 0
	return c.cmd.Wait()
}

// of returns what the kernel says of the process.
func (c *container) of(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.pid, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (m *image) runs(t *testing.T) {
	w := newWorld(t)
	c := &container{endpoint: newEndpoint(t), image: m, volume: t.TempDir(), etc: t.TempDir(), state: t.TempDir()}
	if err := errors.Join(os.Chown(c.volume, imageUser, imageUser), os.Chmod(c.etc, 0o755)); err != nil {
		t.Fatal(err)
	}
	config := regexp.MustCompile(`dir: "[^"]*"`).ReplaceAllString(w.config, "dir: /var/lib/postwire/journal")
	if err := os.WriteFile(filepath.Join(c.etc, "postwire.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.pid > 0 {
			_ = syscall.Kill(c.pid, syscall.SIGKILL)
			_ = c.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the container's log:\n%s", c.log.String())
		}
	})

	out, err := c.command(t, "version").CombinedOutput()
	if want := m.Config.Labels["org.opencontainers.image.version"]; err != nil || !strings.Contains(string(out), want) {
		t.Fatalf("postwire version: %v\n%s\nwant %s", err, out, want)
	}

	c.start(t)
	status := c.of(t, "status")
	for _, want := range []string{`Uid:(\t65532){4}`, `Gid:(\t65532){4}`, `CapEff:\t0+`, `CapPrm:\t0+`, `CapBnd:\t0+`, `NoNewPrivs:\t1`, `Groups:[\t ]*(65532)?[\t ]*`} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(status) {
			t.Errorf("the process is not %s:\n%s", want, status)
		}
	}
	var writable []string
	for mount := range strings.Lines(c.of(t, "mountinfo")) {
		if fields := strings.Fields(mount); !slices.Contains(strings.Split(fields[5], ","), "ro") {
			writable = append(writable, fields[4])
		}
	}
	slices.Sort(writable)
	if want := []string{"/proc", "/var/lib/postwire"}; !slices.Equal(writable, want) {
		t.Errorf("it can write to %q, want %q", writable, want)
	}

	arrived := func(what string, want ...string) {
		t.Helper()
		w.settled(t, c.endpoint)
		acked := map[string]bool{}
		for _, id := range want {
			acked[id] = true
		}
		for broker, got := range map[string][]arrival{"JetStream": w.onNATS(t), "Kafka": w.onKafka(t)} {
			if check(t, broker+", "+what, acked, got, true); len(got) != len(want) {
				t.Errorf("%s, %s: there are %d events, want %d", broker, what, len(got), len(want))
			}
		}
	}
	post := func(number int, want string) {
		t.Helper()
		if got, err := c.post(upload(0, number)); err != nil || got != want {
			t.Fatalf("webhook %d is answered %q, %v; want %s", number, got, err, want)
		}
	}
	post(1, "accepted")
	arrived("at once", id(0, 1))

	// What is in the journal when the container is killed is there in the next one.
	w.toNATS.set(t, weather{shut: true})
	w.toKafka.set(t, weather{shut: true})
	post(2, "accepted")
	if err := c.end(t, syscall.SIGKILL); err == nil {
		t.Error("a killed container ended well")
	}
	w.toNATS.set(t, weather{})
	w.toKafka.set(t, weather{})
	c.start(t)
	post(1, "duplicate")
	post(3, "accepted")
	arrived("after a restart", id(0, 1), id(0, 2), id(0, 3))
	if err := c.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("asked to end, it ended with %v", err)
	}
}
