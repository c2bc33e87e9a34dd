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

LISTEN ?= 127.0.0.1:8080
DATA ?= .data
BROKER ?= kafka

.PHONY: help setup demo up test lint proto dashboards e2e chaos collector bench clean

help:
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(if $(filter uv,$(UV)),,.tools/bin/uv)
	@$(UV) sync --locked --all-extras --quiet
	@$(RUN) python -m compileall -q libs services

.tools/bin/uv:
	@$(PYTHON) -m pip install --quiet --root-user-action ignore --disable-pip-version-check --target .tools 'uv==$(UV_VERSION)'

demo: setup ## start the platform, replay an hour of usage, print its cost (ONCE=1: then end)
	@$(RUN) mindweave demo $(if $(ONCE),--once)

up: setup ## a process per service, until Ctrl-C (LISTEN, DATA, BROKER=kafka|redis-streams, SCALE=gateway=2)
	@exec .venv/bin/mindweave up --listen $(LISTEN) --data $(DATA) --broker $(BROKER) \
	  $(foreach count,$(SCALE),--scale $(count))

test: lint ## everything: lint, types, unit, store, rpc, bus (with coverage) and e2e tests
	@$(RUN) python -m tests.run

lint: setup ## formatting, lint, types, import rules, protos, generated files
	@$(RUN) ruff check .
	@$(RUN) ruff format --check --quiet .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) python proto/generate.py --check
	@$(RUN) buf lint
	@$(RUN) buf breaking libs/mindweave/descriptors.binpb --against $(RELEASED)
	@$(RUN) python -m services.gateway.http.openapi --check docs/api/openapi.json
	@$(RUN) python -m common.events.asyncapi --check docs/api/asyncapi.json
	@$(RUN) python -m deploy.dashboards --check

proto: setup ## make the stubs, the descriptor set and docs/api from the protos
	@$(RUN) python proto/generate.py
	@$(RUN) python -m services.gateway.http.openapi docs/api/openapi.json
	@$(RUN) python -m common.events.asyncapi docs/api/asyncapi.json

dashboards: setup ## make deploy/grafana from deploy/dashboards
	@$(RUN) python -m deploy.dashboards

e2e: setup ## the end-to-end tests alone (MINDWEAVE_E2E_ADDRESS: against a running platform)
	@$(RUN) pytest -m e2e

chaos: setup ## faults under load, then one line of JSON (SEED, BROKER; ROUNDS or MINUTES: more than a short round)
	@$(RUN) python -m tests.chaos --broker $(BROKER) $(if $(SEED),--seed $(SEED)) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MINUTES),--minutes $(MINUTES))

collector: setup ## build an OpenTelemetry Collector, and see what deploy/otel hides (minutes; needs Go)
	@$(RUN) python -m tests.deploy.collector

bench: setup ## the benchmarks; each ends with one line of JSON
	@$(RUN) python -m bench.platform
	@$(RUN) python -m bench.ingest

clean: ## remove what was made: environment, tools, caches, data
	@rm -rf .venv .tools .cache .data .coverage* .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
