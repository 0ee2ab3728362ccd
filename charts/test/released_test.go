package charts

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// released says that what is fixed is released anew: only before the first
// release, and with a new major version, whose notes say what to delete.
var released = flag.Bool("released", false, "write what an upgrade must not change")

// fixed is what Kubernetes does not let an upgrade change.
type fixed struct {
	Kind      string                         `json:"kind"`
	Name      string                         `json:"name"`
	Selector  *metav1.LabelSelector          `json:"selector"`
	Service   string                         `json:"serviceName,omitempty"`
	Parallel  bool                           `json:"parallel,omitempty"`
	Claims    []corev1.PersistentVolumeClaim `json:"volumeClaimTemplates,omitempty"`
	ClusterIP map[string]string              `json:"clusterIP"` // of the Services
}

// An upgrade from the last release is one that Kubernetes takes: selectors and
// claim templates are as they were.
func TestUpgrade(t *testing.T) {
	each(t, func(t *testing.T, name string, values map[string]any) {
		all := objects(t, mustRender(t, "postwire", values))
		f := fixed{ClusterIP: map[string]string{}}
		for _, o := range all {
			switch o := o.(type) {
			case *appsv1.StatefulSet:
				f.Kind, f.Name, f.Selector = kind(o), o.Name, o.Spec.Selector
				f.Service, f.Parallel, f.Claims = o.Spec.ServiceName, o.Spec.PodManagementPolicy == appsv1.ParallelPodManagement, o.Spec.VolumeClaimTemplates
			case *appsv1.Deployment:
				f.Kind, f.Name, f.Selector = kind(o), o.Name, o.Spec.Selector
			case *corev1.Service:
				f.ClusterIP[o.Name] = o.Spec.ClusterIP
			}
		}
		got, err := yaml.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "released", name+".yaml")
		if *released {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v; a new value set is added by -released, which must leave the others as they are", err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("an upgrade would be refused (- last release, + now):\n%s", diff)
		}
	})
}
