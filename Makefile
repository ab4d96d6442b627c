# Every target sets up what it needs by itself, in build/. `make help` lists them.

PYTHON ?= python3
DJANGO ?= 5.2

# make demo, make serve: FLEET=sqlite needs no server, CHINOOK=path takes the real rows.
PORT ?= 8000
# make test: more arguments for pytest.
ARGS ?=
# make conformance
ALIAS ?= sharded
ENGINE ?= postgresql
SHARDS ?= 3
APPS ?=
BOUNDED ?=
# make differential: SEEDS=1,2,3 or 1-20 are runs of their own, JOBS of them at once;
# FORCE=gather takes no other rung, FORCE=scatter asks every shard; SOURCE=fdw has home
# read foreign tables; SHARDS=1,2,3,7 fleets
COUNT ?= 500
FORCE ?=
SOURCE ?=
CLAIMS ?=
SEEDS ?=
JOBS ?= 1
# make differential, make faults
SEED ?=
# make faults
OPS ?= 30000
# make bench: ONLY="shards overhead", ROWS of the tables of shards
ONLY ?=
ROWS ?=

SHELL := /bin/sh
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

VENV := build/venv$(if $(filter-out 5.2,$(DJANGO)),-django$(DJANGO))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# Django 5.2 is the last that runs on Python 3.11.
MINIMUM := $(if $(filter 5.2,$(DJANGO)),3.11,3.12)
SOURCES := $(wildcard src tests example docs)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
		awk -F'|' '{ printf "%-22s%s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/.demo ## a music store on an embedded fleet (FLEET CHINOOK)
	@$(BIN)/python -m example.demo

.PHONY: serve
serve: $(VENV)/.demo ## the demo's fleet, kept up, with the admin (PORT FLEET CHINOOK)
	@$(BIN)/python -m example.demo --serve --port $(PORT)

.PHONY: test
test: $(VENV)/.test ## the test suite (ARGS="-k name")
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: conformance
conformance: $(VENV)/.test ## Django's own tests (ALIAS ENGINE SHARDS APPS BOUNDED DJANGO)
	@$(BIN)/python -m tests.conformance --alias $(ALIAS) --engine $(ENGINE) \
		--shards $(SHARDS) --django $(DJANGO) \
		$(if $(APPS),--apps $(APPS)) $(if $(BOUNDED),--bounded)

.PHONY: differential
differential: $(VENV)/.test ## random querysets, one database v fleets (COUNT SEED SEEDS JOBS ENGINE FORCE SOURCE CLAIMS)
	@$(BIN)/python -m tests.differential --count $(COUNT) --engine $(ENGINE) \
		$(if $(SEED),--seed $(SEED)) $(if $(FORCE),--force $(FORCE)) \
		$(if $(SOURCE),--source $(SOURCE)) $(if $(CLAIMS),--claims $(CLAIMS)) \
		$(if $(SEEDS),--seeds $(SEEDS) --jobs $(JOBS)) \
		$(if $(filter command line,$(origin SHARDS)),--shards $(SHARDS))

.PHONY: faults
faults: $(VENV)/.test ## concurrent clients while servers fail (OPS ENGINE SEED)
	@$(BIN)/python -m tests.faults --ops $(OPS) --engine $(ENGINE) \
		$(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: $(VENV)/.test ## overhead, shards, outages, to build/bench.json (ONLY ROWS)
	@$(BIN)/python -m tests.bench --output build/bench.json \
		$(if $(ONLY),--only $(ONLY)) $(if $(ROWS),--rows $(ROWS))

.PHONY: lint
lint: $(VENV)/.lint ## ruff, codespell, mypy, import-linter, change fragments
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --quiet --check $(SOURCES) || \
		{ echo "run: $(BIN)/ruff format $(SOURCES)" >&2; exit 1; }
	@$(BIN)/codespell $(SOURCES) tools changes *.md
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/lint-imports --no-logo >build/imports.log || { cat build/imports.log; exit 1; }
	@$(BIN)/towncrier build --draft --version next >/dev/null

.PHONY: docs
docs: $(VENV)/.docs ## the documentation, warnings are errors, to build/docs
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "built build/docs/index.html"

.PHONY: clean
clean: ## remove build/ and caches
	@rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	@find src tests example tools docs -name __pycache__ -prune -exec rm -rf {} + \
		2>/dev/null || true

$(VENV)/.created: tools/make_venv
	@mkdir -p build
	@tools/make_venv $(VENV) $(MINIMUM) $(PYTHON)
	@touch $@

# One stamp per set of extras; a change of pyproject.toml installs again.
EXTRAS_demo := embedded,postgresql,url
EXTRAS_test := test
EXTRAS_lint := lint
EXTRAS_docs := docs

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: \
		pyproject.toml $(VENV)/.created
	@echo "installing into $(VENV): $(EXTRAS_$*)"
	@$(PIP) install --editable '.[$(EXTRAS_$*)]' 'Django~=$(DJANGO).0'
	@touch $@
