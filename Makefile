# A fresh machine needs python3 (3.11 to 3.13), make and the package index; the rest goes into .venv.
PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

unexport PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test lock clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(INSTALLED) ## pretrain a tiny T5 on this machine and show what it fills in; SHORT=1: a minute of it
	$(BIN)/t5x_lite demo --output=demo $(if $(SHORT),--short)

# Two processes: a test mostly traces and compiles, which keeps one core busy.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test: $(INSTALLED) ## ruff, then pytest; ARGS=... goes to pytest
	$(BIN)/ruff check .
	$(PYTEST) -m "not sharded" $(ARGS)
	$(PYTEST) -m sharded --devices=8 $(ARGS)

# The stamp is written last, so that a broken installation is tried again.
$(INSTALLED): requirements.lock setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11, 3.12 or 3.13," \
	  "or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
# TensorFlow 2.21 has no wheels for Python 3.14.
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version): the lock is for 3.11, 3.12 and 3.13." \
	  "Name one of them: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no module venv." \
	  "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# All extras are resolved together first, so that one set of versions fits them all.
lock: ## write requirements.lock and tpu/requirements.lock anew from setup.py; needs uv
	@command -v $(UV) >/dev/null || { echo "There is no $(UV). Install it: pip install uv," \
	  "or name it: make lock UV=/path/to/uv" >&2; exit 2; }
	mkdir -p build
	rm -f build/all-extras.txt
	$(UV) pip compile setup.py --all-extras --universal --python-version 3.11 --no-annotate --quiet \
	  --default-index https://pypi.org/simple -o build/all-extras.txt
	$(UV) pip compile setup.py --extra test --universal --python-version 3.11 --no-annotate --quiet \
	  --default-index https://pypi.org/simple -c build/all-extras.txt --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" -o requirements.lock
	$(UV) pip compile setup.py --extra tpu --universal --python-version 3.11 --no-annotate --quiet \
	  --default-index https://pypi.org/simple -c build/all-extras.txt --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" -o tpu/requirements.lock

clean: ## remove the environment, the demo's model and what tools leave behind
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
