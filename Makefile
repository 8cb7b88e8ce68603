# Fleetban. `make help` lists what there is; the README says what each is for.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
MODULES := proto/wire agent controlplane scripts/lab scripts/fleetsim
TOOLS   := $(CURDIR)/bin/tools
export PATH := $(TOOLS):/usr/local/go/bin:/usr/sbin:/sbin:$(PATH)

# The versions of what builds and checks the code. Tests and builds of the product need none of them but Go.
BUF_VERSION                := v1.75.0
PROTOC_GEN_GO_VERSION      := v1.36.12
PROTOC_GEN_CONNECT_VERSION := v1.21.1
GOLANGCI_LINT_VERSION      := v2.15.0

# Stripped and without paths: what is served to hosts must be small, and the same whoever builds it.
GO_BUILD := CGO_ENABLED=0 go build -trimpath

DIST := controlplane/internal/installer/dist

##@ Use it

.PHONY: demo
demo: setup build lab ## An attack on one host, shut out of two others: real sshd, fail2ban, nftables, Redis, two replicas
	@scripts/as-root bin/fleetban-lab demo

.PHONY: run
run: build ## The control plane with its embedded default, on https://localhost:8443
	@bin/fleetban-controlplane serve --data-dir $${FLEETBAN_DATA_DIR:-./bin/data} --listen $${FLEETBAN_LISTEN:-127.0.0.1:8443}

.PHONY: build
build: ## Everything into bin/
	@scripts/build "$(VERSION)"

.PHONY: lab
lab: ## The lab's own program, bin/fleetban-lab, and the proxy that makes its ways slow
	@cd scripts/lab && $(GO_BUILD) -o ../../bin/fleetban-lab ./cmd/fleetban-lab
	@cd scripts/lab && $(GO_BUILD) -ldflags "-s -w" -o ../../bin/toxiproxy-server github.com/Shopify/toxiproxy/v2/cmd/server

##@ Change it

.PHONY: setup
setup: ## Install what the machine lacks; says what; does nothing the second time
	@scripts/setup

.PHONY: test
test: setup ## Lint, generated code, unit, property, fuzz (short), integration, end to end, the console in a browser
	@scripts/test

.PHONY: test-versions
test-versions: setup ## The same against fail2ban 0.11 and 1.1 and Valkey, from Debian's other releases
	@scripts/as-root scripts/test-versions

.PHONY: test-cluster
test-cluster: setup ## The control plane's tests again, with a Redis cluster of three masters wherever one server would do
	@cd controlplane && FLEETBAN_TEST_REDIS=cluster go test -count=1 -timeout 20m ./internal/...

.PHONY: bench
bench: setup build lab ## The README's figures, measured here
	@scripts/as-root scripts/bench

.PHONY: bench-scale
bench-scale: setup build ## Fleets of 1,000, 5,000 and 15,000 simulated hosts on one replica, beside NATS; draws docs/scale.svg (some minutes)
	@bin/fleetsim scale --bans 300 --duration 15s --seed 1 --tls --settle 2m --svg docs/scale.svg

.PHONY: chaos
chaos: setup build lab ## Break a fleet of real processes and check that nothing was lost: SEED=1 ROUNDS=20
	@scripts/as-root bin/fleetban-lab chaos --seed $(or $(SEED),1) --rounds $(or $(ROUNDS),20)

.PHONY: model
model: ## A model of how hosts follow a set across failovers, looked through by spin
	@scripts/lab/model/check

.PHONY: web-dev
web-dev: setup ## The console with hot reloading, on a control plane that runs: FLEETBAN_URL=https://localhost:8443
	@scripts/web-packages && cd web && npm run dev

.PHONY: web-test
web-test: setup build lab ## The console's tests in a browser, on a lab's hosts
	@scripts/setup browser && scripts/as-root scripts/web-e2e

.PHONY: web-screens
web-screens: setup build lab ## Pictures of the console's pages, in both themes and on a phone, to web/screens/out
	@scripts/setup browser && scripts/as-root scripts/web-e2e --config screens.config.ts

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-connect-go ## Generated code and copies, anew
	@cd proto && buf format -w --path fleetban && rm -rf gen/go/fleetban && buf generate --path fleetban
	@scripts/web-packages && cd proto && rm -rf ../web/src/gen && buf generate --template buf.gen.web.yaml
	@scripts/copy-embedded

.PHONY: lint
lint: $(TOOLS)/golangci-lint $(TOOLS)/buf ## Go, protos, shell and alert rules
	@cd proto && buf lint && buf format --diff --exit-code --path fleetban
	@scripts/check-breaking
	@# Compiled as the build is, whose packages it shares.
	@for m in $(MODULES); do (cd $$m && CGO_ENABLED=0 GOFLAGS=-trimpath golangci-lint run --allow-parallel-runners --config $(CURDIR)/.golangci.yml ./...) || exit 1; done
	@shellcheck scripts/setup scripts/build scripts/build-agent scripts/test scripts/go-test scripts/fuzz scripts/e2e scripts/bench scripts/as-root scripts/copy-embedded scripts/build-console scripts/web-packages scripts/web-e2e scripts/retry scripts/check-breaking scripts/test-versions scripts/install.sh .ci/run
	@promtool check config infra/prometheus/prometheus.yml >/dev/null
	@promtool test rules infra/prometheus/alerts_test.yml

.PHONY: clean
clean: ## Remove what was built
	@rm -rf bin web/dist && find $(DIST) controlplane/internal/webconsole/dist -mindepth 1 ! -name .gitkeep -delete

$(TOOLS)/buf: ; @GOBIN=$(TOOLS) GOWORK=off scripts/retry go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
$(TOOLS)/protoc-gen-go: ; @GOBIN=$(TOOLS) GOWORK=off scripts/retry go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
$(TOOLS)/protoc-gen-connect-go: ; @GOBIN=$(TOOLS) GOWORK=off scripts/retry go install connectrpc.com/connect/cmd/protoc-gen-connect-go@$(PROTOC_GEN_CONNECT_VERSION)
$(TOOLS)/golangci-lint: ; @GOBIN=$(TOOLS) GOWORK=off scripts/retry go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*##/ {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
