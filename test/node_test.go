package test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// TestNodeClient: the service's own client takes the simulator for the service,
// as that is documented and as the client's typings have it.
func TestNodeClient(t *testing.T) {
	dir := os.Getenv("POSTWIRE_TEST_NODE")
	if dir == "" {
		t.Skip("needs Node.js: POSTWIRE_TEST_NODE names the folder test/node, in which 'npm ci' was run")
	}
	type shape struct {
		Settings string `json:"settings"`
		Events   string `json:"events"`
		History  string `json:"history"`
		Uploads  int    `json:"uploads"`
	}
	for _, tt := range []struct {
		name   string
		quirks simulator.Quirks
		shape  shape
	}{
		{"documented", simulator.Quirks{}, shape{"notifications", "object", "history", 45}},
		{"typings", simulator.Quirks{ConfigKey: true, EventsAsList: true, HistoryKey: "uploads"}, shape{"config", "array", "uploads", 45}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service := simulator.New(simulator.Options{APIKey: "key", Quirks: tt.quirks, Random: rand.New(rand.NewPCG(15, 16))})
			defer service.Close()
			for i := range tt.shape.Uploads {
				if err := service.Upload(t.Context(), i%5 == 4); err != nil {
					t.Fatal(err)
				}
			}
			api := httptest.NewServer(service.Handler())
			defer api.Close()
			text, err := json.Marshal(tt.shape)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "node", "read.mjs", api.URL+"/api", string(text))
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "UPLOAD_POST_API_KEY=key", "NO_PROXY=127.0.0.1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
