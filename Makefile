# Two commands: `make bench` measures, `make test` checks. Each makes what it needs: a virtual environment in .venv.
# `make test TORCH=2.11.0` checks with another PyTorch than the pinned one, and the Triton that it asks for.
# `make gpu` runs the whole GPU programme with the PyTorch that the machine already has, that of GPU_PYTHON.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
GPU_PYTHON ?= python3
TORCH ?=
VENV := .venv$(addprefix -,$(TORCH))
BIN := $(VENV)/bin

.PHONY: bench test gpu clean

bench: $(VENV)/installed
	$(BIN)/python -m bench $(ARGS)

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

gpu:
	$(GPU_PYTHON) -m bench gpu $(ARGS)

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	sed '$(if $(TORCH),/^torch==/d; /^triton==/d)' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[test]' $(addprefix torch==,$(TORCH))
	touch $@

clean:
	rm -rf .venv .venv-* .editable build dist *.egg-info bench/out
