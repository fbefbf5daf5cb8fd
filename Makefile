# Two commands: `make bench` measures, `make test` checks. Each makes what it needs: a virtual environment in .venv.
# `make gpu` runs the whole GPU programme with the PyTorch that the machine already has, that of GPU_PYTHON.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
GPU_PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench test gpu clean

bench: $(VENV)/installed
	$(BIN)/python -m bench $(ARGS)

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

gpu:
	$(GPU_PYTHON) -m bench gpu $(ARGS)

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .editable build dist *.egg-info bench/out
