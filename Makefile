# Two commands do it all: `make demo` and `make test`. Each sets up .venv first if it is not there.
PYTHON_BIN := .venv/bin/python

.PHONY: help setup demo test lint

help:
	@echo "make demo   train a tiny SG-Former detector and segmenter on synthetic shapes, with pictures"
	@echo "make test   run the test suite"
	@echo "make lint   check style with ruff"
	@echo "make setup  set up .venv only"

setup:
	@bash tools/setup_venv.sh

demo: setup
	@$(PYTHON_BIN) tools/demo.py

test: setup
	@$(PYTHON_BIN) -m pytest

lint: setup
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
