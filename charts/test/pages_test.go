package charts

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	corev1 "k8s.io/api/core/v1"

	appsv1 "k8s.io/api/apps/v1"
)

// blocks are the fenced blocks of a page: its shell script, and its files by name.
func blocks(t *testing.T, page string) (script string, files map[string]string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	into := func(string) {}
	inside := false
	for line := range strings.Lines(string(text)) {
		info, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !inside:
			language, name, _ := strings.Cut(info, " ")
			switch {
			case language == "sh":
				into = func(line string) { script += line }
			case name != "":
				into = func(line string) { files[name] += line }
			default:
				into = func(string) {}
			}
			inside = true
		case fence:
			inside = false
		case inside:
			into(line)
		}
	}
	return script, files
}

// recorder is a command in place of kubectl and of helm: it writes its arguments to a file,
// and prints what helm template prints.
const recorder = `#!/usr/bin/env bash
set -euo pipefail
{ printf '%s' "$(basename "$0")"; for arg in "$@"; do printf '\x1f%s' "$arg"; done; printf '\n'; } >>"$RECORD"
for arg in "$@"; do
	if [ "$arg" = template ]; then cat "$RENDERED"; fi
done
`

// runPage runs the shell blocks of a page with the recorder, and the product itself, and returns
// the calls of kubectl and helm.
func runPage(t *testing.T, script string, files map[string]string) (calls [][]string) {
	t.Helper()
	for _, tool := range []string{"bash", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	binary, err := product()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, text := range files {
		write(name, text, 0o600)
	}
	for _, name := range []string{"kubectl", "helm"} {
		write(name, recorder, 0o700)
	}
	if err := os.Symlink(binary, filepath.Join(dir, "postwire")); err != nil {
		t.Fatal(err)
	}
	rendered := mustRender(t, "postwire", valuesOf(t, files["values.yaml"]))
	delete(rendered, "postwire/templates/NOTES.txt")
	record := filepath.Join(dir, "record")
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + dir + ":" + os.Getenv("PATH"), "RECORD=" + record, "RENDERED=" + write("rendered.yaml", joined(rendered), 0o600),
		"UPLOAD_POST_WEBHOOK_SECRET=a-secret-of-the-sender", "NATS_PASSWORD=a-password-of-nats",
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		calls = append(calls, strings.Split(lines.Text(), "\x1f"))
	}
	return calls
}

