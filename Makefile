# MultiRecon Zoo.  `make help` lists the targets.
# Settings:  VENV=folder of the environment   OUT=folder for results   PYTHON=interpreter (3.11 to 3.13)
# Nothing but these two folders is written to; both may lie outside a read-only clone.
SHELL := /bin/bash
VENV ?= .venv
OUT ?= output
PYTHON ?=
export VENV OUT PYTHON
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test lint format slow gpu peers browser label deploy clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

venv: ## the environment with the pinned packages; a second run installs nothing
	@bash ci/venv.sh

demo: venv ## reconstruct the embedded sample with the first bundles and compare them
	@bash ci/demo.sh

test: venv ## everything that must hold: ruff, mypy, layers, the default test suite (ci/check.sh)
	@bash ci/check.sh

lint: venv ## ruff, format, mypy and layers, without the tests
	@bash ci/check.sh ruff format mypy layers

format: venv ## rewrite the sources the way `make lint` wants them
	@"$$VENV/bin/python" -m ruff check --no-cache --fix . ; "$$VENV/bin/python" -m ruff format --no-cache .

slow: venv ## the tests that take minutes
	@PYTEST_ADDOPTS="-m slow" bash ci/check.sh pytest

gpu: venv ## the tests that need a CUDA device
	@PYTEST_ADDOPTS="-m gpu" bash ci/check.sh pytest

peers: ## comparisons with ASTRA, sigpy and scikit-image (adds them to the environment)
	@EXTRAS=dev,data,io,interop,zoo,peers bash ci/venv.sh
	@PYTEST_ADDOPTS="-m peers" bash ci/check.sh pytest

browser: ## the report in headless Chromium (adds playwright to the environment; Chromium has to be there)
	@EXTRAS=dev,data,io,interop,zoo,browser bash ci/venv.sh
	@PYTEST_ADDOPTS="-m browser" bash ci/check.sh pytest

label: venv ## a real MONAI Label server serves the bundles (makes an environment of 8 GB beside VENV)
	@python=$$(VENV="$$VENV-label" bash ci/interop_env.sh label) && \
		MULTIRECON_LABEL_PYTHON="$$python" PYTEST_ADDOPTS="-m label" bash ci/check.sh pytest

deploy: venv ## the example applications under the MONAI Deploy App SDK (makes an environment of 7 GB beside VENV)
	@python=$$(VENV="$$VENV-deploy" bash ci/interop_env.sh deploy) && \
		MULTIRECON_DEPLOY_PYTHON="$$python" PYTEST_ADDOPTS="-m deploy" bash ci/check.sh pytest

clean: ## remove results and caches inside the checkout (not the environment)
	rm -rf output build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find common bundles tests ci -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
