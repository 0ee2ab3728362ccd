package charts

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

var update = flag.Bool("update", false, "write golden files instead of comparing with them")

const (
	chartDir  = "../postwire"
	namespace = "relay"
)

// sets are the value sets of the chart's ci folder, by name.
func sets(t *testing.T) map[string]map[string]any {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chartDir, "ci", "*-values.yaml"))
	if err != nil || len(files) < 12 {
		t.Fatalf("%d value sets: %v", len(files), err)
	}
	all := map[string]map[string]any{}
	for _, file := range files {
		all[strings.TrimSuffix(filepath.Base(file), "-values.yaml")] = readValues(t, file)
	}
	return all
}

// each runs a test on every value set.
func each(t *testing.T, do func(t *testing.T, name string, values map[string]any)) {
	t.Helper()
	all := sets(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) { do(t, name, all[name]) })
	}
}

func readValues(t *testing.T, file string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	values, err := loader.LoadValues(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return values
}

// loadChart reads the chart without the charts that it depends on, whether or
// not somebody has downloaded them.
func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDependencies()
	return c
}

// render does what helm install does before it asks a cluster: values over
// defaults, dependencies that are off taken out, the schema, the templates. A
// dependency that was not downloaded is not missed here, as it is by the
// command. Files are by path in the chart; those without objects are left out.
func render(t *testing.T, c *chart.Chart, release string, values map[string]any) (map[string]string, error) {
	t.Helper()
	if err := chartutil.ProcessDependencies(c, values); err != nil {
		return nil, err
	}
	options := common.ReleaseOptions{Name: release, Namespace: namespace, Revision: 1, IsInstall: true}
	vals, err := util.ToRenderValues(c, values, options, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, vals)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(files, func(path, text string) bool {
		return strings.TrimSpace(text) == "" || strings.HasPrefix(filepath.Base(path), "_")
	})
	return files, nil
}

func mustRender(t *testing.T, release string, values map[string]any) map[string]string {
	t.Helper()
	files, err := render(t, loadChart(t), release, values)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// scheme knows every kind that the chart makes, and nothing else.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
		gatewayv1.Install, monitoringv1.AddToScheme, kedav1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

var strict = serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()

// object is something that the chart makes.
type object interface {
	runtime.Object
	metav1.Object
}

// objects decodes what was rendered into the types of Kubernetes. A field that
// a type does not have, or has twice, is an error.
func objects(t *testing.T, files map[string]string) []object {
	t.Helper()
	var all []object
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(path, "NOTES.txt") {
			continue
		}
		for _, text := range documents(t, files[path]) {
			o, _, err := strict.Decode(text, nil, nil)
			if err != nil {
				t.Errorf("%s: %v\n%s", path, err, text)
				continue
			}
			m, ok := o.(object)
			if !ok {
				t.Errorf("%s: %T has no metadata", path, o)
				continue
			}
			all = append(all, m)
		}
	}
	return all
}

func documents(t *testing.T, text string) [][]byte {
	t.Helper()
	var all [][]byte
	r := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(text)))
	defer r.Close()
	buffer := make([]byte, len(text)+1)
	for {
		n, err := r.Read(buffer)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if document := bytes.TrimSpace(buffer[:n]); len(document) > 0 && !onlyComments(document) {
			all = append(all, bytes.Clone(document))
		}
	}
}

func onlyComments(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

func kind(o object) string { return o.GetObjectKind().GroupVersionKind().Kind }

func title(o object) string { return kind(o) + "/" + o.GetName() }

// only returns the objects of a type.
func only[T object](all []object) []T {
	var found []T
	for _, o := range all {
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

// pod is a pod or a template of one.
type pod struct {
	of   object
	meta metav1.ObjectMeta
	spec corev1.PodSpec
}

func pods(all []object) []pod {
	var found []pod
	for _, o := range all {
		switch o := o.(type) {
		case *corev1.Pod:
			found = append(found, pod{o, o.ObjectMeta, o.Spec})
		case *appsv1.StatefulSet:
			found = append(found, pod{o, o.Spec.Template.ObjectMeta, o.Spec.Template.Spec})
		case *appsv1.Deployment:
			found = append(found, pod{o, o.Spec.Template.ObjectMeta, o.Spec.Template.Spec})
		}
	}
	return found
}

// golden fails the test where got is not what the file in testdata holds.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is not what was rendered; -update writes it (- file, + rendered):\n%s", file, diff)
	}
}

// joined is all that was rendered, one file after the other.
func joined(files map[string]string) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", path, strings.Trim(files[path], "\n"))
	}
	return b.String()
}
