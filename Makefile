# kserve-local: the same commands by hand and in CI. `make demo` and `make test` work from a fresh
# clone on a machine with Python 3.11+ and make; everything goes into .venv, from pinned versions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: setup demo fix check test soak conformance bench docs clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet 'pip>=24'

# What the demo needs and no more: the supervisor, scikit-learn.
$(VENV)/.demo: constraints.txt pyproject.toml runtimes/pyproject.toml | $(BIN)/python
	$(PIP) -e 'runtimes[sklearn]' -e .
	@touch $@

# Everything for development: all runtimes, the kserve SDK, tools.
$(VENV)/.setup: constraints.txt pyproject.toml runtimes/pyproject.toml | $(BIN)/python
	$(PIP) 'torch==2.13.0'
	$(PIP) -e 'runtimes[sklearn,xgboost,lightgbm,onnx,torch]' -e . --group dev
	$(BIN)/python -m pip check
	@touch $@ $(VENV)/.demo

sample_models/sklearn-iris/model/model.joblib: sample_models/sklearn-iris/train.py $(VENV)/.demo
	$(BIN)/python sample_models/sklearn-iris/train.py

setup: $(VENV)/.setup sample_models/sklearn-iris/model/model.joblib

demo: $(VENV)/.demo sample_models/sklearn-iris/model/model.joblib
	@cd sample_models/sklearn-iris && kl=../../$(BIN)/kserve-local && \
	$$kl up -d --wait --port auto --api-port auto && echo && \
	echo '$$ kserve-local predict sklearn-iris @request.json' && \
	$$kl predict sklearn-iris @request.json; \
	code=$$?; $$kl down; exit $$code

fix: $(VENV)/.setup
	$(BIN)/ruff format kserve_local runtimes tests sample_models
	$(BIN)/ruff check --fix kserve_local runtimes tests sample_models

check: $(VENV)/.setup
	$(BIN)/ruff format --check kserve_local runtimes tests sample_models
	$(BIN)/ruff check kserve_local runtimes tests sample_models
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: setup
	$(BIN)/python -m tests.soak.run
	$(BIN)/python -m tests.soak.behaviours
	$(BIN)/python -m tests.soak.canary
	$(BIN)/python -m tests.soak.saves --count 120
	$(BIN)/python -m tests.soak.breakpoint --minutes 5
	$(BIN)/python -m tests.soak.simulator
	sh tests/soak/docker.sh

conformance: setup
	$(BIN)/python -m tests.conformance.run

bench: setup
	$(BIN)/python -m tests.bench.run

docs: $(VENV)/.setup
	$(BIN)/mkdocs build --strict --quiet --site-dir .site

clean:
	rm -rf $(VENV) .site build runtimes/build
