package app

import (
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Version identifies the build.
type Version struct {
	Version string `json:"version"` // release version, or module version
	Commit  string `json:"commit"`
	Date    string `json:"date"` // date of the commit
	Go      string `json:"go"`
}

// release is set by release builds, with -ldflags "-X
// github.com/postwire/postwire/pkg/app.release=1.2.3".
var release string

// ReadVersion returns the version in the binary.
func ReadVersion() Version {
	v := Version{Version: "(devel)", Commit: "unknown", Date: "unknown", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if ok && info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	if release != "" {
		v.Version = release
	}
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.time":
			v.Date = s.Value
		}
	}
	return v
}

func buildInfo() prometheus.Collector {
	v := ReadVersion()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "postwire_build_info", Help: "Always 1; the labels have version, commit and Go version of the build.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go},
	})
	g.Set(1)
	return g
}
