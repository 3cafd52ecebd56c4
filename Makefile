# make demo: set up and run the main job (eleven to thirteen minutes). make test: set up and run the tests; test-all: the long ones too. They need Python and git only.
.PHONY: demo test test-all setup lint docs clean
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.10 python3,$(shell $(p) -c 'import sys; v=sys.version_info[:2]; print("$(p)" if (3, 10) <= v <= (3, 12) else "")' 2>/dev/null)))
PIP := .venv/bin/python -m pip --disable-pip-version-check
LOCK := $(if $(filter 3.10,$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)),requirements-3.10.lock,requirements.lock)

demo: setup
	.venv/bin/sgpo demo

test: setup
	.venv/bin/python -m pytest -m 'not long' -n 2 --dist loadfile --durations 15

test-all: setup
	.venv/bin/python -m pytest -n 2 --dist loadfile --durations 15

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The documentation site, into site/. A warning is an error; it asks no network.
docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

setup: .venv/.ready

# Marked ready only when everything is in, so that an interrupted set-up is done again.
.venv/.ready: $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 found: install one, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up .venv with $(PYTHON) (about five minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PIP) install -q torch==2.13.0
	$(PIP) install -q --no-deps -r $(LOCK)
	$(PIP) install -q --no-deps -e .
	@touch $@

clean:
	rm -rf .venv demo_run site
