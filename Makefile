# Two commands do it all: `make demo` and `make test`. Each sets up .venv first if it is not there; with
# STACK=upstream .venv-upstream, with OpenMMLab's own packages.
export STACK ?= maintained
VENV := $(if $(filter upstream,$(STACK)),.venv-upstream,.venv)
PYTHON_BIN := $(VENV)/bin/python
# Two workers of one thread each (tests/conftest.py); the one that is done first takes over from the other.
PYTEST := $(PYTHON_BIN) -m pytest --numprocesses 2 --dist worksteal

.PHONY: help setup demo test test-slow lint

help:
	@echo "make demo       train a tiny SG-Former detector and segmenter on synthetic shapes, with pictures"
	@echo "make test       run the test suite, on 2 cores"
	@echo "make test-slow  run the tests that it leaves out: full sizes, many repetitions; once a day in CI"
	@echo "make lint       check style with ruff"
	@echo "make setup      set up .venv only; each of these with STACK=upstream uses OpenMMLab's last own packages"

setup:
	@bash tools/setup_venv.sh

demo: setup
	@$(PYTHON_BIN) tools/demo.py

test: setup
	@$(PYTEST)

test-slow: setup
	@$(PYTEST) -m slow

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
