# Each word is one line that a person could type.
GOLANGCI_VERSION = v2.15.0
GOVULNCHECK_VERSION = v1.9.0
# A count (100000x) or a time (1m). At its end a timed run may fail in "context deadline exceeded" without any input
# that fails (golang/go#75804): that is no failure.
FUZZTIME ?= 100000x
BENCHTIME ?= 3s
BENCH = go test ./bench -run '^$$' -benchtime 1x -timeout 60m

.PHONY: help test race lint fuzz generate chart console bench bench-smoke bench-accept bench-through bench-drain bench-cost bench-growth bench-cluster kafka e2e faults hostile vuln build image image-test tools golangci
help: ## list the words
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

build: ## the binary, static, in ./postwire
	CGO_ENABLED=0 go build -trimpath -o postwire ./cmd/postwire

test: ## all tests; needs only Go
	go test ./...

race: ## all tests with the race detector
	go test -race ./...

lint: tools ## formatters and linters
	.tools/golangci-lint fmt --diff && .tools/golangci-lint run
	for module in charts/test test/console; do (cd $$module && ../../.tools/golangci-lint run) || exit 1; done

# Each package with targets is built once, with instrumentation.
fuzz: ## each fuzz target, FUZZTIME runs
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf $$tmp' EXIT; cache=$$(go env GOCACHE)/fuzz; \
	for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u); do \
		go test -c -fuzz . -o $$tmp/fuzz $$dir; cd $$dir; \
		for target in $$($$tmp/fuzz -test.list '^Fuzz' | grep '^Fuzz'); do \
			echo "$$dir $$target"; mkdir -p $$cache/$$dir; \
			$$tmp/fuzz -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(FUZZTIME) -test.fuzzcachedir $$cache/$$dir >$$tmp/log 2>&1 || \
				{ grep -q 'context deadline exceeded' $$tmp/log && ! grep -q 'Failing input' $$tmp/log; } || { cat $$tmp/log; exit 1; }; \
			tail -n 1 $$tmp/log; \
		done; cd - >/dev/null; \
	done

vuln: ## known weaknesses in what is built in, where the database can be reached
	go run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./...

generate: ## pages and schemas from the code, the chart's too
	go test ./pkg/app -run 'TestGeneratedPagesAreFresh|TestMetricsPageIsFresh' -count=1 -update
	go test ./pkg/admin -run TestAPIPageIsFresh -count=1 -update
	cd charts/test && go test ./described -run TestGeneratedFilesAreFresh -count=1 -update

chart: ## the Helm chart: rendered, compared, judged; a module of its own
	cd charts/test && go test -count=1 ./...

console: ## the console in Chromium; a module of its own; POSTWIRE_TEST_SCREENSHOTS=folder keeps pictures
	cd test/console && npm ci --ignore-scripts --no-audit --no-fund && go test -count=1 ./...

bench: ## everything measured at length, on a quiet machine; figures into docs/performance.md
	$(BENCH) -bench '^Benchmark(Accept|Through|Drain|Cost|Growth)$$' -long -table ../docs/performance.md

bench-accept bench-through bench-drain bench-cost bench-growth: ## one of them, at length
	$(BENCH) -bench "$$(echo $@ | sed 's/bench-\(.\)/^Benchmark\u\1/')$$" -long -v

bench-smoke: ## each of them in seconds
	$(BENCH) -bench '^Benchmark(Accept|Through|Drain|Cost|Growth)$$'

bench-cluster: ## appends to three NATS servers, beside a plain publisher, and accepts by one relay and by three
	go test -run '^$$' -bench Cluster -benchtime $(BENCHTIME) -timeout 30m ./bench

kafka: ## the tests that use Kafka, on the broker at POSTWIRE_TEST_KAFKA=host:port
	@test -n "$(POSTWIRE_TEST_KAFKA)" || { echo "set POSTWIRE_TEST_KAFKA=host:port"; exit 2; }
	go test -count=1 ./sinks/kafka/... ./test/...

e2e: ## the real binary, killed and restarted under load
	go test -count=1 -v ./test/...

faults: ## everything that may break, broken, at length; figures into docs/reliability.md
	go test -count=1 -v -timeout 90m ./test -long -table ../docs/reliability.md

hostile: ## every attack of the hostile suite, at length; figures into docs/security.md
	go test -count=1 -v -timeout 60m ./test -run '^TestHostile' -long -hostile-table ../docs/security.md

image: ## the container image
	docker build -t postwire:dev --build-arg VERSION=$$(git describe --tags --always --dirty) .

image-test: ## the image built with buildah from what is committed, judged and run; as root
	deploy/image-build .tools/image
	POSTWIRE_TEST_IMAGE=$(CURDIR)/.tools/image go test -count=1 -v -run '^TestImage$$' ./test

tools: .tools/golangci-lint
.tools/golangci-lint:
	GOBIN=$(CURDIR)/.tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

golangci:
	@echo $(CURDIR)/.tools/golangci-lint
