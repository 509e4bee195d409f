# Two commands matter: `make run` (a real Gemma writes on this machine) and `make test`. The rest serves them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MODEL  ?= gemma-3-270m
PROMPT ?= The capital of France is

.PHONY: run test check bench fuzz clean

run: $(VENV)/.run
	$(BIN)/pocketgem run $(MODEL) "$(PROMPT)" --max-tokens 64

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/pocketgem bench $(MODEL)

fuzz: $(VENV)/.dev # the readers, for as long as wanted: make fuzz MINUTES=60
	$(BIN)/python -m tests.fuzz_checkpoint --minutes $(or $(MINUTES),10)

# The constraints keep pip from taking torch's build for graphics cards, gigabytes of it.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# An editable install knows the rooms that were there when it was made: a new one makes it anew.
$(VENV)/.run: pyproject.toml CMakeLists.txt constraints.txt $(wildcard native/* src/pocketgem/*/__init__.py) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[default-model]"
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
