package charts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const root = "../.."

// product builds the product once; POSTWIRE_BINARY names one that is built.
var product = sync.OnceValues(func() (string, error) {
	if built := os.Getenv("POSTWIRE_BINARY"); built != "" {
		return filepath.Abs(built)
	}
	dir, err := os.MkdirTemp("", "postwire-chart")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "postwire")
	build := exec.Command("go", "build", "-o", binary, "./cmd/postwire")
	build.Dir, build.Stderr, build.Env = root, os.Stderr, append(os.Environ(), "GOWORK=off")
	return binary, build.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binary, err := product(); err == nil && os.Getenv("POSTWIRE_BINARY") == "" {
		_ = os.RemoveAll(filepath.Dir(binary)) // it is a temporary folder
	}
	os.Exit(code)
}

// stands are what the names in the value sets stand for, where not any text
// will do.
var stands = map[string]string{
	"NATS_URL":           "nats://nats:4222",
	"TELEGRAM_BOT_TOKEN": "123456:a-token-of-telegram",
}

var (
	variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
	file     = regexp.MustCompile(`\$\{file:([^}]+)\}|(?:cert|key|ca|client_ca)_file: (\S+)`)
)

// surround makes what a configuration names: files below dir, as which they
// then appear in it, and an environment.
func surround(t *testing.T, dir, config string) (text string, env []string) {
	t.Helper()
	text = file.ReplaceAllStringFunc(config, func(match string) string {
		found := file.FindStringSubmatch(match)
		path := found[1] + found[2]
		at := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		content := []byte("a-secret-of-some-length" + strings.ReplaceAll(path, "/", "-") + "\n") // another one in each
		certificate, key := pair(t)
		switch filepath.Ext(path) {
		case ".crt":
			content = certificate
		case ".key":
			content = key
		}
		if err := os.WriteFile(at, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return strings.Replace(match, path, at, 1)
	})
	for _, found := range variable.FindAllStringSubmatch(config, -1) {
		value, ok := stands[found[1]]
		if !ok {
			value = "c29tZXRoaW5nLXNlY3JldA==" // long enough, and base64
		}
		env = append(env, found[1]+"="+value)
	}
	return text, env
}

// pair returns a certificate authority in PEM, and its key.
func pair(t *testing.T) (certificate, key []byte) {
	t.Helper()
	made, err := madePair()
	if err != nil {
		t.Fatal(err)
	}
	return made[0], made[1]
}

var madePair = sync.OnceValues(func() (made [2][]byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return made, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return made, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	made[0] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	made[1] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return made, err
})

// What becomes a ConfigMap is a configuration that the product runs on.
func TestConfiguration(t *testing.T) {
	binary, err := product()
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, _ string, values map[string]any) {
		config := rendered(t, values)
		dir := t.TempDir()
		text, env := surround(t, dir, config)
		path := filepath.Join(dir, "postwire.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		validate := exec.Command(binary, "config", "validate", "-c", path)
		validate.Env = env
		out, err := validate.CombinedOutput()
		if err != nil && !ahead(t, config, out) {
			t.Errorf("%v\n%s\n%s", err, out, config)
		}
	})
}

func rendered(t *testing.T, values map[string]any) string {
	t.Helper()
	for _, c := range only[*corev1.ConfigMap](objects(t, mustRender(t, "postwire", values))) {
		if text, ok := c.Data["postwire.yaml"]; ok {
			return text
		}
	}
	t.Fatal("there is no configuration")
	return ""
}

// ahead reports whether all that is said against a configuration is that the
// product has the engine jetstream not yet: the chart is ahead of it. When the
// product's schema knows the spill, this says no.
func ahead(t *testing.T, config string, said []byte) bool {
	t.Helper()
	var schema struct {
		Properties struct {
			Journal struct{ Properties map[string]any }
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/reference/postwire.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if _, knows := schema.Properties.Journal.Properties["spill"]; knows || !strings.Contains(config, "engine: jetstream") {
		return false
	}
	for line := range bytes.Lines(bytes.TrimSpace(said)) {
		if !bytes.Contains(line, []byte("journal.spill: unknown key")) && !bytes.Contains(line, []byte("jetstream is not part of this version")) {
			return false
		}
	}
	return true
}
