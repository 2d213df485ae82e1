# Every target prepares .venv by itself; a stamp makes the second call quick.
# Another interpreter: make demo PYTHON=python3.12   (delete .venv to change it later)
PYTHON ?= python3
STAMPS := .venv/stamps
BIN := $(CURDIR)/.venv/bin
RUN := PATH="$(BIN):$$PATH"

.PHONY: help setup demo test lint

help:
	@echo "make demo    text on this machine -> a small BERT, exported to Hugging Face"
	@echo "make test    all tests"
	@echo "make lint    ruff and basedpyright"
	@echo "make setup   only the environment in .venv"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; say which to use: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "no .venv: $(PYTHON) lacks venv (on Debian: apt install python3-venv)" >&2; exit 1; }

# $(STAMPS)/NAME: this checkout is installed, editable, with the extra NAME.
$(STAMPS)/%: pyproject.toml | $(BIN)/python
	@echo "installing into .venv, once; this takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@mkdir -p $(STAMPS) && touch $@

setup: $(STAMPS)/prep

demo: $(STAMPS)/prep
	$(RUN) launch/demo.sh

test: $(STAMPS)/test
	$(RUN) python -m pytest $(ARGS)

lint: $(STAMPS)/dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) basedpyright --level error
