package charts

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// installed answers the template function lookup with one object.
type installed struct {
	dynamic.NamespaceableResourceInterface
	object object
	kind   string
}

// GetClientFor implements engine.ClientProvider.
func (i installed) GetClientFor(_, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	i.kind = kind
	return i, true, nil
}

func (i installed) Namespace(string) dynamic.ResourceInterface { return i }

func (i installed) List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": i.kind + "List"}}, nil
}

func (i installed) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	if kind(i.object) != i.kind || i.object.GetName() != name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: i.kind}, name)
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(i.object)
	return &unstructured.Unstructured{Object: m}, err
}

// upgrade renders an upgrade of a release that has one object.
func upgrade(t *testing.T, values map[string]any, has object) (map[string]string, error) {
	t.Helper()
	chart := loadChart(t)
	vals, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "postwire", Namespace: namespace, Revision: 2, IsUpgrade: true}, common.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	return engine.RenderWithClientProvider(chart, vals, installed{object: has})
}

// The pods of an upgrade find the pods of the installation: the secret stays.
func TestUpgradeKeepsTheClusterSecret(t *testing.T) {
	values := sets(t)["embedded"]
	first := only[*corev1.Secret](objects(t, mustRender(t, "postwire", values)))
	if len(first) != 1 || len(first[0].Data["POSTWIRE_CLUSTER_SECRET"]) != 43 {
		t.Fatalf("the secret of an installation: %v", first)
	}
	files, err := upgrade(t, values, first[0])
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for path, text := range files {
		if strings.HasSuffix(path, "/clustersecret.yaml") {
			found = true
			for _, s := range only[*corev1.Secret](objects(t, map[string]string{path: text})) {
				if got, want := string(s.Data["POSTWIRE_CLUSTER_SECRET"]), string(first[0].Data["POSTWIRE_CLUSTER_SECRET"]); got != want {
					t.Errorf("an upgrade changes the secret from %q to %q", want, got)
				}
			}
		}
	}
	if !found {
		t.Error("an upgrade has no secret")
	}
}

// An upgrade to fewer pods first removes the pods that are to go from the cluster, one after
// the other.
func TestScaleDownRemovesThePodsFirst(t *testing.T) {
	with := func(replicas int) map[string]any {
		values := maps.Clone(sets(t)["embedded"])
		values["replicaCount"] = replicas
		return values
	}
	running := only[*appsv1.StatefulSet](objects(t, mustRender(t, "postwire", with(5))))[0]
	jobs := func(replicas int) []*batchv1.Job {
		files, err := upgrade(t, with(replicas), running)
		if err != nil {
			t.Fatal(err)
		}
		for path, text := range files {
			if strings.HasSuffix(path, "/scaledown.yaml") && strings.TrimSpace(text) != "" {
				golden(t, "golden/scale-down.txt", strings.ReplaceAll(text, "helm.sh/chart: postwire-"+loadChart(t).Metadata.Version, "helm.sh/chart: postwire-VERSION"))
				return only[*batchv1.Job](objects(t, map[string]string{path: text}))
			}
		}
		return nil
	}
	if got := jobs(5); len(got) > 0 {
		t.Errorf("a job for an unchanged number of pods: %v", got)
	}
	if got := jobs(7); len(got) > 0 {
		t.Errorf("a job for more pods: %v", got)
	}
	got := jobs(3)
	if len(got) != 1 {
		t.Fatalf("%d jobs, want 1", len(got))
	}
	spec := got[0].Spec.Template.Spec
	var order []string
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		order = append(order, c.Args[2]+" at "+c.Args[len(c.Args)-1])
	}
	want := []string{"postwire-4 at http://postwire-4.postwire-admin:9090", "postwire-3 at http://postwire-3.postwire-admin:9090"}
	if !slices.Equal(order, want) {
		t.Errorf("the job removes %v, want %v", order, want)
	}
}
