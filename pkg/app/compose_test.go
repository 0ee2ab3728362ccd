package app

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/sinks/kafka"
	"github.com/postwire/postwire/sinks/nats"
)

// composition is what of deploy/compose.yaml this test knows.
type composition struct {
	Name     string
	Services map[string]struct {
		Image, Build, Restart string
		ReadOnly              bool     `yaml:"read_only"`
		CapDrop               []string `yaml:"cap_drop"`
		SecurityOpt           []string `yaml:"security_opt"`
		Grace                 string   `yaml:"stop_grace_period"`
		Command               []string
		Environment           map[string]string
		Volumes, Ports        []string
	}
	Volumes map[string]any
}

// variable is one of Compose, whose dollar is not written twice.
var variable = regexp.MustCompile(`\$\$|\$\{(\w+)(?::-([^}]*))?\}`)

// interpolated is a text as Compose passes it on, where nothing is set.
func interpolated(t *testing.T, text string) string {
	t.Helper()
	return variable.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" {
			return "$"
		}
		parts := variable.FindStringSubmatch(found)
		if parts[2] == "" {
			t.Errorf("%s has no default", found)
		}
		return parts[2]
	})
}

// What Compose would run is a configuration that the product takes, of brokers
// that are there, reached from this machine only.
func TestComposeIsValid(t *testing.T) {
	text, err := os.ReadFile("../../deploy/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c composition
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		t.Fatal(err)
	}
	mounts := map[string]string{} // folders of this repository
	for name, s := range c.Services {
		if (s.Image == "") == (s.Build == "") {
			t.Errorf("%s: it has an image or is built", name)
		}
		if s.Image != "" && !regexp.MustCompile(`:\d`).MatchString(s.Image) {
			t.Errorf("%s: %s has no version", name, s.Image)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to others", name, port)
			}
		}
		for _, volume := range s.Volumes {
			from, to, _ := strings.Cut(volume, ":")
			if folder, ok := strings.CutPrefix(from, "./"); ok {
				mounts[to] = filepath.Join("../../deploy", folder)
			} else if _, ok := c.Volumes[from]; !ok {
				t.Errorf("%s: there is no volume %s", name, from)
			}
		}
	}
	own := c.Services["postwire"]
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	const folder = "/etc/postwire"
	if !strings.Contains(string(dockerfile), `"`+folder+`/postwire.yaml"`) || mounts[folder+":ro"] == "" {
		t.Fatalf("the image does not read what is mounted: %v", mounts)
	}
	file := filepath.Join(mounts[folder+":ro"], "postwire.yaml")
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := Parse(file, config, func(name string) (string, bool) {
		value, ok := own.Environment[name]
		return interpolated(t, value), ok
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(plan.Config.Journal.Dir, "/var/lib/postwire/") {
		t.Errorf("the journal is in %s, which is no volume", plan.Config.Journal.Dir)
	}
	brokers := 0
	at := func(hostport string) {
		t.Helper()
		host, _, _ := strings.Cut(hostport, ":")
		if _, ok := c.Services[host]; !ok {
			t.Errorf("there is no service %s", host)
		}
		brokers++
	}
	for _, s := range plan.Sinks {
		switch own := s.Own.(type) {
		case nats.Config:
			u, err := url.Parse(own.URL.Reveal())
			if err != nil {
				t.Fatal(err)
			}
			at(u.Host)
		case kafka.Config:
			at(own.Brokers[0])
		}
	}
	if brokers != 2 {
		t.Errorf("%d brokers get events, want 2", brokers)
	}
}
