package charts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// Values that would make something that does not run are refused before the
// cluster sees them. Each file of testdata/refused has the values, and below
// the dashed line what is said of them.
func TestRefused(t *testing.T) {
	files, err := filepath.Glob("testdata/refused/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	bySchema := 0
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			const dashes = "----------\n"
			given, _, _ := strings.Cut(string(text), dashes)
			values, err := loader.LoadValues(strings.NewReader(given))
			if err != nil {
				t.Fatal(err)
			}
			_, err = render(t, loadChart(t), "postwire", values)
			if err == nil {
				t.Fatal("it is rendered")
			}
			message := strings.TrimSpace(err.Error())
			if strings.Contains(message, "of the schema") {
				bySchema++
			}
			golden(t, filepath.Join("refused", filepath.Base(file)), given+dashes+message+"\n")
		})
	}
	if bySchema < 10 {
		t.Errorf("%d are refused by the schema", bySchema)
	}
}
