package charts

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
)

const deploy = root + "/deploy"

// compose loads a text as docker compose does the file in deploy: against the
// specification's schema, with what refers to something resolved and checked.
func compose(t *testing.T, text []byte) (*types.Project, error) {
	t.Helper()
	dir, err := filepath.Abs(deploy)
	if err != nil {
		t.Fatal(err)
	}
	return loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "compose.yaml"), Content: text}},
		Environment: types.Mapping{}, // nothing need be set
	})
}

// What is in deploy/compose.yaml is what the specification knows, down to the last
// key: images of one version each, built from what is here, and a configuration
// that the product takes in the environment that it gets there.
func TestCompose(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deploy, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := compose(t, text)
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`^v?\d+\.\d+`)
	for name, s := range p.Services {
		if s.Build != nil {
			if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
				t.Errorf("%s is built from nothing: %v", name, err)
			}
			continue
		}
		image, err := reference.ParseNormalizedNamed(s.Image)
		if err != nil {
			t.Errorf("%s: %s: %v", name, s.Image, err)
			continue
		}
		if tagged, ok := image.(reference.Tagged); !ok || !version.MatchString(tagged.Tag()) {
			t.Errorf("%s: %s is whatever version is pulled", name, s.Image)
		}
	}

	own, err := p.GetService("postwire")
	if err != nil {
		t.Fatal(err)
	}
	if !own.ReadOnly || !slices.Equal(own.CapDrop, []string{"ALL"}) || !slices.Contains(own.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("it runs with read_only: %v, cap_drop: %v, security_opt: %v", own.ReadOnly, own.CapDrop, own.SecurityOpt)
	}
	i := slices.IndexFunc(own.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == "/etc/postwire" })
	if i < 0 || own.Volumes[i].Type != types.VolumeTypeBind || !own.Volumes[i].ReadOnly {
		t.Fatalf("its configuration is not mounted: %+v", own.Volumes)
	}
	binary, err := product()
	if err != nil {
		t.Fatal(err)
	}
	validate := exec.Command(binary, "config", "validate", "-c", filepath.Join(own.Volumes[i].Source, "postwire.yaml"))
	for key, value := range own.Environment {
		if value == nil {
			t.Errorf("%s has no value", key)
			continue
		}
		validate.Env = append(validate.Env, key+"="+*value)
	}
	if out, err := validate.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The specification's own library is strict: a slip does not pass.
func TestComposeIsStrict(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deploy, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"read_only:": "readonly:", "- journal:/var": "- jurnal:/var", "127.0.0.1:9090:9090": "127.0.0.1:admin:9090"} {
		slip := bytes.Replace(text, []byte(from), []byte(to), 1)
		if bytes.Equal(slip, text) {
			t.Fatalf("there is no %s", from)
		}
		if p, err := compose(t, slip); err == nil {
			t.Errorf("%s passes: %+v", to, p)
		}
	}
}
