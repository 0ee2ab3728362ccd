package app

import "testing"

func TestConnectionsLeaveDescriptorsToOthers(t *testing.T) {
	for _, tt := range []struct {
		configured int
		limit      uint64
		want       int
	}{
		{10000, 0, 10000}, // unknown
		{10000, 1 << 20, 10000},
		{10000, 11512, 10000},
		{10000, 11511, 9999},
		{10000, 2048, 536},
		{500, 2048, 500},
		{10000, 1024, leastConnections},
		{10, 1024, 10},
		{10000, ^uint64(0), 10000}, // unlimited
	} {
		if got := connectionsFor(tt.configured, tt.limit); got != tt.want {
			t.Errorf("connectionsFor(%d, %d) = %d, want %d", tt.configured, tt.limit, got, tt.want)
		}
	}
}
