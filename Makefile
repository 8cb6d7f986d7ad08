# Makes .venv from the pinned versions, once and again when they change, and hands every target
# to the invoke task of the same name: `make train CONFIG=configs/base.json`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PINS := requirements.txt requirements_dev.txt

.DEFAULT_GOAL := help
.PHONY: environment

%: environment
	@.venv/bin/invoke $@

environment:
	@cat $(PINS) | cmp -s - .venv/pins.txt || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is older than Python 3.11; name another: make PYTHON=..." >&2; exit 2; }; \
	  echo "making .venv (about two minutes)" && { [ ! -L .venv ] || rm .venv; } && \
	  $(PYTHON) -m venv --clear .venv && \
	  .venv/bin/python -m pip install --quiet $(PINS:%=--requirement %) && \
	  cat $(PINS) > .venv/pins.txt; }

Makefile: ;
