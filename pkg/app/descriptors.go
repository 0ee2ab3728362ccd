package app

import "go.uber.org/zap"

const (
	// reservedDescriptors are the file descriptors besides sender connections: files of the
	// journal (1000), the admin port (256), brokers, listeners and configuration files.
	reservedDescriptors = 1000 + 256 + 256
	// leastConnections is the minimum number of ingress connections, also with few
	// descriptors.
	leastConnections = 64
)

// connectionsFor returns the number of ingress connections for a configured number and a
// limit of open files; limit 0 is unknown.
func connectionsFor(configured int, limit uint64) int {
	if limit == 0 {
		return configured
	}
	left := leastConnections
	if limit > reservedDescriptors+leastConnections {
		left = int(min(limit-reservedDescriptors, uint64(configured)))
	}
	return min(configured, left)
}

// maxConnections is connectionsFor of this process. It logs a number below the configured
// one.
func maxConnections(configured int, log *zap.Logger) int {
	limit := descriptorLimit()
	n := connectionsFor(configured, limit)
	if n < configured {
		log.Warn("server.max_connections lowered: the process may not open more files", zap.Int("configured", configured), zap.Int("max_connections", n),
			zap.Uint64("nofile", limit), zap.String("advice", "raise the limit of open files (LimitNOFILE, ulimit -n), or lower server.max_connections"))
	}
	return n
}