func valuesOf(t *testing.T, text string) map[string]any {
	t.Helper()
	values, err := loader.LoadValues(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// reader is what a reader of a page has done so far.
type reader struct {
	page       string
	values     string                       // text of values.yaml
	namespaces map[string]bool              // created
	secrets    map[string]map[string]string // created, by name
	release    []object                     // of the last install or upgrade
	orphaned   bool                         // the StatefulSet is deleted, its pods run
}

// arguments splits the arguments of a call into words and flags. A flag with a value in the
// next word must be listed.
func arguments(args []string, valued ...string) (words []string, flags map[string][]string) {
	flags = map[string][]string{}
	for i := 0; i < len(args); i++ {
		name, value, split := strings.Cut(args[i], "=")
		switch {
		case args[i] == "--":
			flags["--"] = args[i+1:]
			return words, flags
		case !strings.HasPrefix(args[i], "-"):
			words = append(words, args[i])
		case split:
			flags[name] = append(flags[name], value)
		case slices.Contains(valued, name) && i+1 < len(args):
			i++
			flags[name] = append(flags[name], args[i])
		default:
			flags[name] = append(flags[name], "")
		}
	}
	return words, flags
}

func (r *reader) helm(t *testing.T, args []string) {
	t.Helper()
	words, flags := arguments(args, "-n", "-f", "--set")
	r.inNamespace(t, args, flags)
	if len(words) == 0 || slices.Contains([]string{"test", "uninstall", "rollback", "dependency"}, words[0]) {
		return
	}
	if len(words) != 3 || words[1] != "postwire" || words[2] != "charts/postwire" || !slices.Contains([]string{"template", "install", "upgrade"}, words[0]) {
		t.Errorf("%s: helm %v", r.page, args)
		return
	}
	values := valuesOf(t, r.values)
	for _, set := range flags["--set"] {
		if err := strvals.ParseInto(set, values); err != nil {
			t.Errorf("%s: --set %s: %v", r.page, set, err)
		}
	}
	all := objects(t, mustRender(t, words[1], values))
	if words[0] == "template" {
		return
	}
	if words[0] == "upgrade" && !r.orphaned {
		for i, s := range only[*appsv1.StatefulSet](all) {
			before := only[*appsv1.StatefulSet](r.release)[i]
			if fmt.Sprint(before.Spec.VolumeClaimTemplates) != fmt.Sprint(s.Spec.VolumeClaimTemplates) {
				t.Errorf("%s: helm %v: Kubernetes refuses the change of the claim template", r.page, args)
			}
		}
	}
	r.release, r.orphaned = all, false
	r.starts(t, values)
}

// starts fails the test if a pod of the release would not start: a Secret or a key is missing,
// or the product refuses the configuration.
func (r *reader) starts(t *testing.T, values map[string]any) {
	t.Helper()
	env := map[string]string{}
	for _, p := range pods(r.release) {
		for _, c := range p.spec.Containers {
			for _, from := range c.EnvFrom {
				secret, ok := r.secrets[from.SecretRef.Name]
				if !ok {
					t.Errorf("%s: %s refers to the Secret %s, which the page does not create", r.page, title(p.of), from.SecretRef.Name)
				}
				maps.Copy(env, secret)
			}
			for _, v := range c.Env {
				if v.ValueFrom == nil {
					env[v.Name] = v.Value
				} else if ref := v.ValueFrom.SecretKeyRef; ref != nil {
					value, ok := r.secrets[ref.Name][ref.Key]
					if !ok {
						t.Errorf("%s: %s refers to the key %s of the Secret %s, which the page does not create", r.page, title(p.of), ref.Key, ref.Name)
					}
					env[v.Name] = value
				}
			}
		}
		for _, v := range p.spec.Volumes {
			if v.Secret != nil && r.secrets[v.Secret.SecretName] == nil {
				t.Errorf("%s: %s mounts the Secret %s, which the page does not create", r.page, title(p.of), v.Secret.SecretName)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "postwire.yaml")
	if err := os.WriteFile(path, []byte(rendered(t, values)), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := product()
	if err != nil {
		t.Fatal(err)
	}
	validate := exec.Command(binary, "config", "validate", path)
	validate.Env = []string{}
	for name, value := range env {
		validate.Env = append(validate.Env, name+"="+value)
	}
	if out, err := validate.CombinedOutput(); err != nil {
		t.Errorf("%s: a pod does not start: %v\n%s", r.page, err, out)
	}
}

func (r *reader) kubectl(t *testing.T, args []string) {
	t.Helper()
	words, flags := arguments(args, "-n", "-c", "-l", "-p")
	if len(words) == 3 && words[0] == "create" && words[1] == "namespace" {
		r.namespaces[words[2]] = true
		return
	}
	r.inNamespace(t, args, flags)
	exists := func(name string) {
		t.Helper()
		want, resource, _ := strings.Cut(name, "/")
		if !slices.ContainsFunc(r.release, func(o object) bool { return strings.EqualFold(kind(o), want) && o.GetName() == resource }) {
			t.Errorf("%s: kubectl %v: the release has no %s", r.page, args, name)
		}
	}
	switch command := strings.Join(words[:min(len(words), 3)], " "); {
	case strings.HasPrefix(command, "create secret generic") && len(words) == 4:
		keys := map[string]string{}
		for _, literal := range flags["--from-literal"] {
			key, value, _ := strings.Cut(literal, "=")
			keys[key] = value
		}
		r.secrets[words[3]] = keys
	case words[0] == "exec" && len(words) == 2:
		exists(words[1])
		container := relayContainer(t, valuesOf(t, r.values))
		if !slices.Equal(flags["-c"], []string{container.Name}) || len(flags["--"]) == 0 || flags["--"][0] != "postwire" {
			t.Errorf("%s: kubectl %v", r.page, args)
		}
		if at := slices.Index(flags["--"], "-c"); at > 0 && !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == filepath.Dir(flags["--"][at+1]) }) {
			t.Errorf("%s: kubectl %v: the container has no file %s", r.page, args, flags["--"][at+1])
		}
	case words[0] == "port-forward" && len(words) == 3:
		exists(words[1])
		if !slices.ContainsFunc(relayContainer(t, valuesOf(t, r.values)).Ports, func(p corev1.ContainerPort) bool { return fmt.Sprint(p.ContainerPort) == words[2] }) {
			t.Errorf("%s: kubectl %v: the container has no such port", r.page, args)
		}
	case strings.HasPrefix(command, "patch pvc "):
		r.claim(t, words[2])
		if len(flags["-p"]) != 1 || !json.Valid([]byte(flags["-p"][0])) {
			t.Errorf("%s: kubectl %v: the patch is not JSON", r.page, args)
		}
	case strings.HasPrefix(command, "delete pvc "):
		r.claim(t, words[2])
	case strings.HasPrefix(command, "delete statefulset "):
		exists("StatefulSet/" + words[2])
		if !slices.Equal(flags["--cascade"], []string{"orphan"}) {
			t.Errorf("%s: kubectl %v deletes the pods", r.page, args)
		}
		r.orphaned = true
	case strings.HasPrefix(command, "rollout restart "):
		exists(words[2])
	case command == "delete configmap":
		if len(flags["-l"]) != 1 {
			t.Errorf("%s: kubectl %v", r.page, args)
			return
		}
		for _, o := range r.release {
			all := true
			for label := range strings.SplitSeq(flags["-l"][0], ",") {
				key, value, _ := strings.Cut(label, "=")
				all = all && o.GetLabels()[key] == value
			}
			if hashed := kind(o) == "ConfigMap" && o.GetAnnotations()[keepPolicy] == "keep"; all != hashed {
				t.Errorf("%s: kubectl %v selects %s: %v", r.page, args, title(o), all)
			}
		}
	default:
		t.Errorf("%s: kubectl %v: the test does not know the command", r.page, args)
	}
}

// claim fails the test unless a pod of the release has the claim.
func (r *reader) claim(t *testing.T, name string) {
	t.Helper()
	for _, s := range only[*appsv1.StatefulSet](r.release) {
		for _, c := range s.Spec.VolumeClaimTemplates {
			if name == c.Name+"-"+s.Name+"-0" {
				return
			}
		}
	}
	t.Errorf("%s: no pod of the release has the claim %s", r.page, name)
}

func (r *reader) inNamespace(t *testing.T, args []string, flags map[string][]string) {
	t.Helper()
	if len(flags["-n"]) != 1 || !r.namespaces[flags["-n"][0]] {
		if slices.Contains(args, "template") || slices.Contains(args, "dependency") {
			return
		}
		t.Errorf("%s: %v: the namespace is not created", r.page, args)
	}
}

// A reader who follows the pages literally has a relay that starts, and every name in a
// command is a name of the release.
func TestPages(t *testing.T) {
	howto := filepath.Join(root, "docs/howto/kubernetes.md")
	_, files := blocks(t, howto)
	values := files["values.yaml"]
	for _, page := range []string{howto, filepath.Join(chartDir, "README.md")} {
		t.Run(filepath.Base(page), func(t *testing.T) {
			script, files := blocks(t, page)
			if files["values.yaml"] == "" {
				files["values.yaml"] = values
			}
			r := &reader{page: page, values: files["values.yaml"], namespaces: map[string]bool{}, secrets: map[string]map[string]string{}}
			for _, call := range runPage(t, script, files) {
				switch call[0] {
				case "helm":
					r.helm(t, call[1:])
				case "kubectl":
					r.kubectl(t, call[1:])
				}
			}
			if r.release == nil {
				t.Error("the page installs nothing")
			}
		})
	}
}
