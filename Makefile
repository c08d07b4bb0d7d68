# Two commands from a bare clone: `make quickstart` and `make test`. Needed: make, and Python 3.11+ with pip and venv.
#
#   make quickstart TORCH=torch            the newest torch of your index (CUDA on Linux) instead of the pinned one
#   make quickstart PIP_ARGS="--extra-index-url URL"   another index, e.g. PyTorch's own for a CPU-only build
#   make test PYTHON=python3.13            another interpreter
#   make test TESTS="-m slow"              other tests
.DEFAULT_GOAL := help
SHELL := /bin/bash

NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
endif
TORCH ?= torch==2.13.0
PIP_ARGS ?=
TESTS ?= -n 2 --dist worksteal
VENV := .venv
TEXT := .venv-text
FULL := .venv-full
BIN := $(VENV)/bin
PIP = -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
LOCKED = $(PIP) --require-hashes --no-deps -r
EDITABLE = $(PIP) --no-deps --no-build-isolation -e .
UV = uv pip compile --quiet --universal --python-version 3.11 --no-deps --no-header --no-annotate --generate-hashes
# Test files that the light environment passes over, whole or in part.
TEXT_FILES = $(shell grep -rlE 'importorskip.{2}(transformers|peft)' --include='test_*.py' --exclude-dir=standin tests)

# The environment is set up again when what defines it changes, not when a file is merely newer.
KEY := $(shell (cat pyproject.toml constraints/*; echo "$(PYTHON) $(TORCH)") | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(KEY)
TEXT_READY := $(TEXT)/.ready-$(KEY)

.PHONY: help environment text-environment quickstart test test-text test-processes faults faults-ci mutants lint bench lock sbom checksums full-environment clean

help:
	@echo 'make quickstart        environment, then distil the bundled teacher, sample, evaluate, write the report'
	@echo 'make test              environment, then the tests'
	@echo 'make test-text         .venv-text, then the tests that need transformers and peft'
	@echo 'make test-processes    runs of several processes against those of one (minutes)'
	@echo 'make faults            kills, damaged files, full disks, lying headers, ..., counted (20 minutes); docs/reliability.md'
	@echo 'make faults-ci         a small part of it'
	@echo 'make mutants           deliberate errors, and whether the tests notice them (long)'
	@echo 'make lint              ruff and mypy'
	@echo 'make bench             speed and memory on this machine'
	@echo 'make full-environment  .venv-full: every extra, newest versions, torchvision (several GB)'
	@echo 'make lock              constraints/*.lock, after a change of constraints/cpu.txt (needs uv)'
	@echo 'make sbom              what the environments consist of, in CycloneDX (needs cyclonedx-bom)'
	@echo 'make checksums         assets/SHA256SUMS, after a change of a bundled file'
	@echo 'make clean             remove environments, caches and builds; runs/ stays'

environment: $(READY)

$(READY):
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || \
		{ echo 'no Python 3.11+ with venv and pip found: install one, or say PYTHON=/path/to/python' >&2; exit 2; }
	@version='import sys; print(sys.version)'; \
		test "$$($(BIN)/python -c "$$version; import pip" 2>/dev/null)" = "$$($(PYTHON) -c "$$version")" || \
		$(PYTHON) -m venv --clear $(VENV)
	@echo 'Setting up $(VENV) (once; a minute or two) ...'
	@$(BIN)/python $(LOCKED) constraints/light.lock
	@$(BIN)/python $(PIP) '$(TORCH)'
	@$(BIN)/python $(EDITABLE)
	@rm -f $(VENV)/.ready-*
	@touch $@

text-environment: $(TEXT_READY)

# A layer on $(VENV), whose packages it sees: only what text needs is installed, not torch a second time.
$(TEXT_READY): $(READY)
	@echo 'Setting up $(TEXT) on top of $(VENV) (once; half a minute) ...'
	@$(BIN)/python -m venv --clear $(TEXT)
	@folder='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		$(BIN)/python -c "$$folder" | sed "s|.*|import site; site.addsitedir('&')|" \
			> "$$($(TEXT)/bin/python -c "$$folder")/light.pth"
	@$(TEXT)/bin/python $(LOCKED) constraints/text.lock
	@$(TEXT)/bin/python $(EDITABLE)
	@touch $@

quickstart: $(READY)
	$(BIN)/python scripts/quickstart.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto $(TESTS)

test-text: $(TEXT_READY)
	$(TEXT)/bin/python -c 'import peft, transformers'
	OMP_NUM_THREADS=1 $(TEXT)/bin/python -m pytest -q -n auto $(TESTS) $(TEXT_FILES)

# 1 process against 2, 3 and 4: the same runs, images and numbers; kills, signals, launchers.
test-processes: $(TEXT_READY)
	OMP_NUM_THREADS=1 $(TEXT)/bin/python -m pytest -q -n 2 -m dist tests/processes

# The page is written of a run with wrong tries too; make fails all the same.
faults: $(TEXT_READY)
	rm -rf runs/faults
	FAULTS=full FAULTS_OUT=$(CURDIR)/runs/faults OMP_NUM_THREADS=1 \
		$(TEXT)/bin/python -m pytest -q -n 2 --dist worksteal -m fault tests/faults; \
		code=$$?; $(TEXT)/bin/python docs/make_reliability.py runs/faults && exit $$code

faults-ci: $(TEXT_READY)
	FAULTS=ci OMP_NUM_THREADS=1 $(TEXT)/bin/python -m pytest -q -n auto --dist worksteal -m fault tests/faults

mutants: $(READY)
	$(BIN)/python -m tests.mutants $(MUTANTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/diffdistill bench
	$(BIN)/python -m pytest -q -m bench

full-environment:
	$(PYTHON) -m venv $(FULL)
	$(FULL)/bin/python -m pip install --quiet $(PIP_ARGS) -e '.[text,eval,data,plot,dev]'
	$(FULL)/bin/diffdistill doctor

# After a change of constraints/cpu.txt; needs uv.
lock:
	sed '/^# Text/,$$d' constraints/cpu.txt | grep -v '^torch==' | $(UV) - -o constraints/light.lock
	sed '1,/^# Text/d' constraints/cpu.txt | $(UV) - -o constraints/text.lock

# What the environments consist of, in CycloneDX; needs cyclonedx-py (cyclonedx-bom).
sbom: $(TEXT_READY)
	mkdir -p build
	cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.cdx.json $(BIN)/python
	cyclonedx-py environment --output-reproducible -o build/sbom-text.cdx.json $(TEXT)/bin/python

checksums:
	cd assets && find * -type f ! -path SHA256SUMS ! -path README.md -print0 | LC_ALL=C sort -z | xargs -0 sha256sum > SHA256SUMS

clean:
	rm -rf $(VENV) $(TEXT) $(FULL) .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
