# make quickstart   from a fresh clone to a probed checkpoint, in minutes
# make test         the test suite        make test-slow   the long tests
# make check        lint and types        make look PAGE=FILE.html   its pictures, by Chromium
#
# PYTHON=python3.12 chooses the interpreter (3.11 or newer), JAX=cuda or JAX=tpu the accelerator.
PYTHON ?= python3
JAX ?= cpu
VENV := .venv
RUN := $(VENV)/bin/python
# What CI runs is pinned on Python 3.11; JAX's newest versions need a newer Python.
PINS = $$($(RUN) -c 'import sys; sys.version_info[:2] == (3, 11) and print("-c constraints.txt")')
EXTRA := $(if $(filter-out cpu,$(JAX)),$(JAX))
WORKDIR ?= runs/quickstart

# Compiled programs are kept between runs: the second start of anything takes seconds.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache

.PHONY: quickstart test test-slow check look format clean

quickstart: $(VENV)/jaxssl-$(JAX)
	$(RUN) -m jaxssl.pretrain --config configs/quickstart.py --workdir $(WORKDIR)
	$(RUN) -m jaxssl.linear_probe --run $(WORKDIR) --baselines

test: $(VENV)/jaxssl-dev
	$(RUN) -m pytest -m "not slow" -n 2 --dist loadgroup

test-slow: $(VENV)/jaxssl-dev
	$(RUN) -m pytest -m "slow or shipped" -n 2 --dist loadgroup

check: $(VENV)/jaxssl-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

look: $(VENV)/jaxssl-$(JAX)
	$(RUN) tests/look.py $(PAGE) --out $(or $(OUT),looks)

format: $(VENV)/jaxssl-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("jaxssl needs Python 3.11 \
	or newer, this is " + sys.version.split()[0] + ": give another with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/jaxssl-$(JAX): $(VENV)/bin/python pyproject.toml constraints.txt
	$(RUN) -m pip install --quiet $(PINS) --editable ".$(if $(EXTRA),[$(EXTRA)])"
	@touch $@

$(VENV)/jaxssl-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(RUN) -m pip install --quiet $(PINS) --editable ".[dev$(if $(EXTRA),$(comma)$(EXTRA))]"
	@touch $@

comma := ,

clean:
	rm -rf $(VENV) .jax_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
